from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from mm.data.shards.archive import Archive, HashingReader, Window
from mm.errors import ShardError

CONTENT = random.Random(0).randbytes(3 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.tar"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much the system is asked for, each time."""
    read, sizes = os.pread, []

    def count(file: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return read(file, size, offset)

    monkeypatch.setattr(os, "pread", count)
    return sizes


def test_reads_by_position(path: Path) -> None:
    with Archive(path) as archive:
        assert archive.size == len(CONTENT) and archive.name == str(path)
        assert archive.read(5, 7) == archive.content(5, 7) == CONTENT[5:12]
        assert archive.read(len(CONTENT) - 3, 10) == CONTENT[-3:] and archive.read(len(CONTENT) + 5, 10) == b""
        with pytest.raises(ShardError, match="changed"):
            archive.content(len(CONTENT) - 3, 10)


def test_notices_changes(path: Path) -> None:
    with Archive(path, "s3://x.tar") as archive:
        archive.check_unchanged()
        path.chmod(0o600)
        archive.check_unchanged()
        os.utime(path, ns=(0, 0))
        with pytest.raises(ShardError, match=r"^s3://x\.tar: changed"):
            archive.check_unchanged()


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "missing shard"), (tmp_path, "unreadable shard")):
        with pytest.raises(ShardError) as caught:
            Archive(path)
        assert caught.value.reason == reason and str(caught.value).startswith(f"{path}: ")


def test_errors_of_the_system_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with Archive(path) as archive, pytest.raises(ShardError, match="Input/output error") as caught:
        archive.read(512, 5)
    assert (caught.value.reason, caught.value.offset) == ("unreadable shard", 512)


@pytest.mark.parametrize("steps", [[512] * 400, [100_000] * 20, [512, 70_000, 512, 3000, 0, 900_000] * 2])
def test_a_window_gives_what_is_there(path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with Archive(path) as archive:
        window, offset = Window(archive), 0
        for step in steps:
            assert window.read(offset, 512) == CONTENT[offset : offset + 512]
            assert window.read(offset + 512, 5000) == CONTENT[offset + 512 : offset + 5512]
            offset += step
        assert window.read(0, 10) == CONTENT[:10]


def test_a_window_reads_ahead(path: Path, sizes: list[int]) -> None:
    with Archive(path) as archive:
        window = Window(archive)
        for offset in range(0, 1 << 20, 1024):
            window.read(offset, 512)
        assert len(sizes) <= 17
        sizes.clear()
        for offset in range(1 << 20, 3 << 20, 100_000):
            window.read(offset, 512)
        assert sum(sizes) < 200_000  # little is read of files whose members are large


def test_hashing_reads_small_parts_at_once(path: Path, sizes: list[int]) -> None:
    with Archive(path) as archive:
        reader = HashingReader(archive)
        for offset in range(0, len(CONTENT), 4096):
            assert reader.content(offset + 512, 1000) == CONTENT[offset + 512 : offset + 1512]
        assert reader.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
    assert len(sizes) == 3 and sum(sizes) == len(CONTENT)


def test_hashing_notices_that_a_file_became_shorter(path: Path) -> None:
    with Archive(path) as archive:
        reader = HashingReader(archive)
        os.truncate(path, 2 << 20)
        assert reader.content(0, 2 << 20) == CONTENT[: 2 << 20]
        with pytest.raises(ShardError, match="changed"):
            reader.hexdigest()
        with pytest.raises(ShardError, match="changed"):
            HashingReader(archive).content(len(CONTENT), 512)


def test_hashes_what_it_hands_out_and_what_lies_between(path: Path) -> None:
    with Archive(path) as archive:
        reader = HashingReader(archive)
        assert reader.content(10, 5) == CONTENT[10:15]
        assert b"".join(reader.blocks(600, 2 << 20)) == CONTENT[600 : 600 + (2 << 20)]
        assert reader.content(3_000_000, 0) == b""
        with pytest.raises(ValueError, match="2999999 is before 3000000"):
            reader.content(2_999_999, 1)
        assert reader.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
        assert HashingReader(archive).hexdigest() == hashlib.sha256(CONTENT).hexdigest()
