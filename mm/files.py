"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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

    A crash leaves the old file or the new one; a block that fails leaves the old one.

    Args:
        path: the file; one that is there already is replaced.

    Raises:
        OSError: it can't be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{name or folder}: can't be written ({error.strerror})") from error
