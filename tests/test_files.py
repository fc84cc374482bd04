from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from mm.files import whole_file, write_whole


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"first")
    write_whole(tmp_path / "a", b"second, longer")
    assert (tmp_path / "a").read_bytes() == b"second, longer"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_what_was_there_outlives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a", b"first")
    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=write_whole, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def leftover(folder: Path, name: str = "a", code: str = "0123abcd") -> Path:
    """What a writer that was killed has left."""
    path = folder / f".{name}.{code}.tmp"
    path.write_bytes(b"half")
    return path


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    """That of other files, and files that merely look like it, stay."""
    gone = [leftover(tmp_path), leftover(tmp_path, code="ffffffff")]
    kept = [leftover(tmp_path, "b"), leftover(tmp_path, code="backup"), leftover(tmp_path, "xa"), tmp_path / "c.tmp"]
    kept[-1].write_bytes(b"")
    write_whole(tmp_path / "a", b"new")
    assert not any(path.exists() for path in gone)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "a"])


def test_what_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as first:
        first.write(b"first")
        with whole_file(tmp_path / "a") as second:
            second.write(b"second")
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_file_taken_for_a_leftover_before_it_was_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = fcntl.flock, []

    def sweep_first(file: BinaryIO, operation: int) -> None:
        if not removed:
            removed.extend(tmp_path.glob(".a.*.tmp"))
            for path in removed:
                path.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    write_whole(tmp_path / "a", b"new")
    assert len(removed) == 1
    assert (tmp_path / "a").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_files_are_written_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    other = leftover(tmp_path)
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert other.exists()
