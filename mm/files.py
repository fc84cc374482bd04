"""Files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from mm.errors import OutputError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, as ``whole_file`` does.

    Args:
        path: the file; one that is there already is replaced.
        content: all of it.

    Raises:
        OSError: it can't be written; what was there before is untouched.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to write under a temporary name beside it, and when the block ends syncs and renames it.

    A crash leaves the old file or the new one, and perhaps a temporary one, which whoever writes the file next removes;
    a block that fails leaves the old one.

    Args:
        path: the file; one that is there already is replaced.

    Raises:
        OSError: it can't be written; what was there before is untouched.
    """
    remove_leftovers(path)
    temporary, file = _temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # before the lock is given up
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Opens a new file beside another, locked as long as it is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
        file = temporary.open("xb")
        with suppress(OSError):  # where files can't be locked, nobody takes it for a leftover either
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():
            return temporary, file
        file.close()  # taken for a leftover before it was locked


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files that writers of a file, killed since, have left beside it.

    Args:
        path: the file, as ``whole_file`` was told.
    """
    name = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.tmp")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for leftover in [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]:
            remove_leftover(leftover)


def remove_leftover(temporary: Path) -> None:
    """Removes a temporary file of ``whole_file``, unless it is being written: then it is locked."""
    with suppress(OSError), temporary.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Makes renames within a folder durable, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def make_folder(folder: Path, name: str | None = None) -> None:
    """Makes a folder with its parents, and makes sure that files can be written into it.

    Args:
        folder: it may be there already.
        name: what to call it in the message; its path if None.

    Raises:
        OutputError: it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(1))  # a full disk still makes empty files
    except OSError as error:
        raise OutputError(f"{name or folder}: can't be written ({error.strerror})") from error


def cache_folder() -> Path:
    """Where the user's caches lie: ``MM_CACHE``, or ``mm`` in ``XDG_CACHE_HOME`` or ``~/.cache``. It may not exist."""
    if folder := os.environ.get("MM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mm"
