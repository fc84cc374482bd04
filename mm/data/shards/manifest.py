"""The manifest of a folder of shards, in the shard-index format of wids, with sizes and hashes added."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mm.data.samples import Rejection
from mm.data.shards.entries import KIND, ManifestEntry, parse_entries
from mm.errors import DataError, OutputError, UsageError
from mm.files import write_whole

if TYPE_CHECKING:
    from mm.data.shards.inspection import Inspection

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
HASH_DIFFERS = "shard hash differs"
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Manifest:
    """The shards of a data set split, in order. Which samples there are, and their order, follow from it alone."""

    shards: list[ManifestEntry]

    @property
    def total(self) -> int:
        """The number of samples in all shards."""
        return sum(shard.nsamples for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over the hashes of the shards: identifies the split.

        Local shards without a hash in the manifest are read to compute it, unless it is known from an earlier run.

        Raises:
            ShardError: such a shard can't be read.
        """
        unknown = [shard.path for shard in self.shards if shard.sha256 is None and shard.remote is None]
        hashes = dict(zip(unknown, _hashes(unknown), strict=True))
        parts = [shard.sha256 or hashes.get(shard.path) or f"{shard.remote} {shard.bytes}" for shard in self.shards]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Reads a manifest.

        Args:
            path: the file, or the folder that holds ``manifest.json``.

        Raises:
            UsageError: there is no such file.
            DataError: it isn't a shard index, or an entry is wrong; the message names file and key.
        """
        path = Path(path)
        if path.is_dir():
            path = path / MANIFEST_NAME
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UsageError(f"{path}: doesn't exist; `mm shards make` writes one") from None
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}", "damaged manifest") from error
        return cls.parse(content, str(path), path.parent)

    @classmethod
    def parse(cls, content: bytes, name: str, base: Path) -> Manifest:
        """Reads the content of a manifest.

        Args:
            content: the file's.
            name: the file, for messages.
            base: the folder that the shards lie in, or will lie in.

        Raises:
            DataError: it isn't a shard index, or an entry is wrong; the message names file and key.
        """
        return cls(parse_entries(content, name, base))

    @classmethod
    def of(cls, source: str | Path | Sequence[str | Path]) -> Manifest:
        """The manifest of a folder, a shard or several, made in memory where none is written.

        That reads headers and captions, unless they are known from an earlier run; hashes are left out.

        Args:
            source: a folder with shards, a tar, or a list of these. A shard named twice counts once.

        Raises:
            UsageError: a path doesn't exist, or a folder has no shards.
            DataError: a ``manifest.json`` is there but wrong.
        """
        sources = [source] if isinstance(source, str | Path) else list(source)
        folders: dict[Path, dict[Path, ManifestEntry]] = {}
        found: list[ManifestEntry | Path] = []
        for path in map(Path, sources):
            folder = path if path.is_dir() else path.parent
            if folder not in folders:
                folders[folder] = _listed(folder)
            listed = folders[folder]
            if path.is_dir():
                found += listed.values() or _tars(path)
                _warn_of_others(path, listed)
            elif path.is_file():
                found.append(listed.get(path, path))
            else:
                raise UsageError(f"{path}: doesn't exist; give a folder of shards or a .tar file")
        unique: dict[Path, ManifestEntry | Path] = {}
        for item in found:
            unique.setdefault((item if isinstance(item, Path) else item.path).absolute(), item)
        indexed = _index([path for path in unique.values() if isinstance(path, Path)])
        return cls([indexed[item] if isinstance(item, Path) else item for item in unique.values()])

    @classmethod
    def build(cls, folder: str | Path, progress: Progress | None = None) -> Manifest:
        """Makes the manifest of a folder's shards, reading and hashing all of them. Doesn't write it.

        Args:
            folder: where the ``.tar`` files lie.
            progress: called with the number of samples just read.

        Raises:
            UsageError: no such folder, or no shards in it.
            ShardError: a shard is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UsageError(f"{folder}: isn't a folder; give the folder that holds the shards")
        inspections = _inspect(_tars(folder), verify=True, progress=progress)
        for found in inspections:
            found.raise_fault()
        return cls([found.entry for found in inspections])

    def write(self, path: str | Path) -> Path:
        """Writes the manifest under a temporary name, then renames it.

        Args:
            path: the file, or the folder to write ``manifest.json`` in.

        Returns:
            The file written.

        Raises:
            OutputError: it can't be written.
        """
        path = Path(path)
        if path.is_dir():
            path = path / MANIFEST_NAME
        keys = ("url", "nsamples", "bytes", "sha256")
        shardlist = [
            {key: value for key in keys if (value := getattr(shard, key)) is not None} for shard in self.shards
        ]
        document = {"__kind__": KIND, "wids_version": 1, "shardlist": shardlist}
        try:
            write_whole(path, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"{path}: can't be written: {error.strerror}") from error
        return path


