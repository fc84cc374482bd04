"""The manifest of a folder of shards, in the shard-index format of wids, with sizes and hashes added."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mm.data.samples import Rejection
from mm.data.tar import groups
from mm.errors import DataError, OutputError, ShardError, UsageError
from mm.files import write_whole

MANIFEST_NAME = "manifest.json"
KIND = "wids-shard-index-v1"
Progress = Callable[[int], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ManifestEntry:
    """What is known about one shard.

    Args:
        url: its name relative to the manifest.
        path: where it lies.
        nsamples: number of samples, with those that can't be used.
        bytes: size of the file in bytes, or None where the manifest doesn't say.
        sha256: hash of the file in hexadecimal, or None where the manifest doesn't say.
    """

    url: str
    path: Path
    nsamples: int
    bytes: int | None = None
    sha256: str | None = None


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

        Shards without a hash in the manifest are read to compute it.

        Raises:
            ShardError: such a shard can't be read.
        """
        hashes = [shard.sha256 or hash_file(shard.path) for shard in self.shards]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

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
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise UsageError(f"{path}: doesn't exist; `mm shards make` writes one") from None
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}", "damaged manifest") from error
        except (ValueError, RecursionError) as error:
            raise _wrong(path, f"isn't valid JSON: {error}") from None
        return cls(_entries(document, path))

    @classmethod
    def of(cls, source: str | Path | Sequence[str | Path]) -> Manifest:
        """The manifest of a folder, a shard or several, made in memory where none is written.

        Counting reads only the headers of shards, up to the first damage; hashes are left out.

        Args:
            source: a folder with shards, a tar, or a list of these.

        Raises:
            UsageError: a path doesn't exist, or a folder has no shards.
            DataError: a ``manifest.json`` is there but wrong.
        """
        sources = [source] if isinstance(source, str | Path) else list(source)
        entries: list[ManifestEntry] = []
        for path in map(Path, sources):
            if path.is_dir():
                entries += cls._of_folder(path).shards
            elif path.is_file():
                entries.append(find_entry(path) or _count(path))
            else:
                raise UsageError(f"{path}: doesn't exist; give a folder of shards or a .tar file")
        return cls(entries)

    @classmethod
    def _of_folder(cls, folder: Path) -> Manifest:
        if is_manifest(folder / MANIFEST_NAME):
            return cls.read(folder)
        return cls([_count(path) for path in _tars(folder)])

    @classmethod
    def build(cls, folder: str | Path, progress: Progress | None = None) -> Manifest:
        """Makes the manifest of a folder's shards, reading and hashing all of them. Doesn't write it.

        Args:
            folder: where the ``.tar`` files lie.
            progress: called with the number of bytes that were just read.

        Raises:
            UsageError: no such folder, or no shards in it.
            ShardError: a shard is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UsageError(f"{folder}: isn't a folder; give the folder that holds the shards")
        return cls([describe(path, progress) for path in _tars(folder)])

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


def find_entry(path: Path) -> ManifestEntry | None:
    """What the manifest beside a shard says about it, or None where there is no manifest or it isn't listed.

    Raises:
        DataError: the manifest is wrong.
    """
    if not is_manifest(path.parent / MANIFEST_NAME):
        return None
    return next((entry for entry in Manifest.read(path.parent).shards if entry.path == path), None)


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


def describe(path: Path, progress: Progress | None = None) -> ManifestEntry:
    """The manifest entry of a shard, from reading all of it.

    Raises:
        ShardError: it is damaged or can't be read.
    """
    count = sum(1 for _ in groups(path))
    return ManifestEntry(path.name, path, count, path.stat().st_size, hash_file(path, progress))


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file in hexadecimal.

    Raises:
        ShardError: it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                if progress:
                    progress(len(block))
    except FileNotFoundError:
        raise ShardError(f"{path}: doesn't exist", "missing shard") from None
    except OSError as error:
        raise ShardError(f"{path}: can't be read: {error.strerror}", "unreadable shard") from error
    return digest.hexdigest()


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


def _count(path: Path) -> ManifestEntry:
    """The entry of a shard from its headers; a damaged shard counts up to the damage."""
    entry = ManifestEntry(path.name, path, 0)
    try:
        for _ in groups(path):
            entry = replace(entry, nsamples=entry.nsamples + 1)
    except ShardError:
        pass
    return entry


def _wrong(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}; `mm shards make` writes a valid one", "damaged manifest")


def _entries(document: Any, path: Path) -> list[ManifestEntry]:
    if not isinstance(document, dict):
        raise _wrong(path, f"holds a {type(document).__name__}, expected an object")
    if document.get("__kind__") != KIND:
        raise _wrong(path, f"'__kind__' is {document.get('__kind__')!r}, expected {KIND!r}")
    if document.get("wids_version", 1) != 1:
        raise _wrong(path, f"'wids_version' is {document['wids_version']!r}, expected 1")
    shardlist = document.get("shardlist")
    if not isinstance(shardlist, list) or not shardlist:
        raise _wrong(path, "'shardlist' must be a list with at least one shard")
    entries = [_entry(item, index, path) for index, item in enumerate(shardlist)]
    _check_unique((entry.url for entry in entries), path)
    return entries


def _entry(item: Any, index: int, path: Path) -> ManifestEntry:
    where = f"shardlist[{index}]"
    if not isinstance(item, dict):
        raise _wrong(path, f"{where} must be an object")
    url = item.get("url")
    if not isinstance(url, str) or not url:
        raise _wrong(path, f"{where}['url'] must be the name of a shard")
    parts = url.split("/")
    if "\\" in url or "\0" in url or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise _wrong(path, f"{where}['url'] is {url!r}: a shard must lie within the manifest's folder")
    for key, required in (("nsamples", True), ("bytes", False)):
        value = item.get(key)
        if value is None and not required:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _wrong(path, f"{where}[{key!r}] is {value!r}, expected a whole number")
    sha256 = item.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise _wrong(path, f"{where}['sha256'] is {sha256!r}, expected 64 hexadecimal digits")
    return ManifestEntry(url, path.parent.joinpath(*parts), item["nsamples"], item.get("bytes"), sha256)


def _check_unique(urls: Iterable[str], path: Path) -> None:
    seen: set[str] = set()
    for url in urls:
        if url in seen:
            raise _wrong(path, f"'shardlist' names {url!r} twice")
        seen.add(url)
