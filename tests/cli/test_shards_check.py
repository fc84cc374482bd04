from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from mm.data.samples import Sample
from mm.data.shards.manifest import Manifest
from mm.data.shards.writing import write_shards

Run = Callable[..., tuple[int, str, str]]
RunJson = Callable[..., tuple[int, dict]]


@pytest.fixture
def broken(shards: Path) -> Path:
    """The folder of shards with a damaged header of its third sample, and a shard that isn't listed."""
    path = next(shards.glob("*.tar"))
    content = path.read_bytes()
    place = content.index(b"blue.png")
    path.write_bytes(content[:place] + b"x" + content[place + 1 :])
    (shards / "page.tar").write_text("<html>not found</html>")
    return shards


def photo(seed: int) -> Image.Image:
    """A picture of large smooth shapes."""
    coarse = Image.effect_noise((5, 4), 120).point(lambda value: (value * (seed + 3)) % 256)
    return coarse.resize((96, 80), Image.Resampling.BICUBIC).convert("RGB")


def shards_of(folder: Path, images: dict[str, Image.Image]) -> Path:
    samples = []
    for key, image in images.items():
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        samples.append(Sample(key, key, buffer.getvalue()))
    write_shards(samples, folder)
    return folder


def test_good_shards(run: Run, run_json: RunJson, shards: Path) -> None:
    status, out, err = run("shards", "check", shards)
    assert (status, err) == (0, "") and "samples" in out
    status, found = run_json("shards", "check", shards, "--captions", "--decode")
    assert (status, found) == (0, {"shards": 1, "samples": 4, "problems": 0, "rejections": []})
    assert run_json("shards", "check", *shards.glob("*.tar"))[0] == 0


def test_problems_are_listed_with_key_byte_and_reason(run: Run, run_json: RunJson, broken: Path) -> None:
    status, found = run_json("shards", "check", broken)
    assert status == 1 and (found["shards"], found["samples"], found["problems"]) == (2, 2, 3)
    reasons = {problem["reason"]: problem for problem in found["rejections"]}
    assert reasons.keys() == {"corrupt tar header", "not a tar", "shard not in the manifest"}
    problem = reasons["corrupt tar header"]
    assert (
        problem["source"] == str(next(broken.glob("shard*.tar"))) and problem["offset"] % 512 == 0 < problem["offset"]
    )
    status, out, err = run("shards", "check", broken)
    assert status == 1 and "problems" in out
    (row,) = [line for line in err.splitlines() if "shard-000000.tar" in line and str(problem["offset"]) in line]
    assert "corrupt tar header" in row and "│ 2 " in row  # samples lost


def test_a_flipped_bit_in_a_caption_is_found(run_json: RunJson, shards: Path) -> None:
    path = next(shards.glob("*.tar"))
    content = bytearray(path.read_bytes())
    content[content.index(b"red wall")] ^= 1
    path.write_bytes(content)
    status, found = run_json("shards", "check", shards)
    assert status == 1 and [problem["reason"] for problem in found["rejections"]] == ["shard hash differs"]


