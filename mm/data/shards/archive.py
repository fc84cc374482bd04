"""A shard's file, read by position."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mm.errors import ShardError

MISSING = "missing shard"
UNREADABLE = "unreadable shard"
CHANGED = "shard changed"

_BLOCK = 1 << 20
_AHEAD = 1 << 16
_HEADERS = 1 << 12
_NEAR = 1 << 14


class Archive:
    """A file opened for reading at any position. Forked processes and threads may share it.

    It is closed with its last reference, or by leaving a ``with`` block.

    Args:
        path: the file.
        name: what to call it in messages; its path if None.

    Raises:
        ShardError: it doesn't exist, isn't a file, or can't be opened.
    """

    _file = -1

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or str(path)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a named pipe mustn't wait
            self.stat = os.fstat(self._file)
        except FileNotFoundError:
            raise ShardError(f"{self.name}: doesn't exist; get it again, or correct the path", MISSING) from None
        except OSError as error:
            raise ShardError(f"{self.name}: can't be read: {error.strerror}", UNREADABLE) from error
        if not stat.S_ISREG(self.stat.st_mode):
            self.close()
            raise ShardError(f"{self.name}: can't be read: it isn't a file", UNREADABLE)
        self.size = self.stat.st_size

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, offset: int, size: int) -> bytes:
        """Reads ``size`` bytes from ``offset`` on; fewer where the file ends.

        Raises:
            ShardError: reading fails.
        """
        size = max(0, min(size, self.size - offset))
        try:
            content = os.pread(self._file, size, offset)
            while len(content) < size and (more := os.pread(self._file, size - len(content), offset + len(content))):
                content += more
        except OSError as error:
            raise ShardError(f"{self.name}: can't be read: {error.strerror}", UNREADABLE, offset) from error
        return content

    def content(self, offset: int, size: int) -> bytes:
        """Reads exactly ``size`` bytes from ``offset`` on.

        Raises:
            ShardError: reading fails, or the file has become shorter.
        """
        content = self.read(offset, size)
        if len(content) < size:
            raise changed(self.name)
        return content

    def read_ahead(self, offset: int, size: int) -> None:
        """Tells the system that a part will be read soon, so that it reads all of it at once."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # some file systems don't care
                os.posix_fadvise(self._file, offset, size, os.POSIX_FADV_WILLNEED)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps out others who ask for this too, threads and processes; not on file systems that have no locks."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def check_unchanged(self) -> None:
        """Makes sure that the file is what was opened.

        Raises:
            ShardError: its size or time of modification differ.
        """
        now = os.fstat(self._file)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.stat.st_mtime_ns):
            raise changed(self.name)


class Window:
    """Reads an archive forwards, in a few larger steps where what is asked for lies close together."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._start = 0
        self._bytes = b""

    def read(self, offset: int, size: int) -> bytes:
        """Reads ``size`` bytes from ``offset`` on; fewer where the file ends."""
        at = offset - self._start
        if at < 0 or at + size > len(self._bytes):
            near = -_NEAR < at < len(self._bytes) + _NEAR
            self._bytes = self._archive.read(offset, max(size, _AHEAD if near else _HEADERS))
            self._start, at = offset, 0
        return self._bytes[at : at + size]


class HashingReader:
    """Reads an archive from start to end once: hands out parts of it in order, and hashes all of it.

    Args:
        archive: the file.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._position = 0
        self._block, self._end = b"", 0
        self._digest = hashlib.sha256()

    def blocks(self, offset: int, size: int) -> Iterator[bytes]:
        """Reads a part in blocks; it must lie behind the part before, and be read to its end.

        Raises:
            ShardError: reading fails, or the file has become shorter.
            ValueError: it doesn't lie behind the part before.
        """
        if offset < self._position:
            raise ValueError(f"{offset} is before {self._position}, up to where the archive was read")
        for _ in self._until(offset):
            pass
        yield from self._until(offset + size)

    def content(self, offset: int, size: int) -> bytes:
        """Reads a part as a whole."""
        return b"".join(self.blocks(offset, size))

    def hexdigest(self) -> str:
        """Reads what is left; the SHA-256 of the whole file."""
        for _ in self._until(self._archive.size):
            pass
        return self._digest.hexdigest()

    def _until(self, end: int) -> Iterator[bytes]:
        while self._position < end:
            if self._position == self._end:
                size = min(max(end, self._archive.size) - self._position, _BLOCK)
                self._block = self._archive.content(self._position, size)
                self._end += size
                self._digest.update(self._block)
            at = self._position - self._end + len(self._block)
            piece = self._block[at : at + end - self._position]
            self._position += len(piece)
            yield piece


def changed(name: str) -> ShardError:
    """The error about a shard that isn't what it was when it was opened or inspected."""
    return ShardError(f"{name}: changed while it was in use; start again", CHANGED)
