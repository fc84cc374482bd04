from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mm
from mm.checkpoints import save_directory
from mm.checkpoints.directory import special_tokens
from mm.checkpoints.resolve import find_tokenizer
from mm.data.tokenizer import Tokenizer
from mm.generation import GenerationConfig
from mm.models import Parts, build

Run = Callable[..., tuple[int, str, str]]
RunJson = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def flamingo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory with random weights that reads several images within a text."""
    path = find_tokenizer("mm-tiny")
    own = Tokenizer.read(path)
    marks = {"image": own.match, "around_image": own.embed, "embed": None, "match": None}
    words = Tokenizer.read(path, own.special | marks | {"close": own.end, "languages": {"en": own.languages["en"]}})
    sizes = {"width": 32, "heads": 4, "blocks": 2}
    decoder = {"preset": "llama", "hidden": 48, "max_tokens": 96, "cross": "gated", "cross_every": 2} | sizes
    vision = {"preset": "vit", "image_size": 32, "patch_size": 16} | sizes
    parts = Parts(vision, text_decoder=decoder)
    torch.manual_seed(0)
    model = build(parts, len(words), special_tokens(words)).eval()
    with torch.no_grad():  # captions that depend on photo and examples
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * (1.0 if value.ndim < 2 else 2 / value.shape[-1] ** 0.5))
    folder = tmp_path_factory.mktemp("flamingo")
    save_directory(folder, model, words, parts, "# random\n")
    return str(folder)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A file of two examples, with their images beside it, and a blank line at its end."""
    folder = tmp_path / "examples"
    folder.mkdir()
    lines = []
    for name, colour in (("orange", (250, 150, 20)), ("pink", (250, 150, 200))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
        lines.append(json.dumps({"image": f"{name}.png", "caption": f"all of it is {name}\u2028", "note": 1}))
    path = folder / "examples.jsonl"
    path.write_text("\n".join([*lines, "", ""]), encoding="utf-8")
    return path


def test_captions_follow_examples(run_json: RunJson, flamingo: str, photos: Path, examples: Path) -> None:
    options = ("--model", flamingo, "--beams", 1, "--max_tokens", 5, "--prompt", "a photo", "--batch_size", 3)
    status, result = run_json("caption", photos, *options, "--shots", examples)
    assert (status, result["used"], result["rejected"]) == (0, 4, 0)
    captions = [row["caption"] for row in result["captions"]]
    assert captions != [row["caption"] for row in run_json("caption", photos, *options)[1]["captions"]]
    model = mm.load(flamingo)
    config = GenerationConfig(beams=1, max_tokens=5, repetition_penalty=1.2)
    shots = [(examples.parent / f"{name}.png", f"all of it is {name}\u2028") for name in ("orange", "pink")]
    written = model.caption(
        [photos / f"{row['key']}.png" for row in result["captions"]], shots=shots, prompt="a photo", config=config
    )
    assert captions == [caption.text for caption in written]
    assert all(caption.startswith("a photo") for caption in captions)


def test_a_model_that_takes_no_shots(run: Run, model: str, photos: Path, examples: Path) -> None:
    status, out, err = run("caption", photos, "--model", model, "--shots", examples)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "can't take shots" in err and "hf:HuggingFaceM4/idefics-9b" in err
    with pytest.raises(mm.errors.CapabilityError, match="can't take shots"):
        mm.load(model).caption(photos / "red.png", shots=[(photos / "red.png", "red")])


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ('{"image": "pink.png"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["pink.png", "pink"]', "has no image"),
        ('{"caption": "pink"}', "has no image"),
        ('{"image": "pink.png"}', "has no caption"),
        ('{"image": "pink.png", "caption": 3}', "caption is 3, not a text"),
        ('{"image": "pink.png", "caption": " "}', "caption is ' ', not a text"),
        ('{"image": null, "caption": "pink"}', "image is None, not a text"),
        ('{"image": "gone.png", "caption": "pink"}', "image: {folder}/gone.png: doesn't exist"),
        ('{"image": "examples.jsonl", "caption": "pink"}', "image: {folder}/examples.jsonl: isn't an image"),
        ('{"image": "", "caption": "pink"}', "image is '', not a text"),
    ],
)
def test_a_bad_line_is_named_before_any_work(
    run: Run, flamingo: str, photos: Path, examples: Path, line: str, culprit: str
) -> None:
    whole = examples.read_text(encoding="utf-8").strip("\n")
    examples.write_text(f"{whole}\n{line}\n", encoding="utf-8")
    output = photos.parent / "captions.jsonl"
    status, out, err = run("caption", photos, "--model", flamingo, "--shots", examples, "--output", output)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{examples}, line 3: {culprit.format(folder=examples.parent)}" in err
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "culprit"), [(b"", "has no example"), (b"\n \n", "has no example"), (b"\xff\xfe", "isn't UTF-8")]
)
def test_a_file_without_examples(
    run: Run, flamingo: str, photos: Path, examples: Path, content: bytes, culprit: str
) -> None:
    examples.write_bytes(content)
    status, out, err = run("caption", photos, "--model", flamingo, "--shots", examples)
    assert (status, out, err.count("\n")) == (2, "", 1) and f"{examples}: {culprit}" in err
    examples.unlink()
    status, _, err = run("caption", photos, "--model", flamingo, "--shots", examples)
    assert status == 2 and f"{examples}: can't be read" in err


def test_examples_that_leave_no_room(run: Run, flamingo: str, photos: Path, examples: Path) -> None:
    line = json.dumps({"image": "pink.png", "caption": "all of it is pink"})
    examples.write_text("\n".join([line] * 12), encoding="utf-8")
    status, out, err = run("caption", photos, "--model", flamingo, "--shots", examples)
    assert (status, out, err.count("\n")) == (2, "", 1) and "of this model" in err
    photo = photos / "red.png"
    with pytest.raises(mm.errors.OptionError, match="shot 2 of 2 has no caption"):
        mm.load(flamingo).caption(photo, shots=[(photo, "red"), (photo, " ")])
