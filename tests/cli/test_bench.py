from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mm.models.precision import available

Run = Callable[..., tuple[int, str, str]]
PRECISIONS = available(torch.device("cpu"))


def test_a_first_look_at_captioning(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "times.png"
    status, out, _ = run("bench", "caption", "--quick", "--repeats", 1, "--json", "--plot", picture)
    found = json.loads(out)
    assert status == 0 and found["repeats"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert set(found["machine"]["multiply"]) == set(PRECISIONS)
    sides = ["transformers float32", *(f"mm {name}" for name in PRECISIONS)]
    assert [(row["case"], row["side"]) for row in found["cases"]] == [
        (case, side) for case in ("batch 1, greedy", "batch 2, beam 3") for side in sides
    ]
    exact = [row for row in found["cases"] if row["side"] == "mm float32"]
    assert [(row["same"], row["captions"]) for row in exact] == [(1, 1), (2, 2)]
    assert [row["counts"] for row in found["curves"]] == [[1, 2, 4]] * len(PRECISIONS) + [[2, 4, 8]] * len(PRECISIONS)
    assert "CoCa of open_clip" in found["skipped"]


def test_the_gate_and_what_it_saves(run: Run, model: str, shards: Path, tmp_path: Path) -> None:
    model = str(shutil.copytree(model, tmp_path / "model"))  # others go on with the model as it was
    arguments = ("bench", "gate", "--model", model, "--data", shards, "--save")
    status, out, _ = run(*arguments, "--json")
    found: dict[str, Any] = json.loads(out)
    assert status == 0
    assert [row["precision"] for row in found["precisions"]] == list(PRECISIONS)
    assert all(row["captions"] == 4 for row in found["precisions"])
    exact = found["precisions"][0]
    assert exact["passes"] and exact["identical"] == 1.0
    passed = [row["precision"] for row in found["precisions"][1:] if row["passes"]]
    assert found["saved"] == passed
    assert json.loads((Path(model) / "config.json").read_text())["precisions"] == passed
    status, out, _ = run("bench", "gate", "--model", model, "--data", shards, "--limit", 2, "--batch_size", 1)
    assert status == 0 and "passes" in out and "float32" in out and "saved" not in out


def test_the_gate_without_a_caption_to_compare_with(run: Run, model: str, shards: Path) -> None:
    status, _, err = run("bench", "gate", "--model", model, "--data", shards, "--limit", 0)
    assert status != 0 and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("speed",), "no benchmark 'speed'; there are caption, gate, load"),
        (("caption", "--repeats", "0"), "--repeats must be at least 1, not 0"),
        (("caption", "--device", "nowhere"), "device 'nowhere' can't be used"),
        (("gate",), "data"),
        (("gate", "--data", "x", "--save"), "--save writes into a model directory, and 'mm-tiny' isn't one"),
    ],
)
def test_wrong_use_is_one_line(run: Run, arguments: tuple[str, ...], named: str) -> None:
    status, _, err = run("bench", *arguments)
    assert status == 2 and err.count("\n") == 1 and named in err


def test_no_arguments_show_what_there_is(run: Run) -> None:
    assert run("bench")[0] == 2
    status, out, _ = run("bench", "--help")
    assert status == 0 and all(f"mm bench {name}" in out for name in ("caption", "gate", "load"))


@pytest.mark.parametrize(("missing", "plot"), [("transformers", False), ("matplotlib", True)])
def test_what_is_missing_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, plot: bool
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    more = ("--plot", tmp_path / "a.png") if plot else ()
    status, _, err = run("bench", "caption", "--quick", *more)
    assert status == 2 and err.count("\n") == 1
    assert missing in err and "pip install 'mm[bench]'" in err
