"""The shards of a folder: those that its manifest lists, and others."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

from mm.data.samples import printable
from mm.data.shards.entries import ManifestEntry, read_entries
from mm.errors import DataError, UsageError

MANIFEST_NAME = "manifest.json"
_REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
_REMOTE_PATH = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]+:/")  # a path has no two slashes in a row

Shard = tuple[Path, ManifestEntry | None]
"""A shard, and what a manifest says about it, if anything."""


class ShardFolder:
    """The shards of a folder, which may hold none.

    ``listed`` is what its manifest says, by path and in the manifest's order, of missing shards too. ``problem`` says
    what is wrong with the manifest, which then lists nothing.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / MANIFEST_NAME
        self.listed: dict[Path, ManifestEntry] = {}
        self.problem: DataError | None = None
        if is_manifest(self.manifest):
            try:
                self.listed = {entry.path: entry for entry in read_entries(self.manifest)}
            except DataError as error:
                self.problem = error

    @cached_property
    def others(self) -> list[Path]:
        """The ``.tar`` files in it that aren't listed, in order of names."""
        return [path for path in find_tars(self.path) if path not in self.listed]

    @property
    def shards(self) -> list[Shard]:
        """The shards that are listed, then the others."""
        return [*self.listed.items(), *((path, None) for path in self.others)]


def is_remote(address: str) -> bool:
    """Whether this is ``PROTOCOL://...`` or ``pipe:COMMAND``, as opposed to a path."""
    return _REMOTE.match(address) is not None


def missing(path: Path) -> UsageError:
    """What is raised for a path that doesn't exist, which may be meant as an address."""
    name = printable(str(path))
    if _REMOTE_PATH.match(name):
        address = re.sub(r"(?<=:)/(?!/)", "//", name, count=1)
        return UsageError(f"{address}: isn't a path, and only files are read here; make a copy, and name that")
    return UsageError(f"{name}: doesn't exist; check the path")


def is_manifest(path: Path) -> bool:
    """Whether a file is meant as a shard index: one that says so, or that can't be read as JSON at all."""
    if not path.is_file():
        return False
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(document, dict) and ("__kind__" in document or "shardlist" in document)


def is_shard(path: Path) -> bool:
    """Whether a file's suffix is a shard's."""
    return path.suffix.lower() == ".tar"


def find_tars(folder: Path) -> list[Path]:
    """The ``.tar`` files right in a folder, without hidden ones, in order of names."""
    return sorted(
        path for path in folder.iterdir() if is_shard(path) and not path.name.startswith(".") and path.is_file()
    )


def no_shards(folder: Path) -> UsageError:
    """What is raised where a folder should hold shards, but doesn't."""
    return UsageError(f"{folder}: holds no .tar shards; `mm shards make` makes them from images")
