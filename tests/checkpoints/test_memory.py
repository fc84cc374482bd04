"""How much memory loading takes: a file of weights is mapped, and little of it is in memory beside the model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from public import bert

from mm.checkpoints import save_directory
from mm.checkpoints.directory import describe_build
from mm.checkpoints.resolve import load_model

LARGE = {
    "vocab_size": 8000,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 3,
    "intermediate_size": 4096,
}
Measure = Callable[..., tuple[int, int]]
MEASURE = """
import os, sys
from mm.checkpoints.resolve import load_model

def bytes_in_memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

for line in sys.stdin:
    if not os.fork():  # each model in a process of its own, whose peak it alone decides; before any thread has started
        load_model(sys.argv[1], "int8")  # imports everything that loading needs
        folder, precision = line.split()
        before = bytes_in_memory("VmRSS:")
        model = load_model(folder, None if precision == "None" else precision).model
        print(bytes_in_memory("VmHWM:") - before, sum(value.nbytes for value in model.parameters()), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measure]:
    """Loads a model in a process of its own: by how many bytes its memory grew at most, and the bytes of the model."""
    small = tmp_path_factory.mktemp("small")
    bert(small)
    command = [sys.executable, "-c", MEASURE, str(small)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answered = process.stdin, process.stdout

        def ask(folder: Path, precision: str | None = None) -> tuple[int, int]:
            print(folder, precision, file=asked, flush=True)
            growth, size = map(int, answered.readline().split())
            return growth, size

        yield ask
        asked.close()


def pickled(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Writes a BERT whose weights are a pickle."""
    model = bert(folder, dtype, **LARGE)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)
    return folder


def safe(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a BERT whose weights are safetensors."""
    bert(folder, dtype, **LARGE)
    return folder


def directory(folder: Path) -> Path:
    """Writes a model directory of mm."""
    loaded = load_model(safe(folder / "hub"))
    save_directory(folder, loaded.model, loaded.tokenizer, loaded.architecture, "", family=loaded.family)
    return folder


def checkpoint(folder: Path) -> Path:
    """Writes a training checkpoint, in which the optimizer's state is twice as large as the weights."""
    loaded = load_model(safe(folder))
    state = {f"model.{name}": value for name, value in loaded.model.state_dict().items()}
    own = describe_build(loaded.architecture, loaded.tokenizer, None, loaded.family)
    moments = [{name: torch.zeros_like(value) for name, value in state.items()} for _ in range(2)]
    own["tokenizer"] = loaded.tokenizer.to_json()
    torch.save({"mm": own, "state_dict": state, "optimizer_states": moments}, folder / "last.ckpt")
    return folder / "last.ckpt"


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "safetensors": safe,
    "safetensors in float16": lambda folder: safe(folder, torch.float16),
    "pickle": pickled,
    "pickle in float16": lambda folder: pickled(folder, torch.float16),
    "pickle in the old layout": lambda folder: pickled(folder, _use_new_zipfile_serialization=False),
    "model directory": directory,
    "training checkpoint": checkpoint,
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_peak_is_below_one_and_a_half_times_the_model(layout: str, tmp_path: Path, measure: Measure) -> None:
    growth, size = measure(LAYOUTS[layout](tmp_path / "large"))
    assert size > 180e6
    assert size < growth < 1.5 * size, f"{growth / size:.2f} times the model"


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "share"), [("int8", 0.85), ("float32", 1.45)])
def test_the_peak_of_a_model_that_is_prepared_while_it_is_read(
    precision: str, share: float, tmp_path: Path, measure: Measure
) -> None:
    """With maps of 8-bit integers, the model is never in memory as it is in the file."""
    bert(tmp_path, **LARGE | {"vocab_size": 500, "num_hidden_layers": 4})
    size = (tmp_path / "model.safetensors").stat().st_size
    growth, left = measure(tmp_path, precision)
    assert size > 200e6 and left < size / 20  # all but linear maps
    assert growth < share * size, f"{growth / size:.2f} times the model"
