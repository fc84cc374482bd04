"""The manifest of a folder of shards, in the shard-index format of wids, with sizes and hashes added."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mm.data.samples import Rejection
from mm.errors import DataError, OutputError, ShardError, UsageError
from mm.files import write_whole

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
KIND = "wids-shard-index-v1"
HASH_DIFFERS = "shard hash differs"
Progress = Callable[[int], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ManifestEntry:
    """What is known about one shard.

    Args:
        url: its name relative to the manifest.
        path: where it lies, or will lie once it is fetched.
        nsamples: number of samples, with those that can't be used.
        bytes: size of the file in bytes, or None where the manifest doesn't say.
        sha256: hash of the file in hexadecimal, or None where the manifest doesn't say.
        remote: its full address, or None where it is local.
    """

    url: str
    path: Path
    nsamples: int
    bytes: int | None = None
    sha256: str | None = None
    remote: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.remote or str(self.path)


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
    def parse(cls, content: bytes, name: str, base: Path, remote: str | None = None) -> Manifest:
        """Reads the content of a manifest.

        Args:
            content: the file's.
            name: the file, for messages.
            base: the folder that the shards lie in, or will lie in.
            remote: the address of the folder that they come from; None where they are local.

        Raises:
            DataError: it isn't a shard index, or an entry is wrong; the message names file and key.
        """
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _wrong(name, f"isn't valid JSON: {error}") from None
        entries = [_entry(item, index, name, base) for index, item in enumerate(_shardlist(document, name))]
        _check_unique((entry.url for entry in entries), name)
        if remote is not None:
            entries = [replace(entry, remote=f"{remote.rstrip('/')}/{entry.url}") for entry in entries]
        return cls(entries)

    @classmethod
    def of(cls, source: str | Path | Sequence[str | Path]) -> Manifest:
        """The manifest of a folder, a shard or several, made in memory where none is written.

        That reads headers and captions, unless they are known from an earlier run; hashes are left out.

        Args:
            source: a folder with shards, a tar, or a list of these.

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
        indexed = _index([path for path in found if isinstance(path, Path)])
        return cls([indexed[item] if isinstance(item, Path) else item for item in found])

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
        return cls(_inspect_all(_tars(folder), progress))

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
    """The entries of shards that no manifest lists; a damaged shard counts up to the damage."""
    from mm.data.inspection import inspect_shards
    from mm.data.known import KnownShards

    if not paths:
        return {}
    log.warning(
        "%s: no manifest.json lists %s, so what is in them is taken for all there is; `mm shards check` says what is "
        "wrong with shards, `mm shards make` writes some with a manifest",
        paths[0].parent,
        f"these {len(paths)} shards" if len(paths) > 1 else paths[0].name,
    )
    inspections = inspect_shards(paths, known=KnownShards())
    return {path: found.entry for path, found in zip(paths, inspections, strict=True)}


def _inspect_all(paths: list[Path], progress: Progress | None = None) -> list[ManifestEntry]:
    """The entries of shards, from reading all of each.

    Raises:
        ShardError: one is damaged or can't be read.
    """
    from mm.data.inspection import inspect_shards
    from mm.data.known import KnownShards

    inspections = inspect_shards(paths, verify=True, known=KnownShards(), progress=progress)
    for found in inspections:
        for problem in found.problems:
            if not problem.key:
                raise ShardError(problem.detail, problem.reason, problem.offset)
    return [found.entry for found in inspections]


def _hashes(paths: list[Path]) -> list[str]:
    """The SHA-256 of shards, damaged ones too."""
    from mm.data.inspection import inspect_shards
    from mm.data.known import KnownShards

    hashes = []
    for found in inspect_shards(paths, verify=True, known=KnownShards()):
        if found.entry.sha256 is None:
            problem = found.problems[0]
            raise ShardError(problem.detail, problem.reason, problem.offset)
        hashes.append(found.entry.sha256)
    return hashes


def _wrong(name: str, what: str) -> DataError:
    return DataError(f"{name}: {what}; `mm shards make` writes a valid one", "damaged manifest")


def _shardlist(document: Any, name: str) -> list[Any]:
    if not isinstance(document, dict):
        raise _wrong(name, f"holds a {type(document).__name__}, expected an object")
    if document.get("__kind__") != KIND:
        raise _wrong(name, f"'__kind__' is {document.get('__kind__')!r}, expected {KIND!r}")
    if document.get("wids_version", 1) != 1:
        raise _wrong(name, f"'wids_version' is {document['wids_version']!r}, expected 1")
    shardlist = document.get("shardlist")
    if not isinstance(shardlist, list) or not shardlist:
        raise _wrong(name, "'shardlist' must be a list with at least one shard")
    return shardlist


def _entry(item: Any, index: int, name: str, base: Path) -> ManifestEntry:
    where = f"shardlist[{index}]"
    if not isinstance(item, dict):
        raise _wrong(name, f"{where} must be an object")
    url = item.get("url")
    if not isinstance(url, str) or not url:
        raise _wrong(name, f"{where}['url'] must be the name of a shard")
    parts = url.split("/")
    if "\\" in url or "\0" in url or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise _wrong(name, f"{where}['url'] is {url!r}: a shard must lie within the manifest's folder")
    for key, required in (("nsamples", True), ("bytes", False)):
        value = item.get(key)
        if value is None and not required:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _wrong(name, f"{where}[{key!r}] is {value!r}, expected a whole number")
    sha256 = item.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise _wrong(name, f"{where}['sha256'] is {sha256!r}, expected 64 hexadecimal digits")
    return ManifestEntry(url, base.joinpath(*parts), item["nsamples"], item.get("bytes"), sha256)


def _check_unique(urls: Iterable[str], name: str) -> None:
    seen: set[str] = set()
    for url in urls:
        if url in seen:
            raise _wrong(name, f"'shardlist' names {url!r} twice")
        seen.add(url)
