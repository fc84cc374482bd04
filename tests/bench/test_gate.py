from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mm.bench.comparison import open_own
from mm.bench.gate import Difference, Gate, rank, require_directory, save_precisions
from mm.checkpoints.directory import load_directory, save_directory
from mm.errors import CheckpointError, UsageError
from mm.generation import GenerationConfig

CPU = torch.device("cpu")
CONFIG = GenerationConfig(beams=2, max_tokens=8, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights."""
    words, path = tiny.tokenizer(), tmp_path_factory.mktemp("models") / "random"
    save_directory(path, tiny.model(words), words, tiny.ARCHITECTURE, "# random\n")
    return path


def test_a_caption_ranks_as_in_beam_search() -> None:
    likely = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, -0.5, -4.0], [-0.25, -8.0, -8.0]])
    config = GenerationConfig(beams=2, repetition_penalty=2.0, length_penalty=1.0)
    assert rank(likely, [2], [1, 2], config) == pytest.approx((-2.0 - 4.0 * 2) / 2)  # 2 was in the opening
    assert rank(likely, [5], [0, 0, 0], config) == pytest.approx((-1.0 - 1.5 * 2 - 0.25 * 2) / 3)


def test_the_rank_of_a_caption_is_the_score_that_the_search_found(folder: Path) -> None:
    plain = GenerationConfig(beams=2, max_tokens=8)
    own = open_own(str(folder), "float32", CPU)
    gate, pixels = Gate({"float32": own}, plain), own.pixels([tiny.picture(name) for name in ("red", "blue")])
    found = own.write(own.see(pixels), plain)
    worse = found[0]._replace(tokens=found[0].tokens[::-1])
    gap = gate._gap(pixels[:1], found[0], worse)
    assert gate._gap(pixels[:1], found[0], found[0]) == 0.0
    assert gate._gap(pixels[:1], worse, found[0]) == pytest.approx(-gap) and gap != 0
    with torch.inference_mode():
        tokens = torch.tensor([found[0].tokens])
        logits = own.pipeline.model.caption_logits(
            own.see(pixels[:1]), torch.tensor(own.opening[-1:]), tokens, torch.ones_like(tokens).bool()
        )
    ids = [*found[0].tokens, own.pipeline.tokenizer.end] if found[0].ended else found[0].tokens
    expected = found[0].score / found[0].generated
    assert rank(logits.log_softmax(-1), own.opening, ids, plain) == pytest.approx(expected, abs=1e-4)


def test_captions_that_differ_are_noted(folder: Path, tmp_path: Path) -> None:
    words = tiny.tokenizer()
    save_directory(tmp_path, tiny.model(words, seed=5), words, tiny.ARCHITECTURE, "# other\n")
    models = {"float32": open_own(str(folder), "float32", CPU), "int8": open_own(str(tmp_path), "float32", CPU)}
    gate, names = Gate(models, CONFIG), ["red", "green", "blue"]
    for start, stop in ((0, 2), (2, 3)):
        some = names[start:stop]
        gate.add(some, [tiny.picture(name) for name in some], [tiny.captions(name)["en"] for name in some])
    assert len(gate.references) == 3 and gate.differences["float32"] == []
    noted = {one.source: one for one in gate.differences["int8"]}
    assert noted
    for number, name in enumerate(names):
        exact, reduced = gate.texts["float32"][number], gate.texts["int8"][number]
        if name in noted:
            assert (noted[name].exact, noted[name].reduced) == (exact, reduced)
        else:
            assert exact == reduced
    expected = models["float32"].pipeline.caption([tiny.picture(name) for name in names], config=CONFIG)
    assert gate.texts["float32"] == [caption.text for caption in expected]


def judged(reduced: list[str], gaps: list[float]) -> dict[str, Any]:
    """What the gate says of captions in bfloat16; those in float32 are references."""
    known = ["a dog runs on the grass", "two cats sit on a wall", "a man rides a red bike", "snow lies on the roof"]
    gate = Gate({}, CONFIG, references=[[text] for text in known])
    gate.texts = {"float32": known, "bfloat16": reduced}
    gate.differences = {"float32": [], "bfloat16": [Difference("x", "", "", gap) for gap in gaps]}
    exact, row = gate.figures()
    assert exact["passes"] and exact["drop"] == 0.0 and exact["identical"] == 1.0
    return row


def test_a_precision_that_loses_much_fails() -> None:
    good = ["a dog runs on the grass", "two cats sit on a wall", "a man rides a red bike", "snow lies on the roof"]
    same = judged(good, [])
    assert same["passes"] and same["largest_gap"] is None
    row = judged([*good[:3], "a boat"], [0.25, -0.5, 0.125])
    assert not row["passes"] and row["drop"] > 0.2
    assert (row["median_gap"], row["largest_gap"], row["identical"]) == (0.25, 0.5, 0.25)


def test_what_passes_is_saved(folder: Path) -> None:
    rows = [
        {"precision": "float32", "passes": True},
        {"precision": "bfloat16", "passes": True},
        {"precision": "int8", "passes": False},
    ]
    before = json.loads((folder / "config.json").read_text())
    assert save_precisions(folder, rows) == ["bfloat16"]
    assert json.loads((folder / "config.json").read_text()) == before | {"precisions": ["bfloat16"]}
    assert load_directory(folder).precisions == ("bfloat16",)
    assert save_precisions(folder, rows[:1]) == ["bfloat16"]  # nothing was measured of it
    assert save_precisions(folder, [{"precision": "bfloat16", "passes": False}]) == []


def test_only_model_directories_can_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'mm-tiny' isn't one; give --model a folder"):
        require_directory("mm-tiny")
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(CheckpointError, match="model_type"):
        require_directory(str(tmp_path))