def test_long_lists_are_cut(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_of(tmp_path / "shards", {f"k{number}": Image.new("RGB", (9, 9)) for number in range(5)})
    monkeypatch.setattr("mm.cli.shards_check.LISTED", 3)
    status, _, err = run("shards", "check", tmp_path / "shards", "--captions")
    assert status == 1 and "Problems: 5" in err and "2 more; --json lists all" in err
    assert "k2" in err and "k3" not in err


def test_progress_counts_samples(run: Run, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []

    @contextmanager
    def progress(title: str, unit: str = "images") -> Iterator[Callable[[int, int | None], None]]:
        yield lambda done, total=None: told.append((done, total))

    monkeypatch.setattr("mm.progress.progress", progress)
    run("shards", "check", shards)
    (shards / "manifest.json").unlink()
    run("shards", "check", shards)
    assert told == [(4, 4), (4, None)]


def test_a_missing_manifest_is_offered_and_written(run: Run, run_json: RunJson, shards: Path) -> None:
    whole = Manifest.read(shards)
    (shards / "manifest.json").unlink()
    status, _, err = run("shards", "check", shards)
    assert status == 0 and "--write_manifest" in err and not (shards / "manifest.json").exists()
    status, found = run_json("shards", "check", shards, "--write_manifest")
    assert status == 0 and found["manifests_written"] == str(shards / "manifest.json")
    assert Manifest.read(shards) == whole
    status, found = run_json("shards", "check", shards, "--write_manifest")
    assert status == 0 and found["manifests_written"] is None


def test_no_manifest_for_bad_or_only_some_shards(run: Run, broken: Path) -> None:
    (broken / "manifest.json").unlink()
    status, _, err = run("shards", "check", broken, "--write_manifest")
    assert status == 1 and "no manifest was written" in err
    (broken / "page.tar").unlink()
    (broken / "extra.tar").write_bytes(bytes(1024))
    good = shards_of(broken / "good", {"a": Image.new("RGB", (9, 9))})
    (good / "manifest.json").unlink()
    (good / "b.tar").write_bytes(bytes(1024))
    status, _, err = run("shards", "check", good / "shard-000000.tar", "--write_manifest")
    assert status == 1 and "b.tar" in err
    assert not list(broken.rglob("manifest.json"))


def test_repairing(run: Run, run_json: RunJson, broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    status, found = run_json("shards", "check", broken, "--repair", out)
    assert status == 1 and found["repaired_to"] == str(out)
    assert (found["shards_written"], found["samples_written"], found["samples_left_out"]) == (1, 2, 3)
    lines = [json.loads(line) for line in Path(found["rejects"]).read_text().splitlines()]
    assert sum(line["samples"] for line in lines) == 3 and Path(found["rejects"]).parent == out
    assert run_json("shards", "check", out)[1]["samples"] == 2
    before = sorted(out.iterdir())
    status, _, err = run("shards", "check", broken, "--repair", out)
    assert status == 2 and "already holds shards" in err and sorted(out.iterdir()) == before


def test_nothing_to_repair(run_json: RunJson, shards: Path, tmp_path: Path) -> None:
    status, found = run_json("shards", "check", shards, "--repair", tmp_path / "clean")
    assert status == 0 and found["repaired_to"] is None and not (tmp_path / "clean").exists()


def test_leaks(run: Run, run_json: RunJson, tmp_path: Path) -> None:
    images = {f"p{number}": photo(number) for number in range(4)}
    train = shards_of(tmp_path / "train", images)
    test = shards_of(tmp_path / "test", {"small": images["p2"].resize((60, 50)), "flip": ImageOps.mirror(images["p0"])})
    page = tmp_path / "leaks.html"
    status, found = run_json("shards", "check", "--leaks", train, test, "--html", page)
    assert status == 1 and (found["train"], found["test"], found["leaks"], found["unreadable"]) == (4, 2, 2, 0)
    pairs = [(Path(pair["train"]).name, Path(pair["test"]).name, pair["kind"]) for pair in found["pairs"]]
    assert pairs == [("p2", "small", "near-duplicate"), ("p0", "flip", "mirrored")]
    assert page.read_text().count("<img ") == 4
    status, out, _ = run("shards", "check", "--leaks", train, test)
    assert status == 1 and "mirrored" in out and "shard-000000.tar/p2" in out
    other = shards_of(tmp_path / "other", {"new": photo(11)})
    assert run_json("shards", "check", "--leaks", train, other)[1]["pairs"] == []
    assert run("shards", "check", "--leaks", train, other)[0] == 0


def test_leaks_among_unreadable_images_are_not_ruled_out(run: Run, broken: Path, tmp_path: Path) -> None:
    other = shards_of(tmp_path / "other", {"new": photo(11)})
    status, out, err = run("shards", "check", "--leaks", other, broken)
    assert status == 1 and "unreadable" in out and "corrupt tar header" in err


def test_wrong_use(run: Run, shards: Path, photos: Path, tmp_path: Path) -> None:
    cases: list[tuple[tuple[object, ...], str]] = [
        ((), "give the shards to check"),
        ((shards, "--leaks", shards, shards), "give the shards to check"),
        ((tmp_path / "nowhere",), "nowhere"),
        ((photos,), "holds no .tar shards"),
        ((shards, "--max_pixels", 0), "max_pixels"),
        ((shards, "--html", tmp_path / "x.html"), "--html"),
        (("--leaks", shards), "leaks"),
        (("--leaks", shards, tmp_path / "nowhere"), "nowhere"),
        (("--leaks", shards, shards, "--html", tmp_path / "no" / "x.html"), "x.html"),
        ((shards, "--repair", photos / "red.png"), "red.png"),
    ]
    for arguments, culprit in cases:
        status, _, err = run("shards", "check", *arguments)
        assert status == 2, arguments
        assert err.count("\n") == 1 and culprit in err, err
