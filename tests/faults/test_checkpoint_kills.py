"""A checkpoint outlives kill -9 at any moment of the next one's being saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fitting import ANOTHER_DEVICE, environment

KILLS = 100

# Forks processes that save without end, and kills each at a random moment. All of a checkpoint is one number, which
# grows by one with every save.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path

import torch

from mm.training.saving import WholeCheckpoints

path, kills = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)


def save(number):
    weights = {f"layer {i}": torch.full((100_000,), number) for i in range(5)}
    WholeCheckpoints().save_checkpoint({"number": number, "weights": weights}, path)


def load():
    checkpoint = torch.load(path, weights_only=True)
    for name, weights in checkpoint["weights"].items():
        assert bool((weights == checkpoint["number"]).all()), name
    return checkpoint["number"]


save(0)
random.seed(0)
number, midway = 0, 0
for _ in range(kills):
    if (child := os.fork()) == 0:
        while True:
            number += 1
            save(number)
    time.sleep(random.uniform(0.002, 0.03))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    temporary = [name for name in os.listdir(path.parent) if name != path.name]
    assert len(temporary) <= 1, temporary
    midway += len(temporary)
    found = load()
    assert found >= number, (found, number)
    number = found
save(number + 1)
assert load() == number + 1
print(midway, number, *os.listdir(path.parent))
"""


@pytest.mark.slow
def test_the_last_good_checkpoint_loads_after_every_kill(tmp_path: Path) -> None:
    """The temporary folder is on another device, and what killed writers leave behind is removed by the next one."""
    variables = environment()
    if ANOTHER_DEVICE.is_dir():
        assert variables["TMPDIR"] == str(ANOTHER_DEVICE)
    path = tmp_path / "last.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(KILLS)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    midway, saved, *files = done.stdout.split()
    assert int(midway) > KILLS // 5, "too few kills hit a save"
    assert int(saved) > 0
    assert files == ["last.ckpt"]