def list_shards(folder: Path) -> tuple[list[tuple[Path, ManifestEntry | None]], list[Rejection]]:
    """The shards of a folder, each with what the manifest says about it, if anything.

    Args:
        folder: it may hold no shards at all.

    Returns:
        The manifest's shards in its order, missing ones too, then the other ``.tar`` files of the folder; and
        what is wrong with the manifest.
    """
    listed: list[ManifestEntry] = []
    problems: list[Rejection] = []
    index = folder / MANIFEST_NAME
    if is_manifest(index):
        try:
            listed = Manifest.read(index).shards
        except DataError as error:
            problems.append(Rejection.of(error, str(index), samples=0))
    known = {entry.path for entry in listed}
    others = [path for path in _find_tars(folder) if path not in known]
    shards: list[tuple[Path, ManifestEntry | None]] = [(entry.path, entry) for entry in listed]
    return shards + [(path, None) for path in others], problems


def is_manifest(path: Path) -> bool:
    """Whether a file is meant as a shard index: one that says so, or that can't be read as JSON at all."""
    if not path.is_file():
        return False
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(document, dict) and ("__kind__" in document or "shardlist" in document)


def _find_tars(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".tar" and not path.name.startswith(".") and path.is_file()
    )


def _tars(folder: Path) -> list[Path]:
    paths = _find_tars(folder)
    if not paths:
        raise UsageError(f"{folder}: holds no .tar shards; `mm shards make` makes them from images")
    return paths


def _listed(folder: Path) -> dict[Path, ManifestEntry]:
    """What a folder's manifest says, by path; nothing where there is no manifest."""
    if not is_manifest(folder / MANIFEST_NAME):
        return {}
    return {entry.path: entry for entry in Manifest.read(folder).shards}


def _warn_of_others(folder: Path, listed: dict[Path, ManifestEntry]) -> None:
    others = [path for path in _find_tars(folder) if path not in listed] if listed else []
    if others:
        names = f"{others[0].name} and {len(others) - 1} more" if len(others) > 1 else others[0].name
        log.warning("%s: %d .tar files aren't listed in manifest.json and aren't used (%s)", folder, len(others), names)


def _index(paths: list[Path]) -> dict[Path, ManifestEntry]:
    """The entries of shards that no manifest lists; a damaged one holds what is before the damage, and one lost."""
    if not paths:
        return {}
    log.warning(
        "%s: no manifest.json lists %s, so what is in them is taken for all there is; `mm shards check "
        "--write_manifest` says what is wrong with them, and writes one",
        paths[0].parent,
        f"these {len(paths)} shards" if len(paths) > 1 else paths[0].name,
    )
    return {path: _as_found(found) for path, found in zip(paths, _inspect(paths, remember=True), strict=True)}


def _as_found(found: Inspection) -> ManifestEntry:
    return replace(found.entry, nsamples=found.entry.nsamples + (found.fault is not None))


def _hashes(paths: list[Path]) -> list[str]:
    """The SHA-256 of shards, damaged ones too."""
    hashes = []
    for found in _inspect(paths, verify=True, remember=True):
        if found.entry.sha256 is None:
            found.raise_fault()
        hashes.append(str(found.entry.sha256))
    return hashes


def _inspect(
    paths: list[Path], *, verify: bool = False, remember: bool = False, progress: Progress | None = None
) -> list[Inspection]:
    from mm.data.shards.inspection import inspect_shards
    from mm.data.shards.known import KnownShards

    return inspect_shards(paths, verify=verify, known=KnownShards() if remember else None, progress=progress)
