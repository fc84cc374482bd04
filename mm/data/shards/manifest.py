"""The manifest of a folder of shards, in the shard-index format of wids, with sizes and hashes added."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mm.data.shards.entries import KIND, ManifestEntry, parse_entries, read_entries
from mm.data.shards.finding import MANIFEST_NAME, ShardFolder, find_tars, no_shards
from mm.errors import OutputError, UsageError
from mm.files import write_whole

if TYPE_CHECKING:
    from mm.data.shards.inspection import Inspection

log = logging.getLogger(__name__)

Progress = Callable[[int], None]
Inspect = Callable[[list[Path]], "list[Inspection]"]


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
        return cls(read_entries(path))

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
    def of(cls, source: str | Path | Sequence[str | Path], inspect: Inspect | None = None) -> Manifest:
        """The manifest of a folder, a shard or several, made in memory where none is written.

        That reads headers and captions, unless they are known from an earlier run; hashes are left out.

        Args:
            source: a folder with shards, a tar, or a list of these. A shard named twice counts once.
            inspect: how shards that no manifest lists are looked through, for who will look closer at all shards.

        Raises:
            UsageError: a path doesn't exist, or a folder has no shards.
            DataError: a ``manifest.json`` is there but wrong.
        """
        sources = [source] if isinstance(source, str | Path) else list(source)
        found: list[ManifestEntry | Path] = []
        open_folder = functools.cache(ShardFolder)
        for path in map(Path, sources):
            folder = open_folder(path if path.is_dir() else path.parent)
            if folder.problem is not None:
                raise folder.problem
            if path.is_dir():
                found += _used(folder)
            elif path.is_file():
                found.append(folder.listed.get(path, path))
            else:
                raise UsageError(f"{path}: doesn't exist; give a folder of shards or a .tar file")
        unique: dict[Path, ManifestEntry | Path] = {}
        for item in found:
            unique.setdefault((item if isinstance(item, Path) else item.path).absolute(), item)
        indexed = _index([path for path in unique.values() if isinstance(path, Path)], inspect)
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
        paths = find_tars(folder)
        if not paths:
            raise no_shards(folder)
        inspections = _inspect(paths, verify=True, progress=progress)
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


def _used(folder: ShardFolder) -> list[ManifestEntry] | list[Path]:
    """The shards of a folder that its manifest lists, or all of them where there is none."""
    if not folder.listed:
        if not folder.others:
            raise no_shards(folder.path)
        return folder.others
    names = [path.name for path in folder.others]
    if names:
        listed = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
        what = "%s: %d .tar files aren't listed in manifest.json and aren't used (%s)"
        log.warning(what, folder.path, len(names), listed)
    return [*folder.listed.values()]


def _index(paths: list[Path], inspect: Inspect | None) -> dict[Path, ManifestEntry]:
    """The entries of shards that no manifest lists; a damaged one holds what is before the damage, and one lost."""
    if not paths:
        return {}
    log.warning(
        "%s: no manifest.json lists %s, so what is in them is taken for all there is; `mm shards check "
        "--write_manifest` says what is wrong with them, and writes one",
        paths[0].parent,
        f"these {len(paths)} shards" if len(paths) > 1 else paths[0].name,
    )
    inspections = _inspect(paths, remember=True) if inspect is None else inspect(paths)
    return {path: _as_found(found) for path, found in zip(paths, inspections, strict=True)}


def _as_found(found: Inspection) -> ManifestEntry:
    return replace(found.entry, nsamples=found.entry.nsamples + (found.fault is not None), sha256=None)


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
    from mm.data.shards.inspecting import inspect_shards
    from mm.data.shards.known import KnownShards

    return inspect_shards(paths, verify=verify, known=KnownShards() if remember else None, progress=progress)
