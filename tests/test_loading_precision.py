from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor, nn

import mm
from mm.checkpoints import load_directory, save_directory
from mm.checkpoints.resolve import load_model
from mm.cli import main
from mm.errors import CheckpointError, UsageError
from mm.models.precision import PRECISIONS, prepare
from mm.pipeline import VisionLanguagePipeline, vision_language

CPU = torch.device("cpu")
WORDS = tiny.tokenizer()


def test_captions_of_mm_tiny_are_the_same_prepared_and_not() -> None:
    photos = sorted((Path(__file__).parents[2] / "data/samples").glob("*.jpg"))[:3]
    loaded = load_model("mm-tiny")
    plain = VisionLanguagePipeline("mm-tiny", loaded, CPU)
    prepared = mm.load("mm-tiny", "cpu", "float32")
    assert prepared.precision == "float32" and plain.fingerprint == prepared.fingerprint
    assert any(type(module) is nn.Linear for module in plain.model.modules())
    for language in ("en", "zh"):
        expected, given = (model.caption(photos, language=language) for model in (plain, prepared))
        assert [caption.text for caption in given] == [caption.text for caption in expected]
        for one, wanted in zip(given, expected, strict=True):
            assert one.score == pytest.approx(wanted.score, abs=1e-5)


def test_a_model_is_loaded_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    net, photo = tiny.model(WORDS), tiny.picture("red")
    save_directory(tmp_path, net, WORDS, tiny.ARCHITECTURE, "", precisions=["int8"])
    vectors = {name: mm.load(tmp_path, "cpu", name).embed_images(photo) for name in PRECISIONS}
    assert mm.load(tmp_path, "cpu").precision in ("float32", "int8")
    for name in ("bfloat16", "int8"):
        assert float((vectors[name] @ vectors["float32"].T)[0, 0]) > 0.99
        assert (vectors[name] != vectors["float32"]).any()
    assert (vectors["int8"] != vectors["bfloat16"]).any()


def test_a_model_that_is_prepared_can_not_be_saved(tmp_path: Path) -> None:
    model = tiny.model(WORDS)
    prepare(model, "float32")
    with pytest.raises(UsageError, match="prepared for inference can't be saved"):
        save_directory(tmp_path / "model", model, WORDS, tiny.ARCHITECTURE, "")
    assert not (tmp_path / "model").exists()


def test_a_model_directory_tells_the_precisions_of_its_model(tmp_path: Path) -> None:
    net = tiny.model(WORDS)
    save_directory(tmp_path / "one", net, WORDS, tiny.ARCHITECTURE, "")
    assert load_directory(tmp_path / "one").precisions == ()
    save_directory(tmp_path / "two", net, WORDS, tiny.ARCHITECTURE, "", precisions=["bfloat16", "int8"])
    assert load_directory(tmp_path / "two").precisions == ("bfloat16", "int8")
    config = tmp_path / "two/config.json"
    config.write_text(config.read_text().replace("bfloat16", "float11"))
    with pytest.raises(CheckpointError, match="'precisions' must be a list of some of float32, bfloat16, int8"):
        load_directory(tmp_path / "two")


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_images_are_seen_a_few_at_a_time(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save_directory(tmp_path, tiny.model(WORDS), WORDS, tiny.ARCHITECTURE, "")
    model = mm.load(tmp_path, "cpu", "float32")
    noise = torch.randint(256, (8, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    images = [Image.fromarray(image) for image in noise]
    expected = model.embed_images(images, batch_size=1)
    sizes, see = [], model.model.image_tokens
    numbers = see(torch.rand(1, 3, 32, 32)).numel()

    def spied(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return see(pixels)

    monkeypatch.setattr(vision_language, "CACHED_NUMBERS", chunk * numbers)
    monkeypatch.setattr(model.model, "image_tokens", spied)
    np.testing.assert_allclose(model.embed_images(images), expected, atol=1e-6)
    assert sizes == {1: [1] * 8, 3: [1, 3, 3, 1], 100: [1, 7]}[chunk]


@pytest.mark.parametrize(
    "command", ["caption", "ask", "classify", "score", "translate", "eval", "index", "search", "demo"]
)
def test_every_command_refuses_a_precision_that_does_not_exist(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, texts, gallery, shards = (tmp_path / name for name in ("red.png", "texts.txt", "gallery", "shards"))
    tiny.picture("red").save(photo)
    texts.write_text("a red wall\n")
    if command == "search":
        with mm.Gallery.open(gallery, "mm-tiny", create=True) as opened:
            opened.add([(photo.read_bytes(), tiny.picture("red"), "red.png", {}, {})])
    arguments: dict[str, list[Any]] = {
        "caption": [photo],
        "ask": [photo, "what is it?"],
        "classify": [photo, "--labels", "red,blue"],
        "score": [texts, "--model", "mm-tiny"],
        "translate": [texts, "--model", "mm-tiny"],
        "eval": ["captioning", "--data", tiny.shards(shards, 2)],
        "index": [photo, "--gallery", gallery],
        "search": ["red", "--gallery", gallery],
        "demo": ["--photos", tmp_path, "--output", tmp_path / "out"],
    }
    given = [command, *arguments[command], "--precision", "int4"]
    assert main([str(part) for part in given]) == 2
    assert "precision 'int4' is not one of auto, float32, bfloat16, int8" in capsys.readouterr().err
