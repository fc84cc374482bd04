from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mm.data.samples import Sample
from mm.data.shards.writing import write_shards

Run = Callable[..., tuple[int, str, str]]
RunJson = Callable[..., tuple[int, dict]]


def test_figures(run: Run, run_json: RunJson, shards: Path) -> None:
    status, found = run_json("shards", "stats", shards)
    assert status == 0 and (found["shards"], found["samples"], found["rejected"]) == (1, 4, 0)
    assert found["images"]["formats"] == {"PNG": 4} and found["images"]["sizes"] == {"48 x 40": 4}
    assert "near_duplicates" not in found["images"]
    english, chinese = found["captions"]["en"], found["captions"]["zh"]
    assert (english["captions"], english["vocabulary"], english["frequent"]["paint"]) == (8, 7, 4)
    assert (chinese["captions"], chinese["duplicates"], chinese["length"]["most"]) == (4, 3, 3)
    status, out, err = run("shards", "stats", shards)
    assert (status, err) == (0, "")
    for text in ("PNG: 4", "48 x 40: 4", "vocabulary", "zh", "面"):
        assert text in out


def test_a_page_is_written(run: Run, shards: Path, tmp_path: Path) -> None:
    page = tmp_path / "stats.html"
    status, out, _ = run("shards", "stats", shards, "--html", page)
    text = page.read_text()
    assert status == 0 and text.count("<img ") == 4 and "a red wall" in text and "<script" not in text
    assert str(shards) in text and "samples" in out


def test_problems_are_counted_by_reason(run: Run, run_json: RunJson, shards: Path) -> None:
    path = next(shards.glob("*.tar"))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"blue.png") + 600])
    status, found = run_json("shards", "stats", shards)
    assert status == 1 and found["samples"] + found["rejected"] == 4
    assert found["problems"] == {"shard cut short": found["rejected"]}
    status, _, err = run("shards", "stats", shards)
    assert status == 1 and "shard cut short" in err
    path.unlink()
    status, found = run_json("shards", "stats", shards)
    assert status == 1 and found["problems"] == {"missing shard": 4} and found["images"]["width"] is None
    assert run("shards", "stats", shards)[0] == 1


def test_a_damaged_manifest_is_a_problem(run_json: RunJson, shards: Path) -> None:
    path = shards / "manifest.json"
    path.write_text(json.dumps({"__kind__": "something else"}))
    status, found = run_json("shards", "stats", shards)
    assert status == 1 and found["samples"] == 4 and found["problems"] == {"damaged manifest": 0}


def test_near_duplicates_are_listed_and_shown(run: Run, run_json: RunJson, tmp_path: Path) -> None:
    image = Image.effect_noise((5, 4), 120).resize((96, 80), Image.Resampling.BICUBIC)
    samples = []
    for number, size in enumerate(((96, 80), (50, 40))):
        path = tmp_path / f"{number}.png"
        image.resize(size).save(path)
        samples.append(Sample(f"k{number}", "made", path.read_bytes()))
    write_shards(samples, tmp_path / "out")
    page = tmp_path / "stats.html"
    status, found = run_json("shards", "stats", tmp_path / "out", "--near_duplicates", "--html", page)
    (pair,) = found["images"]["near_duplicates"]
    assert status == 0 and pair["train"].endswith("/k0") and pair["test"].endswith("/k1")
    assert page.read_text().count("<img ") == 2 + 2
    assert "near-duplicates" in run("shards", "stats", tmp_path / "out", "--near_duplicates")[1]


def test_wrong_use(run: Run, shards: Path, photos: Path, tmp_path: Path) -> None:
    cases: list[tuple[tuple[object, ...], str]] = [
        ((), "shards"),
        ((tmp_path / "nowhere",), "nowhere"),
        ((photos,), "holds no .tar shards"),
        ((shards, "--max_pixels", 0), "max_pixels"),
        ((shards, "--html", tmp_path / "no" / "x.html"), "x.html"),
    ]
    for arguments, culprit in cases:
        status, _, err = run("shards", "stats", *arguments)
        assert status == 2, arguments
        assert err.count("\n") == 1 and culprit in err, err
