"""What was found in shards, remembered from one run to the next."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import logging
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm.data.samples import Rejection
from mm.data.shards.inspection import FileState, Inspection, Thoroughness
from mm.data.shards.manifest import ManifestEntry
from mm.files import cache_folder

log = logging.getLogger(__name__)

_VERSION = 1  # grows when shards must be inspected anew
_MOST_ROWS = 100_000
_AT_ONCE = 500
_TABLE = """
CREATE TABLE IF NOT EXISTS shards (
    path TEXT, question TEXT, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER, inspection TEXT,
    PRIMARY KEY (path, question)
)
"""


class KnownShards:
    """Remembers inspections of shards by path, as long as the files don't change. A cache: without it, all is slower.

    An instance knows what it kept itself even where nothing can be written.

    Args:
        folder: where the database ``shards.db`` lies; the user's cache folder if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = (folder or cache_folder()) / "shards.db"
        self._rows: list[tuple[Any, ...]] = []
        self._kept: dict[tuple[str, str], tuple[FileState, Inspection]] = {}

    def find(self, entries: Sequence[ManifestEntry], thoroughness: Thoroughness) -> dict[int, Inspection]:
        """What is known of shards.

        Args:
            entries: the shards.
            thoroughness: how they must have been looked at.

        Returns:
            An inspection by number of the shard, for those that are known and haven't changed.
        """
        found: dict[int, Inspection] = {}
        if self._kept:
            for number, entry in enumerate(entries):
                if (kept := self._recall(entry, thoroughness)) is not None:
                    found[number] = kept
        if len(found) == len(entries) or not self._path.exists():
            return found
        try:
            with contextlib.closing(self._connect()) as database:
                for number, entry in enumerate(entries):
                    if number not in found and (known := _look_up(database, entry, thoroughness)) is not None:
                        found[number] = known
        except (sqlite3.Error, OSError) as error:
            _warn(self._path, str(error))
        return found

    def _recall(self, entry: ManifestEntry, thoroughness: Thoroughness) -> Inspection | None:
        """What this instance kept of a shard."""
        for how in _answering(thoroughness):
            state, kept = self._kept.get(_row_key(entry, how), (None, None))
            if kept is not None and _state(entry.path) == state:
                return _as_asked(kept, thoroughness)
        return None

    def keep(self, entry: ManifestEntry, thoroughness: Thoroughness, state: FileState, found: Inspection) -> None:
        """Remembers what was found in a shard.

        Args:
            entry: the shard.
            thoroughness: how it was looked at.
            state: of the file when that was done.
            found: what was found, not held against a manifest.
        """
        key = _row_key(entry, thoroughness)
        self._kept[key] = state, found
        self._rows.append((*key, *state, _encode(found)))
        if len(self._rows) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes what was kept. The oldest is forgotten where there is too much."""
        if not self._rows:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect()) as database, database:
                database.executemany("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)", self._rows)
                database.execute("DELETE FROM shards WHERE rowid <= (SELECT max(rowid) FROM shards) - ?", (_MOST_ROWS,))
        except (sqlite3.Error, OSError) as error:
            _warn(self._path, str(error))
        self._rows.clear()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=10)
        database.execute("PRAGMA synchronous = OFF")
        database.execute(_TABLE)
        return database


@functools.cache
def _warn(path: Path, error: str) -> None:
    """Says once that nothing can be remembered."""
    log.warning(
        "%s: can't be used (%s), so shards are inspected anew every time; delete it, or set MM_CACHE", path, error
    )


def _look_up(database: sqlite3.Connection, entry: ManifestEntry, thoroughness: Thoroughness) -> Inspection | None:
    """What a database knows of a shard."""
    query = "SELECT size, mtime, ctime, inode, inspection FROM shards WHERE path = ? AND question = ?"
    for how in _answering(thoroughness):
        row = database.execute(query, _row_key(entry, how)).fetchone()
        if row is not None and _state(entry.path) == row[:4]:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged row isn't used
                return _as_asked(_decode(row[4], entry), thoroughness)
    return None


def _answering(thoroughness: Thoroughness) -> list[Thoroughness]:
    """How a shard may have been looked at: as is asked for, or verified besides."""
    return [thoroughness] if thoroughness.verify else [thoroughness, thoroughness._replace(verify=True)]


def _as_asked(found: Inspection, thoroughness: Thoroughness) -> Inspection:
    """What would have been found if a shard had been looked at only as is asked for."""
    if thoroughness.verify or found.digests is None:
        return found
    return replace(found, entry=replace(found.entry, sha256=None), digests=None)


def _row_key(entry: ManifestEntry, thoroughness: Thoroughness) -> tuple[str, str]:
    captions, verify, images, max_pixels, headers = thoroughness
    looked = f"{_VERSION} {captions:d} {verify:d} {max_pixels if images or headers else 0} {headers:d} {entry.name}"
    return os.path.abspath(entry.path), looked  # noqa: PTH100


def _state(path: Path) -> FileState | None:
    try:
        return FileState.of(path.stat())
    except OSError:
        return None


def _encode(found: Inspection) -> str:
    """An inspection as JSON, with runs of samples in the same languages taken together."""
    runs = [(codes, sum(1 for _ in run)) for codes, run in itertools.groupby(found.languages)]
    document = {
        "nsamples": found.entry.nsamples,
        "bytes": found.entry.bytes,
        "sha256": found.entry.sha256,
        "problems": [vars(problem) for problem in found.problems],
        "unusable": found.unusable,
        "languages": runs,
        "digests": None if found.digests is None else base64.b64encode(found.digests).decode(),
    }
    return json.dumps(document)


def _decode(content: str, entry: ManifestEntry) -> Inspection:
    document = json.loads(content)
    return Inspection(
        ManifestEntry(entry.path.name, entry.path, document["nsamples"], document["bytes"], document["sha256"]),
        [Rejection(**problem) for problem in document["problems"]],
        document["unusable"],
        [codes for codes, count in document["languages"] for _ in range(count)],
        None if document["digests"] is None else base64.b64decode(document["digests"]),
    )
