from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
from running import fit, made_data, trainer, training

from mm.checkpoints import resolve, save_directory
from mm.checkpoints.resolve import find_tokenizer, load_vision_language
from mm.data.tokenizer import Tokenizer
from mm.errors import CheckpointError, UnknownModelError

WORDS = tiny.tokenizer()


def directory(path: Path) -> Path:
    save_directory(path, tiny.model(WORDS), WORDS, tiny.ARCHITECTURE, "card")
    return path


def test_directories_and_checkpoints_are_found_by_path(tmp_path: Path) -> None:
    assert load_vision_language(str(directory(tmp_path / "model"))).architecture == tiny.ARCHITECTURE
    module = training(tmp_path)
    fit(trainer(tmp_path, max_epochs=1), module, made_data(tmp_path))
    loaded = load_vision_language(tmp_path / "checkpoints/last.ckpt")
    assert loaded.architecture == tiny.ARCHITECTURE and loaded.tokenizer.to_json() == WORDS.to_json()
    weights = module.model.state_dict()
    assert all(value.equal(weights[name]) for name, value in loaded.model.state_dict().items())
    assert not loaded.model.training


@pytest.mark.parametrize("name", ["nothing", "mm-huge", "ViT-B-32", "", "a/b/c.ckpt"])
def test_unknown_names_list_the_known_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError) as caught:
        load_vision_language(name or "no such model")
    message = str(caught.value)
    for known in ("mm-tiny", "a model directory", ".ckpt", "hf:owner/name", "open_clip:architecture/tag"):
        assert known in message
    assert caught.value.exit_code == 2


def test_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(directory(tmp_path / "hub"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_vision_language("hf:owner/name").architecture == tiny.ARCHITECTURE
    assert asked[0][0] == "owner/name" and not any("bin" in p or "*.p" in p for p in asked[0][1])

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UnknownModelError, match=r"hf:owner/name: can't be fetched from the hub \(OSError\)"):
        load_vision_language("hf:owner/name")


def test_tokenizers_are_found_by_model_or_path(tmp_path: Path) -> None:
    folder = directory(tmp_path / "model")
    for name in (str(folder), str(folder / "tokenizer.json")):
        assert Tokenizer.read(find_tokenizer(name)).to_json() == WORDS.to_json()
    assert find_tokenizer("mm-tiny") == resolve.ASSETS / "mm-tiny/tokenizer.json"
    assert set(Tokenizer.read(find_tokenizer("mm-tiny")).languages) == {"en", "zh"}
    with pytest.raises(CheckpointError, match="can't be read"):
        Tokenizer.read(find_tokenizer(str(tmp_path / "nothing.json")))
