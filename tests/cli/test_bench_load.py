from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
SIDES = ["mm", "mm, its own views", "open_clip", "ImageFolder"]


@pytest.mark.slow
def test_a_first_look_at_loading(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "speeds.png"
    status, out, _ = run("bench", "load", "--quick", "--repeats", 1, "--json", "--plot", picture)
    found = json.loads(out)
    assert status == 0 and found["repeats"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    names = ["224 px", "600 x 450"]
    assert [(row["images"], row["side"]) for row in found["speeds"]] == [(n, s) for n in names for s in SIDES]
    assert all(row["per_second"] > 0 for row in found["speeds"])
    assert len(found["memory"]) == 3
    assert [row["start"] for row in found["starts"]] == ["first", "second"]
    assert all(row["process"] > row["import"] > row["first batch"] > 0 for row in found["starts"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--repeats", "0"), "--repeats must be at least 1, not 0"),
        (("--data", "nowhere.tar"), "nowhere.tar"),
        (("--plot", "nowhere/a.png"), "nowhere/a.png: can't be written"),
    ],
)
def test_wrong_use_is_one_line(run: Run, arguments: tuple[str, ...], named: str) -> None:
    status, _, err = run("bench", "load", "--quick", *arguments)
    assert status != 0 and err.count("\n") == 1 and named in err


def test_a_picture_needs_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run("bench", "load", "--quick", "--plot", tmp_path / "a.png")
    assert status == 2 and err.count("\n") == 1 and "pip install 'mm[bench]'" in err
