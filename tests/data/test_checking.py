from __future__ import annotations

import json
from pathlib import Path

import pytest
from pictures import encode, picture, some_samples, write_tar
from PIL import Image

from mm.data.manifest import Manifest
from mm.data.shards import check_shards, write_shards
from mm.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(some_samples(6), tmp_path / "out", max_samples=2)
    return tmp_path / "out"


def test_good_shards(folder: Path) -> None:
    steps: list[int] = []
    report = check_shards(folder, steps.append, captions=True, decode=True)
    assert report.ok and (report.shards, report.samples, sum(steps)) == (3, 6, 6)
    assert check_shards(folder / "shard-000001.tar").samples == 2
    (folder / "manifest.json").unlink()
    assert check_shards(folder).samples == 6


def test_everything_wrong_is_listed(folder: Path) -> None:
    shards = sorted(folder.glob("*.tar"))
    data = bytearray(shards[0].read_bytes())
    data[data.index(b"picture 0")] ^= 1  # in a caption: only the hash can tell
    shards[0].write_bytes(data)
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:700])
    write_tar(folder / "zextra.tar", {"key001.png": picture(), "text.jpg": b"text", "cut.png": picture()[:20]})
    report = check_shards(folder)
    assert [(Path(problem.source).name, problem.reason) for problem in report.problems] == [
        ("zextra.tar", "shard not in the manifest"),
        ("shard-000000.tar", "shard hash differs"),
        ("shard-000001.tar", "missing shard"),
        ("shard-000002.tar", "shard cut short"),
        ("key001.png", "duplicate key"),
        ("text.jpg", "not an image"),
        ("cut.png", "truncated"),
    ]
    assert (report.shards, report.samples, report.tally.seen) == (4, 2, 6 + 3)


def test_decoding_finds_what_the_header_does_not_tell(tmp_path: Path) -> None:
    data = encode(Image.effect_noise((64, 64), 80), "JPEG")
    write_tar(tmp_path / "x.tar", {"a.jpg": data[: len(data) * 3 // 4]})
    assert check_shards(tmp_path).ok
    assert [problem.reason for problem in check_shards(tmp_path, decode=True).problems] == ["truncated"]
    assert [problem.reason for problem in check_shards(tmp_path, captions=True).problems] == ["missing caption"]
    assert [problem.reason for problem in check_shards(tmp_path, max_pixels=9).problems] == ["too many pixels"]


def test_wrong_manifest_is_reported_and_the_shards_still_checked(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wids_version": 3}))
    for target, count in ((folder, 6), (folder / "shard-000000.tar", 2)):
        report = check_shards(target)
        assert [(problem.source, problem.reason) for problem in report.problems] == [(str(path), "damaged manifest")]
        assert report.samples == count


def test_wrong_use(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        check_shards(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.tar shards"):
        check_shards(tmp_path / "empty")
    assert Manifest.read(folder).total == 6
