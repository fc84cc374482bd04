from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm.cli.classify import read_labels
from mm.errors import CapabilityError, OptionError
from mm.pipeline import VisionLanguagePipeline, load

Run = Callable[..., tuple[int, str, str]]
RunJson = Callable[..., tuple[int, dict[str, Any]]]
LABELS = ["red", "green", "blue", "a white wall"]


def test_probabilities_are_the_softmax_of_scaled_similarities(model: str, photos: Path) -> None:
    mine = load(model, "cpu")
    paths = sorted(photos.iterdir())
    found = mine.classify(paths, LABELS, template="{} paint, all {}", batch_size=3)
    texts = [f"{label} paint, all {label}" for label in LABELS]
    logits = mine.embed_images(paths) @ mine.embed_text(texts).T * np.exp(mine.model.logit_scale.detach().numpy())  # type: ignore[attr-defined]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32 and found.std() > 1e-4
    np.testing.assert_allclose(mine.classify(paths[1], LABELS, template="{} paint, all {}"), found[1:2], atol=1e-6)
    assert not np.allclose(mine.classify(paths, LABELS), found)
    assert mine.classify([], LABELS).shape == (0, 4)


def test_labels_are_embedded_once(model: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, calls = load(model, "cpu"), []
    embed = mine.embed_text
    monkeypatch.setattr(mine, "embed_text", lambda texts: calls.append(texts) or embed(texts))
    for labels in (LABELS, list(LABELS), LABELS[:2]):
        mine.classify(photos / "red.png", labels)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        (["cat"], "a {}", "an image is told apart by at least two labels; only 'cat' is given"),
        ("cat", "a {}", "an image is told apart by at least two labels; only 'cat' is given"),
        ([], "a {}", "an image is told apart by at least two labels; none is given"),
        (["cat", "dog", "cat", "cow", "dog"], "a {}", "labels are there more than once: cat, dog"),
        (["cat", " ", "dog"], "a {}", "label 2 of 3 is empty"),
        (["cat", "dog"], "a photo", "template 'a photo' has no {}, which is where the label stands"),
    ],
)
def test_labels_that_can_not_be_told_apart(model: str, labels: Any, template: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        load(model, "cpu").classify(Image.new("RGB", (8, 8)), labels, template=template)
    assert str(caught.value) == message


def test_a_model_that_does_not_embed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = load(model, "cpu")
    mine.capabilities = ("caption",)
    with pytest.raises(CapabilityError, match=r"can't embed \(it can caption\)"):
        mine.classify(Image.new("RGB", (8, 8)), LABELS)


def test_a_table_of_the_three_likeliest(run: Run, run_json: RunJson, model: str, photos: Path, shards: Path) -> None:
    shard = next(shards.glob("*.tar"))
    arguments = ("classify", photos / "red.png", photos, shard, "--labels", ",".join(LABELS), "--model", model)
    status, out, err = run(*arguments)
    assert status == 0, err
    _, result = run_json(*arguments)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert len(lines) == len(result["images"]) == 4 + 4
    for line, row in zip(lines, result["images"], strict=True):
        likely = list(row["probabilities"].items())
        assert [p for _, p in likely] == sorted((p for _, p in likely), reverse=True)
        assert sum(p for _, p in likely) == pytest.approx(1, abs=1e-5)
        assert (row["label"], row["probability"]) == likely[0]
        shown = [f"{label} {p:.3f}" for label, p in likely[1:3]]
        assert line == [row["source"], likely[0][0], f"{likely[0][1]:.3f}", *shown]


def test_two_labels_and_a_template(run: Run, run_json: RunJson, model: str, photos: Path) -> None:
    arguments = ("classify", photos, "--labels", "red, green", "--template", "{} paint", "--model", model)
    status, out, _ = run(*arguments)
    assert status == 0 and "second" in out and "third" not in out
    expected = load(model, "cpu").classify(sorted(photos.iterdir()), ["red", "green"], template="{} paint")
    images = run_json(*arguments, "--batch_size", 1)[1]["images"]
    found = [[row["probabilities"][label] for label in ("red", "green")] for row in images]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_labels_from_a_file(run_json: RunJson, model: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a cat, asleep\n\n  a dog \n一只猫\n", encoding="utf-8")
    _, result = run_json("classify", photos, "--labels", path, "--model", model)
    assert set(result["images"][0]["probabilities"]) == {"a cat, asleep", "a dog", "一只猫"}
    path.write_bytes(b"caf\xe9\nbar\n")
    with pytest.raises(OptionError, match=r"labels.txt: isn't UTF-8 text with one label a line"):
        read_labels(str(path))
    assert read_labels(",".join(["a rather long label"] * 500)) == ["a rather long label"] * 500


def test_bad_files_among_good_ones(run: Run, run_json: RunJson, model: str, photos: Path) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not an image")
    arguments = ("classify", photos, "--labels", "red,green", "--model", model)
    status, out, err = run(*arguments)
    assert status == 1 and out.count(".png") == 4
    assert "Rejected: 2 of 6" in err and "empty file" in err and "not an image" in err
    status, result = run_json(*arguments)
    assert status == 1 and (result["used"], result["rejected"]) == (4, 2)
    assert [row["reason"] for row in result["rejections"]] == ["empty file", "not an image"]


def test_what_is_finished_is_shown_when_the_rest_is_interrupted(
    run: Run, model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify, calls = VisionLanguagePipeline.classify, []

    def interrupted(*arguments: Any, **options: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return classify(*arguments, **options)

    monkeypatch.setattr(VisionLanguagePipeline, "classify", interrupted)
    arguments = ("classify", photos, "--labels", "red,green", "--model", model, "--batch_size", 1)
    status, out, err = run(*arguments)
    assert status == 130 and out.count(".png") == 2 and "interrupted" in err


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["nowhere.jpg", "--labels", "a,b"], "nowhere.jpg"),
        (["{photos}"], "required: labels"),
        (["{photos}", "--labels", "cat"], "at least two labels; only 'cat' is given"),
        (["{photos}", "--labels", "cat,dog,cat"], "more than once: cat"),
        (["{photos}", "--labels", "cat,,dog"], "label 2 of 3 is empty"),
        (["{photos}", "--labels", "cat,dog", "--template", "a photo"], "template 'a photo' has no {}"),
        (["{photos}", "--labels", "cat,dog", "--batch_size", "0"], "--batch_size must be at least 1, not 0"),
        (["{photos}", "--labels", "cat,dog", "--model", "mm-huge"], "mm-huge"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(
    run: Run, model: str, photos: Path, arguments: list[str], culprit: str
) -> None:
    filled = [argument.replace("{photos}", str(photos)) for argument in arguments]
    status, out, err = run("classify", *filled, *([] if "--model" in filled else ["--model", model]))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert culprit in err
