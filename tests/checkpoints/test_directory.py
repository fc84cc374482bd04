from __future__ import annotations

import errno
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mm.checkpoints import Loaded, load_checkpoint, load_directory, save_directory
from mm.errors import CheckpointError, OutputError
from mm.generation import GenerationConfig
from mm.models import VisionLanguageModel
from mm.pipeline import VisionLanguagePipeline

WORDS = tiny.tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model directory with random weights."""
    save_directory(tmp_path / "model", tiny.model(WORDS), WORDS, tiny.ARCHITECTURE, "# A model\n")
    return tmp_path / "model"


def captions(loaded: Loaded) -> list[str]:
    pipeline = VisionLanguagePipeline("tiny", loaded, torch.device("cpu"))
    pictures = [tiny.picture(name) for name in tiny.COLOURS]
    return [str(caption) for caption in pipeline.caption(pictures, config=GenerationConfig(max_tokens=12))]


def own(model: VisionLanguageModel) -> list[str]:
    return captions(Loaded(model, WORDS, tiny.ARCHITECTURE, ""))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_saved_loads_as_the_same_model(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny.model(WORDS)
    expected = own(model)
    for _ in range(2):  # over an older one, too
        save_directory(tmp_path, model, WORDS, tiny.ARCHITECTURE, "card", dtype)
    loaded = load_directory(tmp_path)
    assert captions(loaded) == expected
    assert loaded.architecture == tiny.ARCHITECTURE and loaded.tokenizer.languages == WORDS.languages
    assert not loaded.model.training and loaded.model.text_encoder.embedding is loaded.model.text_decoder.embedding
    for name, value in model.state_dict().items():
        kept = loaded.model.state_dict()[name]
        assert kept.dtype == value.dtype
        assert torch.equal(kept, value.to(dtype).to(value.dtype) if value.is_floating_point() else value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "README.md").read_text() == "card"


def test_shared_weights_are_written_once(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    assert sum("embedding.weight" in name for name in names) == 1


def test_fingerprint_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    first = load_directory(folder)
    save_directory(tmp_path / "same", first.model, WORDS, tiny.ARCHITECTURE, "another card")
    save_directory(tmp_path / "other", tiny.model(WORDS, seed=1), WORDS, tiny.ARCHITECTURE, "")
    assert first.fingerprint == load_directory(tmp_path / "same").fingerprint
    assert first.fingerprint != load_directory(tmp_path / "other").fingerprint
    assert len(str(first.fingerprint)) == 64


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_directory(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_every_key_that_does_not_fit_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["surplus"] = weights.pop("match_head.weight")
    weights["another"] = torch.zeros(1)
    weights["logit_scale"] = torch.zeros(2)
    weights["match_head.bias"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors")
    message = refused(folder)
    for part in (
        "missing match_head.weight",
        "unexpected surplus",
        "unexpected another",
        "logit_scale has shape (2,) instead of ()",
        "match_head.bias has shape (3,) instead of (2,)",
    ):
        assert part in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name}: can't be read (No such file or directory)" in refused(folder)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_weights_cut_anywhere(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, size % path.stat().st_size)
    assert "model.safetensors: damaged or not safetensors" in refused(folder)


@pytest.mark.parametrize("content", [b"\xff" * 64, b"{}", pickle.dumps({"a": 1}), b"\x10\0\0\0\0\0\0\0" + b"[" * 16])
def test_weights_that_are_something_else(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors: damaged or not safetensors" in refused(folder)


def config(**changes: Any) -> bytes:
    from dataclasses import asdict

    return json.dumps(
        {"model_type": "mm-vision-language", "architecture": asdict(replace(tiny.ARCHITECTURE)), "languages": []}
        | changes
    ).encode()


def built(**changes: Any) -> bytes:
    document = json.loads(config())
    document["architecture"] |= changes
    return json.dumps(document).encode()


HOSTILE = {
    "empty": (b"", "config.json: not JSON"),
    "not JSON": (b"{", "config.json: not JSON"),
    "not UTF-8": (b"\xff\xfe", "config.json: not JSON"),
    "deep": (b"[" * 100_000, "config.json: not JSON"),
    "a list": (b"[]", "isn't a JSON object"),
    "another kind": (config(model_type="blip"), "model_type is 'blip'; mm's own is 'mm-vision-language'"),
    "no architecture": (config(architecture=None), "has no 'architecture' object"),
    "unknown keys": (built(depth=3, colour="red"), "unknown keys in 'architecture': colour, depth; known are"),
    "text for a number": (built(width="wide"), "'architecture' can't be built"),
    "no heads": (built(heads=0), "'architecture' can't be built (architecture.heads must be at least 1, not 0)"),
    "huge": (built(image_size=10**12), "'architecture' can't be built"),
    "an unknown network": (built(vision="nothing"), "timm has no vision model named 'nothing'"),
    "a network from elsewhere": (built(vision="hf-hub:a/b"), "timm has no vision model named 'hf-hub:a/b'"),
    "a number for a network": (built(vision=5), "'architecture' can't be built"),
    "a nested std": (built(std=[[1], [2], [3]]), "'architecture' can't be built"),
    "another size": (built(width=64), "text_encoder.positions has shape (32, 32) instead of (32, 64)"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_configs(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    assert message in refused(folder)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    model = tiny.model(WORDS)
    with pytest.raises(OutputError, match=r"file: the model can't be written there"):
        save_directory(tmp_path / "file", model, WORDS, tiny.ARCHITECTURE, "")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device"):
        save_directory(tmp_path / "full", model, WORDS, tiny.ARCHITECTURE, "")
    assert list((tmp_path / "full").iterdir()) == []


def test_weights_too_large_for_the_precision_are_not_written_as_infinity(tmp_path: Path) -> None:
    model = tiny.model(WORDS)
    with torch.no_grad():
        model.match_head.bias[0] = 1e6
    with pytest.raises(OutputError, match=r"too large for torch.float16: match_head.bias"):
        save_directory(tmp_path, model, WORDS, tiny.ARCHITECTURE, "", torch.float16)
    assert list(tmp_path.iterdir()) == []


class Dangerous:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"mm": Dangerous(tmp_path / "ran"), "state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"bad.ckpt: not a training checkpoint of mm"):
        load_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


def test_other_files_are_not_checkpoints(tmp_path: Path) -> None:
    good = {"mm": {"tokenizer": WORDS.to_json(), "architecture": {}}, "state_dict": {"model.a": torch.zeros(1)}}
    broken: list[Any] = [
        [],
        {},
        {"mm": 3, "state_dict": {}},
        {"mm": {"tokenizer": 3}, "state_dict": {}},
        good | {"state_dict": None},
        good | {"mm": good["mm"] | {"tokenizer": "{}"}},
        good | {"mm": good["mm"] | {"architecture": {"depth": 3}}},
        good | {"state_dict": {"model.a": "text"}},
    ]
    path = tmp_path / "x.ckpt"
    for document in broken:
        torch.save(document, path)
        with pytest.raises(CheckpointError, match=r"x.ckpt: ") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    for content in (b"", b"PK", b"\x80\x02", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x.ckpt: not a training checkpoint of mm"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="can't be read"):
        load_checkpoint(tmp_path / "nowhere.ckpt")
