from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import some_samples

from mm.data.shards import inspecting, opened
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.inspecting import inspect_shards
from mm.data.shards.layout import HASH_DIFFERS, Layout
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import IndexedShards
from mm.data.shards.writing import write_shards
from mm.errors import DataError, ShardError

SHARDS = 10


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_shards(some_samples(2 * SHARDS), tmp_path / "out", max_samples=2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose headers were read, in order."""
    names: list[str] = []

    class Noting(Layout):
        def __init__(self, archive: opened.Archive) -> None:
            names.append(archive.name)
            super().__init__(archive)

    monkeypatch.setattr(opened, "Layout", Noting)
    return names


def keys(shards: IndexedShards) -> list[str]:
    return [shards[index].key for index in range(len(shards))]


def test_headers_of_closed_shards_are_kept(
    manifest: Manifest, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "OPEN_SHARDS", 2)
    shards = IndexedShards(manifest)
    first = keys(shards)
    assert keys(shards) == first and len(read) == SHARDS


def test_headers_are_kept_of_so_many_samples(
    manifest: Manifest, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "OPEN_SHARDS", 1)
    monkeypatch.setattr(opened, "KEPT_SAMPLES", 8)
    shards = IndexedShards(manifest)
    for index in [*range(10), *range(2, 10), 0]:
        shards[index]
    assert len(read) == 6  # four shards of two samples are kept, and the first was dropped for the fifth


def test_headers_are_read_again_when_a_file_has_changed(
    manifest: Manifest, read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(opened, "OPEN_SHARDS", 1)
    shards = IndexedShards(manifest)
    path, size = manifest.shards[0].path, manifest.shards[0].bytes
    assert [shards[index].key for index in (0, 2)] == ["key000", "key002"]
    other = write_shards(some_samples(4)[2:], tmp_path / "other").shards[0]
    assert other.bytes == size
    shutil.copy(other.path, path)
    assert shards[0].key == "key002" and read.count(str(path)) == 2


def passing_failure(reads: Callable[..., bytes], path: Path) -> Callable[..., bytes]:
    """A read that fails once for a file, as a network file system's may."""
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        if failures and os.path.samestat(os.fstat(descriptor), path.stat()):
            raise failures.pop()
        return reads(descriptor, size, offset)

    return pread


@pytest.mark.parametrize("inspected", [False, True])
def test_a_failure_that_passes_does_not_condemn_a_shard(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, inspected: bool
) -> None:
    shards = IndexedShards(manifest, inspections=inspect_shards(manifest.shards) if inspected else None)
    monkeypatch.setattr(os, "pread", passing_failure(os.pread, manifest.shards[0].path))
    with pytest.raises(ShardError) as caught:
        shards[0]
    assert caught.value.reason == "unreadable shard"
    assert shards[0].key == "key000"


def test_a_missing_local_shard_may_come_back(manifest: Manifest, tmp_path: Path) -> None:
    shards = IndexedShards(manifest)
    path = manifest.shards[0].path
    path.rename(tmp_path / "away")
    with pytest.raises(ShardError, match="doesn't exist"):
        shards[0]
    (tmp_path / "away").rename(path)
    assert shards[0].key == "key000"


def test_a_damaged_shard_is_read_once(manifest: Manifest, read: list[str]) -> None:
    os.truncate(manifest.shards[0].path, 700)
    shards = IndexedShards(manifest)
    caught = []
    for _ in range(3):
        with pytest.raises(ShardError, match="cut short") as info:
            shards[0]
        caught.append(info.value)
    assert len(read) == 1
    assert {(error.reason, error.offset) for error in caught} == {(caught[0].reason, caught[0].offset)}
    assert caught[1] is not caught[2]  # each with a traceback of its own


class Remote:
    """Stands for remote shards and the cache of their copies."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        folder.mkdir()
        self.origin = {f"https://host/{entry.url}": entry.path for entry in manifest.shards}
        self.manifest = Manifest(
            [replace(entry, path=folder / entry.url, remote=f"https://host/{entry.url}") for entry in manifest.shards]
        )
        self.fetched: list[str] = []

    def fetch(self, entry: ManifestEntry) -> Path:
        """Makes a copy where there is none."""
        if not entry.path.exists():
            self.fetched.append(entry.url)
            shutil.copy(self.origin[entry.name], entry.path)
        return entry.path

    def shards(self, verify: bool = True) -> IndexedShards:
        """The shards as a new process reads them."""
        return IndexedShards(self.manifest, fetch=self.fetch, verify=verify)

    def flip_a_bit(self, path: Path) -> None:
        """Changes a bit in an image, and nothing else."""
        status = path.stat()
        content = bytearray(path.read_bytes())
        content[content.index(b"IDAT") + 6] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def remote(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setenv("MM_CACHE", str(tmp_path / "known"))
    return Remote(manifest, tmp_path / "copies")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were hashed, in order."""
    names: list[str] = []
    original = inspecting.HashingReader

    def noting(archive: opened.Archive) -> inspecting.HashingReader:
        names.append(archive.name)
        return original(archive)

    monkeypatch.setattr(inspecting, "HashingReader", noting)
    return names


def test_copies_are_hashed_once(remote: Remote, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "OPEN_SHARDS", 1)
    names = [entry.name for entry in remote.manifest.shards]
    shards = remote.shards()
    for _ in range(2):
        keys(shards)
        assert hashed == names == list(remote.origin)
    keys(remote.shards())
    assert hashed == names
    remote.shards(verify=False)[0]
    assert hashed == names and len(remote.fetched) == SHARDS


def test_a_damaged_copy_is_fetched_again(remote: Remote) -> None:
    whole = remote.shards()[0]
    copy = remote.manifest.shards[0].path
    remote.flip_a_bit(copy)
    assert remote.shards(verify=False)[0] != whole
    assert remote.shards()[0] == whole
    assert copy.read_bytes() == remote.origin[remote.manifest.shards[0].name].read_bytes()
    assert remote.fetched == [remote.manifest.shards[0].url] * 2


def test_a_copy_that_differs_twice_is_an_error(remote: Remote) -> None:
    entry = remote.manifest.shards[0]
    remote.flip_a_bit(remote.origin[entry.name])
    shards = remote.shards()
    for _ in range(2):
        with pytest.raises(
            ShardError, match=r"https://host/.*\.tar: its copy .* differs from the manifest's SHA-256"
        ) as caught:
            shards[0]
        assert caught.value.reason == HASH_DIFFERS
    assert remote.fetched == [entry.url] * 2 and not entry.path.exists()
    assert shards[2].key == "key002"


def test_samples_are_held_against_what_was_found_in_the_copy(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = remote.shards()
    shards[1]
    remote.flip_a_bit(remote.manifest.shards[0].path)  # the file is open, and has the same size and time
    with pytest.raises(DataError, match="key000: content differs from when it was verified"):
        shards[0]
    assert shards[1].key == "key001"
