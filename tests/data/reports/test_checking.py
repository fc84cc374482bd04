from __future__ import annotations

import json
from pathlib import Path

import pytest
from broken import FAULTS, FIRST, SECOND, THIRD, Fault, make_shards
from encoding import encode
from pictures import picture, some_samples, write_tar
from PIL import Image

from mm.data.reports.checking import check_shards, unlisted, write_manifests
from mm.data.shards.archive import Archive
from mm.data.shards.manifest import Manifest
from mm.data.shards.writing import write_shards
from mm.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "out")


def test_good_shards(folder: Path) -> None:
    steps: list[int] = []
    report = check_shards(folder, steps.append, captions=True, decode=True)
    assert report.ok and (len(report.shards), report.samples, steps) == (3, 6, [2, 2, 2])
    assert check_shards(folder / SECOND).samples == 2
    assert check_shards([folder / SECOND, folder / FIRST]).samples == 4
    (folder / "manifest.json").unlink()
    assert check_shards(folder).samples == 6


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_fault_is_named(folder: Path, fault: Fault) -> None:
    fault.make(folder)
    report = check_shards(folder, captions=True, decode=True)
    found = [problem for problem in report.problems if problem.reason == fault.reason]
    assert found and not report.ok
    assert found[0].source == str(folder / fault.source) or found[0].source.endswith(f".tar/{fault.source}")
    assert found[0].source in found[0].detail
    assert found[0].key == ("" if fault.source.endswith(".tar") else fault.source)
    assert (found[0].offset is not None) == fault.placed
    there = sum(shard.found.nsamples for shard in report.shards)
    assert report.tally.seen == max(6, there)
    assert report.samples >= len(fault.good)


def test_processes_find_the_same(folder: Path) -> None:
    FAULTS["members swapped between shards"].make(folder)
    FAULTS["cut inside a member"].make(folder)
    assert check_shards(folder, workers=2).problems == check_shards(folder, workers=1).problems != []


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
        ("key001", "key in several shards"),
        ("shard-000000.tar", "shard hash differs"),
        ("shard-000001.tar", "missing shard"),
        ("shard-000002.tar", "shard cut short"),
        ("text", "not an image"),
        ("cut", "truncated"),
    ]
    assert (len(report.shards), report.samples, report.tally.seen) == (4, 1, 6 + 3)


@pytest.mark.parametrize("decode", [False, True])
def test_a_shard_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch, decode: bool) -> None:
    opened: list[str] = []
    original = Archive.__init__

    def noting(archive: Archive, path: Path, name: str | None = None) -> None:
        opened.append(path.name)
        original(archive, path, name)

    monkeypatch.setattr(Archive, "__init__", noting)
    report = check_shards(folder, decode=decode)
    assert report.ok and opened == [shard.path.name for shard in report.shards]
    assert [len(shard.keys) for shard in report.shards] == [2, 2, 2]


def test_a_key_in_two_shards_is_named_with_both(tmp_path: Path) -> None:
    write_shards(some_samples(2), tmp_path / "one")
    write_shards(some_samples(1), tmp_path / "two")
    report = check_shards([tmp_path / "two", tmp_path / "one"])
    (problem,) = report.problems
    assert (problem.reason, problem.key, problem.samples, problem.offset) == ("key in several shards", "key000", 0, 0)
    assert str(tmp_path / "one" / FIRST) in problem.source and str(tmp_path / "two" / FIRST) in problem.detail
    assert report.samples == 3


def test_decoding_finds_what_the_header_does_not_tell(tmp_path: Path) -> None:
    data = encode(Image.effect_noise((64, 64), 80), "JPEG")
    write_tar(tmp_path / "x.tar", {"a.jpg": data[: len(data) * 3 // 4]})
    assert check_shards(tmp_path).ok
    for options, reason in (({"decode": True}, "truncated"), ({"captions": True}, "missing caption")):
        (problem,) = check_shards(tmp_path, **options).problems  # type: ignore[arg-type]
        assert (problem.reason, problem.key, problem.offset) == (reason, "a", 0)
    for decode in (True, False):
        (problem,) = check_shards(tmp_path, max_pixels=9, decode=decode).problems
        assert problem.reason == "too many pixels"


def test_a_damaged_shard_without_a_manifest_counts_as_one_loss(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    FAULTS["cut inside a member"].make(folder)
    report = check_shards(folder)
    assert (report.samples, report.tally.rejected, len(report.problems)) == (5, 1, 1)


def test_wrong_manifest_is_reported_and_the_shards_still_checked(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wids_version": 3}))
    for target, count in ((folder, 6), (folder / FIRST, 2)):
        report = check_shards(target)
        assert [(problem.source, problem.reason) for problem in report.problems] == [(str(path), "damaged manifest")]
        assert report.samples == count


def test_manifests_are_written_where_there_are_none(folder: Path) -> None:
    whole = Manifest.read(folder)
    assert not unlisted(check_shards(folder)) and not write_manifests(check_shards(folder))
    (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match=THIRD):
        write_manifests(check_shards([folder / FIRST, folder / SECOND]))
    assert write_manifests(check_shards(folder.parent)) == [folder / "manifest.json"]
    assert Manifest.read(folder) == whole


def test_hidden_files_are_in_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / f"._{FIRST}").write_bytes(b"what a file system keeps beside a file")
    assert write_manifests(check_shards(folder)) == [folder / "manifest.json"]
    assert [shard.url for shard in Manifest.read(folder).shards] == [FIRST, SECOND, THIRD]


def test_no_manifest_vouches_for_bad_shards(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    FAULTS["cut inside a member"].make(folder)
    with pytest.raises(DataError, match="no manifest was written"):
        write_manifests(check_shards(folder))
    assert not (folder / "manifest.json").exists()


def test_another_file_called_manifest_is_left_alone(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "an app"}')
    assert not write_manifests(check_shards(folder))
    assert (folder / "manifest.json").read_text() == '{"name": "an app"}'


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        check_shards(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture())
    with pytest.raises(UsageError, match=r"photos: holds no \.tar shards"):
        check_shards(tmp_path / "photos")
