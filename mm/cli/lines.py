"""A file of JSON lines that grows while a command runs, and is whole or named as unfinished."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mm.cli import common
from mm.errors import MMError, OutputError
from mm.files import sync_folder


class Lines:
    """A file of JSON lines, written as ``NAME.part`` until it is complete. The part appears with the first row.

    Args:
        path: the file, or None to write nothing.

    Raises:
        OutputError: it can't be written, or the part of an earlier run is in the way.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        if path is None:
            return
        common.check_writable(path)
        self._part = path.with_name(f"{path.name}.part")
        try:
            kept = self._part.exists() and self._part.stat().st_size > 0
        except OSError as error:
            raise OutputError(f"{self._part}: can't be written ({error.strerror})") from error
        if kept:
            raise OutputError(
                f"{self._part}: holds what a run that didn't finish has written; rename it to keep it, or remove it"
            )

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends rows; they are on disk when this returns.

        Raises:
            MMError: they can't be written; what was written before is kept, and named.
        """
        if self.path is None:
            return
        file = self._open()
        end = file.tell()
        try:
            file.write(common.json_lines(rows))
            file.flush()
            os.fsync(file.fileno())
        except BaseException as error:
            self._abandon(end)
            if not isinstance(error, OSError):
                raise
            what = "no space left" if error.errno == errno.ENOSPC else error.strerror
            kept = f"the finished part is kept in {self._part}" if end else "nothing was finished"
            raise MMError(f"{self.path}: {what}; {kept}") from error

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
            MMError: it can't be completed; what was written is kept, and named.
        """
        if self.path is None:
            return
        try:
            self._open().close()
            self._part.replace(self.path)
        except OSError as error:
            raise MMError(f"{self.path}: {error.strerror}; the captions are kept in {self._part}") from error
        sync_folder(self.path.parent)

    def _open(self) -> BinaryIO:
        if self._file is None:
            try:
                file = self._part.open("ab")
            except OSError as error:
                raise MMError(f"{self._part}: can't be written ({error.strerror})") from error
            if file.tell():
                file.close()
                raise MMError(f"{self._part}: another run is writing it; choose another --output")
            sync_folder(self._part.parent)
            self._file = file
        return self._file

    def _abandon(self, end: int) -> None:
        """Cuts the part off behind its last whole line; one without any is removed."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.truncate(self._part, end)
            if not end:
                self._part.unlink()
