"""The journal of a run that makes shards: what another run needs to go on where it was killed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mm.data.samples import Rejection
from mm.data.shards.manifest import ManifestEntry
from mm.errors import OutputError
from mm.files import sync_folder, write_whole

JOURNAL_NAME = ".making.jsonl"


@dataclass
class FinishedShard:
    """A finished shard, and what became of everything that its split got since the shard before it.

    Args:
        split: the shard's split.
        url: its file name.
        nsamples: how many samples it holds.
        bytes: its size.
        sha256: its hash in hexadecimal.
        position: how many items of the sources had been dealt with, those of other splits too.
        counts: how often what happened, by figure.
        rejections: what was rejected.
        keys: the keys of its samples.
        digests: hashes of the images that its samples were made of, in hexadecimal.
    """

    split: str
    url: str
    nsamples: int
    bytes: int
    sha256: str
    position: int
    counts: dict[str, int] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def entry(self, folder: Path) -> ManifestEntry:
        """What the manifest says about the shard, which lies in this folder."""
        return ManifestEntry(self.url, folder / self.url, self.nsamples, self.bytes, self.sha256)

    @classmethod
    def of(cls, document: dict[str, Any]) -> FinishedShard:
        """Reads a record.

        Raises:
            TypeError: it isn't one.
        """
        record = cls(**document)
        record.rejections = [Rejection(**fields) for fields in document["rejections"]]
        return record


class Journal:
    """A file of JSON lines: what the run was asked for, then a record of each finished shard.

    The records of each split are a beginning of what an uninterrupted run would write: a shard that is missing, or
    whose size isn't the record's, ends its split's records, and so is made again. One run at a time can have it open.

    Args:
        out: the folder that the shards are made in; it is there.
        task: sources and options, as JSON values.

    Raises:
        OutputError: it can't be written, another run has it open, or it was begun with another task and shards of
            that are finished.
    """

    def __init__(self, out: Path, task: dict[str, Any]) -> None:
        self.path = out / JOURNAL_NAME
        self._folder = _locked(out)
        try:
            begun, records = self._read()
            self.records = _usable(records, out)
            if self.records and begun != task:
                raise OutputError(f"{out}: was begun with {_difference(begun, task)}; give the same, or another folder")
            write_whole(self.path, b"".join(map(_line, [task, *map(asdict, self.records)])))
            self._file = self.path.open("ab")
        except OSError as error:
            os.close(self._folder)
            raise OutputError(f"{self.path}: can't be written: {error.strerror}") from error
        except OutputError:
            os.close(self._folder)
            raise

    def add(self, record: FinishedShard) -> None:
        """Adds a record; it is on disk when this returns.

        Raises:
            OSError: it can't be written.
        """
        self._file.write(_line(asdict(record)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Removes the file: there is nothing left to go on with."""
        self.path.unlink()
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Lets another run open it."""
        self._file.close()
        os.close(self._folder)

    def _read(self) -> tuple[dict[str, Any], list[FinishedShard]]:
        """The task and the records up to the first line that wasn't written to its end."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        documents: list[dict[str, Any]] = []
        records: list[FinishedShard] = []
        try:
            documents = [json.loads(line) for line in lines[:1]]
            for line in lines[1:]:
                if line.endswith(b"\n"):
                    records.append(FinishedShard.of(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            pass
        return (documents[0] if documents else {}), records


def is_begun(out: Path) -> bool:
    """Whether a folder has the journal of a run that didn't end."""
    return (out / JOURNAL_NAME).is_file()


def _locked(out: Path) -> int:
    """Opens a folder so that no other run can do the same, where the file system knows locks."""
    try:
        folder = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{out}: can't be opened: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise OutputError(f"{out}: another `mm shards make` is at work on it; wait until it ends") from None
    except OSError:
        pass
    return folder


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _usable(records: Iterable[FinishedShard], out: Path) -> list[FinishedShard]:
    """The records of each split up to the first whose shard isn't there as it was written."""
    ended: set[str] = set()
    usable = []
    for record in records:
        path = out / record.split / record.url
        if not path.is_file() or path.stat().st_size != record.bytes:
            ended.add(record.split)
        if record.split not in ended:
            usable.append(record)
    return usable


def _difference(begun: dict[str, Any], task: dict[str, Any]) -> str:
    """Says in what two tasks differ first."""
    for name in begun | task:
        before, now = (json.dumps(one.get(name), ensure_ascii=False) for one in (begun, task))
        if before != now:
            return f"{name} {before}, not {now}"
    return "other options"
