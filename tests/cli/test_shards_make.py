from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from making import mixed_sources, samples_in

Run = Callable[..., tuple[int, str, str]]
RunJson = Callable[..., tuple[int, dict]]


def test_nothing_usable_is_listed_by_reason(run: Run, run_json: RunJson, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    status, _, err = run("shards", "make", folder, tmp_path / "out")
    assert status == 1
    assert "no sample was left to write" in err and "Rejected: 2 of 2" in err
    assert "empty file" in err and "not an image" in err
    status, made = run_json("shards", "make", folder, tmp_path / "out")
    assert status == 1
    assert (made["shards"], made["samples"], made["rejected"], len(made["rejections"])) == (0, 0, 2, 2)


def test_rejections_are_listed_when_writing_fails(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a-empty.jpg").write_bytes(b"")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm.data.shards.writing.open_file", full)
    status, _, err = run("shards", "make", photos, tmp_path / "out")
    assert status == 1
    assert "No space left on device" in err and "Rejected: 1 of 1" in err and "empty file" in err
    assert "the same command goes on from there" in err


def test_figures_tell_what_became_of_everything(run: Run, run_json: RunJson, tmp_path: Path) -> None:
    sources = mixed_sources(tmp_path)
    options = ["--languages", "en,fr", "--drop_duplicates", "--max_side", 32, "--splits", "train=0.6,val=0.4"]
    status, made = run_json("shards", "make", *sources, tmp_path / "out", *options)
    rejections = made.pop("rejections")
    assert status == 1
    assert made == {
        "shards": 2,
        "samples": 21,
        "splits": {split: len(samples_in(tmp_path / "out" / split)) for split in ("train", "val")},
        "left_out": {"no caption in en or fr": 3},
        "rejected": 3,
        "duplicates": 4,
        "captions_of_duplicates": 5,
        "keys_made_unique": 1,
        "members_left_out": {".cls": 2},
    }
    assert {rejection["reason"] for rejection in rejections} == {"caption is not UTF-8", "truncated", "missing image"}
    status, out, err = run("shards", "make", *sources, tmp_path / "table", *options)
    assert status == 1 and "Rejected: 3 of 24" in err
    lines = [line.strip("│ ").split("│") for line in out.splitlines() if line.startswith("│")]
    figures = {name.strip(): value.strip() for name, value in lines}
    assert figures["left out: no caption in en or fr"] == "3" and figures["members left out: .cls"] == "2"
    assert figures["splits: train"] == str(made["splits"]["train"]) and figures["keys made unique"] == "1"


def test_what_is_left_out_is_no_failure(run_json: RunJson, photos: Path, tmp_path: Path) -> None:
    (photos / "red.txt").write_text("a red wall")
    status, made = run_json("shards", "make", photos, tmp_path / "out", "--languages", "en", "--max_pixels", 9999)
    assert (status, made["samples"], made["left_out"]) == (0, 1, {"no caption in en": 3})


def test_captions_of_two_files_and_a_list(run_json: RunJson, photos: Path, tmp_path: Path) -> None:
    images = ["red.png", "green.png", "blue.png"]
    (tmp_path / "en.txt").write_text("".join(f"{image}#0\ta wall\n" for image in images))
    (tmp_path / "zh.txt").write_text("".join(f"{image}#zhc#0 一面墙\n" for image in images), encoding="utf-8")
    (tmp_path / "list.txt").write_text("red.png\nblue.png\nblack.png\n")
    options = ["--images", photos, "--list", tmp_path / "list.txt", "--add", f"zh={tmp_path / 'zh.txt'}"]
    status, made = run_json("shards", "make", tmp_path / "en.txt", tmp_path / "out", *options)
    assert (status, made["samples"], made["left_out"]) == (0, 2, {"not in the list": 1})
    assert (made["captions_added"], made["listed_not_found"]) == (2, 1)
    assert samples_in(tmp_path / "out")["red"].captions == {"en": ["a wall"], "zh": ["一面墙"]}


def test_what_an_added_file_has_in_vain_is_told(run: Run, run_json: RunJson, photos: Path, tmp_path: Path) -> None:
    added = tmp_path / "zh.txt"
    added.write_bytes("red.png#0 一面墙\nblack.png#0 墙\nno caption\n".encode() + b"green.png#0 caf\xe9\n")
    status, made = run_json("shards", "make", photos, tmp_path / "out", "--add", f"zh={added}")
    assert (status, made["samples"], made["rejected"]) == (1, 4, 0)
    assert (made["captions_added"], made["added_not_found"], made["rows_rejected"]) == (1, 1, 2)
    reasons = {(rejection["source"], rejection["reason"]) for rejection in made["rejections"]}
    assert reasons == {(str(added), "malformed row"), (str(added), "caption is not UTF-8")}
    status, out, err = run("shards", "make", photos, tmp_path / "table", "--add", f"zh={added}")
    assert status == 1 and "malformed row" in err and "rows rejected" in out and "added not found" in out


def test_a_split_of_the_source(run_json: RunJson, photos: Path, tmp_path: Path) -> None:
    images = [
        {"filename": f"{name}.png", "split": split, "sentences": [{"raw": f"a {name} wall"}]}
        for name, split in {"red": "train", "green": "restval", "blue": "val"}.items()
    ]
    (photos / "dataset.json").write_text(json.dumps({"images": images}))
    status, made = run_json("shards", "make", photos / "dataset.json", tmp_path / "out", "--split", "train, restval")
    assert (status, made["samples"], made["left_out"]) == (0, 2, {"split isn't train or restval": 1})
    assert samples_in(tmp_path / "out")["green"].metadata == {"split": "restval"}


def test_a_split_may_get_nothing(run_json: RunJson, photos: Path, tmp_path: Path) -> None:
    status, made = run_json("shards", "make", photos, tmp_path / "out", "--splits", "train=0.9999,val=0.0001")
    assert (status, made["splits"]) == (0, {"train": 4, "val": 0})
    assert not (tmp_path / "out" / "val" / "manifest.json").exists()


def test_wrong_use(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "table.csv").write_text("picture,caption\nphotos/red.png,a red wall\n")
    out = tmp_path / "out"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((photos,), "out"),
        ((tmp_path / "nowhere", out), "nowhere"),
        ((tmp_path / "file", out), "file: is empty"),
        ((tmp_path / "table.csv", out), "'image'"),
        ((photos, tmp_path / "file" / "out"), "file"),
        ((photos, tmp_path / "nowhere.csv", out), "nowhere.csv"),
        ((photos, out, "--max_samples", 0), "max_samples"),
        ((photos, out, "--max_bytes", -1), "max_bytes"),
        ((photos, out, "--max_pixels", 0), "max_pixels"),
        ((photos, out, "--max_side", 0), "max_side"),
        ((photos, out, "--min_side", 0), "min_side"),
        ((photos, out, "--quality", 200), "quality"),
        ((photos, out, "--splits", "train=2"), "splits"),
        ((photos, out, "--add", "captions.txt"), "--add"),
        ((photos, out, "--list", tmp_path / "nowhere.txt"), "nowhere.txt"),
        ((photos, out, "--images", photos), "--images"),
    ]
    for arguments, culprit in cases:
        status, _, err = run("shards", "make", *arguments)
        assert status == 2, arguments
        assert err.count("\n") == 1 and culprit in err, err
        assert not out.exists()
