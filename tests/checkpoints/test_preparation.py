"""Weights that are prepared while they are read: the same, bit for bit, as those that are prepared afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import public
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mm.checkpoints import save_directory
from mm.checkpoints.directory import describe_build, load_strictly
from mm.checkpoints.resolve import load_model
from mm.errors import CheckpointError, OptionError
from mm.layers.inference import Int8Linear, PreparedLinear
from mm.models.precision import PRECISIONS, Precision, Preparation, prepare

WORDS = tiny.tokenizer()


def directory(folder: Path) -> Path:
    save_directory(folder, tiny.model(WORDS), WORDS, tiny.ARCHITECTURE, "")
    return folder


def checkpoint(folder: Path) -> Path:
    state = {f"model.{name}": value for name, value in tiny.model(WORDS).state_dict().items()}
    own = describe_build(tiny.ARCHITECTURE, WORDS, None, "mm") | {"tokenizer": WORDS.to_json()}
    torch.save({"mm": own, "state_dict": state}, folder / "last.ckpt")
    return folder / "last.ckpt"


def bert(folder: Path) -> Path:
    public.bert(folder)
    return folder


def pickled(folder: Path) -> Path:
    torch.save(public.bert(folder).state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    return folder


def blip(folder: Path) -> Path:
    public.blip(folder, transformers.BlipForConditionalGeneration)
    return folder


def t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    public.write_tokenizer(folder, 60)
    return folder


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=1, eos_token_id=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    public.write_tokenizer(folder, 60)
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "mm": directory,
    "training checkpoint": checkpoint,
    "BERT": bert,
    "BERT, an old pickle": pickled,
    "BLIP": blip,
    "T5": t5,
    "GPT-2": gpt2,
}


def contents(model: nn.Module) -> dict[str, Any]:
    """Kinds of all modules and numbers of all tensors, packed weights among them, by name."""
    found: dict[str, Any] = {f"{name} is": type(module).__qualname__ for name, module in model.named_modules()}
    for name, module in model.named_modules():
        found |= {f"{name}.{own}": value for own, value in module.named_parameters(recurse=False)}
        found |= {f"{name}.{own}": value for own, value in module.named_buffers(recurse=False)}
        if isinstance(module, PreparedLinear):
            found |= {f"{name}.packed": module.weight, f"{name}.bias": module.bias}
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_those_that_are_prepared_afterwards(family: str, precision: Precision, tmp_path: Path) -> None:
    path = FAMILIES[family](tmp_path)
    read, afterwards = load_model(path, precision), load_model(path)
    assert read.precision == precision and afterwards.precision is None
    prepare(afterwards.model, precision)
    given, expected = contents(read.model), contents(afterwards.model)
    assert given.keys() == expected.keys() and "Linear" not in given.values()
    for name, value in expected.items():
        same = torch.equal(given[name], value) if isinstance(value, Tensor) else given[name] == value
        assert same, name
    assert str(read.fingerprint) == str(afterwards.fingerprint)
    assert not read.model.training


def shared() -> tuple[nn.Module, dict[str, Tensor]]:
    """A model whose maps are shared: one by two modules, and one's weight by another map; and weights for it."""
    torch.manual_seed(0)
    first, second, third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
    third.weight = first.weight
    model = nn.Sequential(nn.Sequential(first, nn.ReLU()), nn.Sequential(first, second), nn.Sequential(third))
    weights = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    for other in ("1.0.weight", "2.0.weight"):
        weights[other] = weights["0.0.weight"]
    return model, weights | {"1.0.bias": weights["0.0.bias"]}


def test_maps_that_are_shared_stay_shared() -> None:
    model, weights = shared()
    load_strictly(model, weights, "weights", Preparation(model, "int8"))
    afterwards, _ = shared()
    load_strictly(afterwards, weights, "weights")
    prepare(afterwards, "int8")
    pair: Any = model
    assert isinstance(pair[0][0], Int8Linear) and pair[0][0] is pair[1][0]
    x = torch.randn(3, 6)
    assert torch.equal(model(x), afterwards(x))


def test_weights_that_are_replaced_take_no_memory_before_they_are_read_and_after() -> None:
    model, weights = shared()
    pair: Any = model
    weight = pair[1][1].weight
    preparation = Preparation(model, "int8")
    assert weight.untyped_storage().nbytes() == 0
    preparation.fill(weight, weights["1.1.weight"])
    assert torch.equal(weight, weights["1.1.weight"]) and type(pair[1][1]) is nn.Linear


def test_weights_that_do_not_fit_are_refused_as_ever(tmp_path: Path) -> None:
    bert(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(state, file, {"format": "pt"})
    messages = []
    for precision in (None, "int8"):
        with pytest.raises(CheckpointError, match=r"missing bert\.encoder\.layer\.1\.attention") as caught:
            load_model(tmp_path, precision)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_precision_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="precision 'int4' is not one of"):
        load_model(directory(tmp_path), "int4")
