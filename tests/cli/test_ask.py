from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mm.checkpoints import save_directory
from mm.checkpoints.directory import special_tokens
from mm.checkpoints.resolve import find_tokenizer
from mm.data.tokenizer import Tokenizer
from mm.models import Parts, build

Run = Callable[..., tuple[int, str, str]]
RunJson = Callable[..., tuple[int, dict[str, Any]]]
QUESTION = "how many dogs?"


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory with random weights that answers questions."""
    words = Tokenizer.read(find_tokenizer("mm-tiny"))
    sizes = {"width": 32, "heads": 4, "blocks": 1}
    text = {"preset": "bert", "hidden": 48, "max_tokens": 32, "dropout": 0.0} | sizes
    vision = {"preset": "vit", "image_size": 32, "patch_size": 16} | sizes
    parts = Parts(vision, text_decoder=text, text_encoder=text, sees="answer")
    torch.manual_seed(0)
    model = build(parts, len(words), special_tokens(words)).eval()
    with torch.no_grad():  # answers that depend on photo and question
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * (1.0 if value.ndim < 2 else 2 / value.shape[-1] ** 0.5))
    folder = tmp_path_factory.mktemp("answering")
    save_directory(folder, model, words, parts, "# random\n")
    return str(folder)


def test_answers_a_question_about_photos_and_folders(run: Run, answering: str, photos: Path) -> None:
    status, out, err = run("ask", photos / "red.png", photos, QUESTION, "--model", answering)
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0, err
    assert [Path(source).stem for source, _ in rows] == ["red", "blue", "green", "white"]
    assert len({answer for _, answer in rows}) > 1
    other = run("ask", photos, "is it a cat?", "--model", answering)[1]
    assert dict(line.split("\t") for line in other.splitlines()) != dict(rows)


def test_json_is_one_object(run_json: RunJson, answering: str, photos: Path) -> None:
    options = ("--model", answering, "--batch_size", 3, "--beams", 1, "--max_tokens", 3)
    status, result = run_json("ask", photos, QUESTION, *options)
    assert (status, result["used"], result["rejected"], result["question"]) == (0, 4, 0, QUESTION)
    assert [row["key"] for row in result["answers"]] == ["blue", "green", "red", "white"]
    assert all(row["score"] <= 0 and isinstance(row["complete"], bool) for row in result["answers"])
    for row in result["answers"]:
        alone = run_json("ask", row["source"], QUESTION, *options)[1]["answers"][0]
        assert (alone["answer"], alone["complete"]) == (row["answer"], row["complete"])


def test_decoding_is_that_of_python_unless_told_otherwise() -> None:
    from mm.cli import ask, decoding
    from mm.pipeline import ANSWER

    options = ask._options(["a.jpg", QUESTION], "mm ask")
    assert decoding.generation_config(options, decoding.ANSWER) == ANSWER


def test_bad_files_among_good_ones(run: Run, answering: str, photos: Path) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    status, out, err = run("ask", photos, QUESTION, "--model", answering)
    assert (status, len(out.splitlines())) == (1, 4)
    assert "Rejected: 1 of 5" in err and "empty file" in err


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["{photos}", QUESTION], "hf:Salesforce/blip-vqa-base"),
        (["{photos}"], "question"),
        (["{photos}", "{photos}"], "the question comes last"),
        (["{photos}", " "], "the question comes last"),
        (["nowhere.jpg", QUESTION, "--model", "{answering}"], "nowhere.jpg"),
        (["{photos}", QUESTION, "--model", "{answering}", "--max_tokens", "90"], "max_tokens"),
        (["{photos}", QUESTION, "--model", "{answering}", "--batch_size", "0"], "--batch_size must be at least 1"),
    ],
)
def test_wrong_use_is_one_line(run: Run, answering: str, photos: Path, arguments: list[str], culprit: str) -> None:
    status, out, err = run("ask", *(part.format(photos=photos, answering=answering) for part in arguments))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert culprit in err
