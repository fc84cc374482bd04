from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import picture, some_samples, write_tar

from mm.data.shards.inspecting import inspect_shards
from mm.data.shards.inspection import Inspection
from mm.data.shards.known import KnownShards
from mm.data.shards.manifest import Manifest
from mm.data.shards.writing import write_shards
from mm.files import cache_folder


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    manifest = write_shards(some_samples(5), tmp_path / "out", max_samples=2)
    path = write_tar(tmp_path / "out" / "bad.tar", {"a.png": picture(), "b.png": picture(), "b.txt": b"\xff"})
    return Manifest([*manifest.shards, *Manifest.of(path).shards])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are inspected."""
    from mm.data.shards import inspecting

    names: list[str] = []
    original = inspecting._inspect

    def inspect(path: Path, *arguments: object) -> object:
        names.append(path.name)
        return original(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inspecting, "_inspect", inspect)
    return names


def look(manifest: Manifest, folder: Path, **options: object) -> list[Inspection]:
    return inspect_shards(manifest.shards, known=KnownShards(folder), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("verify", [False, True])
def test_shards_are_inspected_once(manifest: Manifest, tmp_path: Path, opened: list[str], verify: bool) -> None:
    first = look(manifest, tmp_path / "cache", verify=verify)
    assert len(opened) == 4 and [len(found.problems) for found in first] == [0, 0, 0, 2]
    assert look(manifest, tmp_path / "cache", verify=verify) == first
    assert len(opened) == 4
    assert (first[0].digests is not None) == verify


def test_known_shards_count_as_progress(manifest: Manifest, tmp_path: Path) -> None:
    for _ in range(2):
        seen: list[int] = []
        look(manifest, tmp_path, progress=seen.append)
        assert sum(seen) == manifest.total


def test_what_was_not_looked_at_is_not_known(manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    for options in (
        {},
        {"verify": True},
        {"images": True},
        {"images": True, "max_pixels": 7},
        {"verify": True, "images": True},
        {"captions": False},
    ):
        opened.clear()
        look(manifest, tmp_path, **options)
        assert len(opened) == 4, options


def test_what_was_verified_is_known_without_too(manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    alone = inspect_shards(manifest.shards)
    look(manifest, tmp_path, verify=True)
    opened.clear()
    assert look(manifest, tmp_path) == alone and opened == []


def test_an_instance_knows_what_it_kept(
    manifest: Manifest, tmp_path: Path, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    known = KnownShards(tmp_path / "file")  # where nothing can be written
    first = inspect_shards(manifest.shards, known=known)
    opened.clear()
    assert inspect_shards(manifest.shards, known=known) == first and opened == []
    path = manifest.shards[1].path
    path.write_bytes(path.read_bytes()[:-512])
    assert inspect_shards(manifest.shards, known=known)[1].damaged and opened == [path.name]


def test_what_an_instance_kept_of_verified_shards_answers_without_too(
    manifest: Manifest, tmp_path: Path, opened: list[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    alone = inspect_shards(manifest.shards)
    known = KnownShards(tmp_path / "file")
    inspect_shards(manifest.shards, known=known, verify=True)
    opened.clear()
    assert inspect_shards(manifest.shards, known=known) == alone and opened == []


def test_what_the_manifest_says_may_change(manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    look(manifest, tmp_path, verify=True)
    opened.clear()
    wrong = Manifest([replace(manifest.shards[0], sha256="0" * 64), replace(manifest.shards[1], nsamples=1)])
    found = look(wrong, tmp_path, verify=True)
    assert [inspection.problems[0].reason for inspection in found] == [
        "shard hash differs",
        "more samples than the manifest says",
    ]
    assert opened == []


def test_changed_shards_are_inspected_again(manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    look(manifest, tmp_path)
    opened.clear()
    path = manifest.shards[0].path
    state = path.stat()
    content = path.read_bytes()
    path.write_bytes(bytes(512) + content[512:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # size and time of modification are what they were
    assert look(manifest, tmp_path)[0].damaged and opened == [path.name]
    path.unlink()
    for _ in range(2):  # what is missing may come back
        opened.clear()
        assert look(manifest, tmp_path)[0].problems[0].reason == "missing shard" and opened == [path.name]


def test_messages_name_the_path_that_was_given(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = manifest.shards[3].path.parent
    for _ in range(2):
        look(manifest, folder)
        monkeypatch.chdir(folder)
        entry = replace(manifest.shards[3], path=Path("bad.tar"))
        problems = look(Manifest([entry]), folder)[0].problems
        assert [problem.detail.split(":")[0] for problem in problems] == ["bad.tar/a", "bad.tar/b.txt"]


def test_goes_on_without_a_database(
    manifest: Manifest, tmp_path: Path, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "shards.db").write_bytes(b"no database " * 500)
    unwritable = tmp_path / "file"
    unwritable.write_bytes(b"")
    for folder in (damaged, unwritable / "cache"):
        caplog.clear()
        opened.clear()
        for _ in range(2):
            assert len(look(manifest, folder)) == 4
        assert len(opened) == 8
        (record,) = caplog.records
        assert record.levelname == "WARNING" and str(folder) in record.getMessage()


def test_a_damaged_row_is_not_used(manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    first = look(manifest, tmp_path)
    with sqlite3.connect(tmp_path / "shards.db") as database:
        database.execute("UPDATE shards SET inspection = substr(inspection, 1, 20) WHERE path LIKE '%0001.tar'")
    opened.clear()
    assert look(manifest, tmp_path) == first and opened == ["shard-000001.tar"]


def test_the_oldest_is_forgotten(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm.data.shards.known._MOST_ROWS", 3)
    for options in ({}, {"verify": True}):
        look(manifest, tmp_path, **options)
    with sqlite3.connect(tmp_path / "shards.db") as database:
        assert database.execute("SELECT count(*) FROM shards").fetchone() == (3,)


def test_work_is_kept_when_it_is_interrupted(manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    def interrupt(count: int) -> None:
        if len(opened) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(manifest, tmp_path, progress=interrupt)
    opened.clear()
    look(manifest, tmp_path)
    assert opened == ["bad.tar"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "mm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mm"
    monkeypatch.setenv("MM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
