"""What shards are made of: images in folders, in other shards, and in files that name them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mm.data.images import read_image_bytes
from mm.data.making.annotations import read_records
from mm.data.making.records import Record, Records
from mm.data.samples import Rejection, Sample, printable
from mm.data.shards.finding import is_shard, missing
from mm.data.shards.reading import read_shard
from mm.data.shards.tar import IMAGE_SUFFIXES, Group, groups
from mm.data.sources import Source, count_images, is_image, read_image_file, resolve_sources
from mm.errors import DataError, OptionError, ShardError, UsageError

_READ_SUFFIXES = IMAGE_SUFFIXES | {"txt", "json"}


@dataclass(frozen=True)
class LeftOut:
    """A sample that wasn't asked for; ``reason`` is the same for all that are left out for it."""

    reason: str


@dataclass(frozen=True)
class Item:
    """One image of a source, not yet read unless it lies in a shard.

    Args:
        key: its key; ``""`` where a damaged shard or folder stands for samples that can't be read.
        load: reads it.
        told: what is known before it is read: the sample without its image.
    """

    key: str
    load: Callable[[], Sample | Rejection | LeftOut]
    told: Sample | None = None


class Items(Protocol):
    """The images of a source, always in the same order."""

    name: str

    @property
    def count(self) -> int | None:
        """How many there are, or None where that isn't known without reading shards."""

    @property
    def state(self) -> str:
        """What differs when the source has changed."""

    def __iter__(self) -> Iterator[Item]:
        """Lists them."""

    def keys(self) -> Iterator[str]:
        """Lists their keys in some order, without reading images."""

    def members_left_out(self) -> Counter[str]:
        """How many members of shards are neither image nor captions, by suffix."""


def gather(paths: Sequence[Path], out: Path, images: Path | None = None, language: str = "en") -> list[Items]:
    """Finds out what sources hold.

    Args:
        paths: folders of images or shards, images, shards, and files that name images (see ``read_records``).
        out: a folder that isn't searched.
        images: where the images lie that files name; beside the file if None.
        language: of captions in files that don't say it.

    Raises:
        UsageError: a source doesn't exist, holds no images, or has no layout that is known.
        OptionError: ``images`` was given, but no source is a file that names images.
    """
    gathered: list[Items] = []
    for path in paths:
        if path.is_dir() or is_shard(path) or is_image(path):
            gathered.append(FileItems(path, out))
        elif path.is_file():
            gathered.append(RecordItems(path, read_records(path, language), images or path.parent))
        else:
            raise missing(path)
    if images is not None and not any(isinstance(items, RecordItems) for items in gathered):
        raise OptionError("--images says where the images of tables and JSON files lie; no source is such a file")
    return gathered


class FileItems:
    """Images and shards by themselves or in a folder, with captions in the files beside images.

    Args:
        path: the folder or file.
        out: a folder whose content is left out.

    Raises:
        UsageError: there is no such path, or it holds nothing to read.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self.name = str(path.absolute())
        out = out.absolute()
        self._sources = [s for s in resolve_sources([path]) if not s.path.absolute().is_relative_to(out)]
        if not self._sources:
            raise UsageError(f"{printable(str(path))}: holds no images or .tar shards")

    @property
    def count(self) -> int | None:
        """How many images there are, or None where that isn't known."""
        return count_images(self._sources)

    @property
    def state(self) -> str:
        """The number of files, and a hash over their names, sizes and times."""
        digest = hashlib.sha256()
        for source in self._sources:
            digest.update(f"{source.path}\0{file_state(source.path)}\0".encode(errors="surrogateescape"))
        return f"{len(self._sources)} files {digest.hexdigest()[:16]}"

    def __iter__(self) -> Iterator[Item]:
        for source in self._sources:
            if source.problem is not None:
                problem = source.problem
                yield Item("", lambda problem=problem: problem)  # type: ignore[misc]
            elif source.is_shard:
                yield from map(_loaded, read_shard(source.path, source.expected))
            else:
                yield Item(source.key, _image_reader(source))

    def keys(self) -> Iterator[str]:
        """Lists the keys of images and then those in shards, of which only headers are read."""
        yield from (source.key for source in self._sources if source.problem is None and not source.is_shard)
        yield from (group.key for group in self._groups())

    def members_left_out(self) -> Counter[str]:
        """How many members of shards are neither image nor captions, by suffix."""
        counts: Counter[str] = Counter()
        for group in self._groups():
            counts.update(f".{suffix}" for suffix in group.members if suffix not in _READ_SUFFIXES)
        return counts

    def _groups(self) -> Iterator[Group]:
        """The members of shards that make up a sample, up to where a shard is damaged."""
        for source in self._sources:
            if source.problem is None and source.is_shard:
                with suppress(ShardError):  # samples after the damage are rejected when they are read
                    yield from groups(source.path)


class RecordItems:
    """Images that a file names.

    Args:
        path: the file.
        records: what it says.
        folder: where the images lie.

    Raises:
        UsageError: none of them is there.
    """

    def __init__(self, path: Path, records: Records, folder: Path) -> None:
        self.name = str(path.absolute())
        self._path, self._records, self._folder = path, records, folder
        named = [record.image for record in records if record.problem is None]
        if named and not any(os.path.isfile(folder / image) for image in named):  # noqa: PTH113 (any text)
            raise UsageError(
                f"{path}: names {len(named)} images, the first {printable(named[0])}, of which none is in {folder}; "
                "say with --images where they lie"
            )

    @property
    def count(self) -> int | None:
        """How many images the file names."""
        return len(self._records)

    @property
    def state(self) -> str:
        """The number of images, and the size and time of the file."""
        return f"{len(self._records)} images in {self._folder.absolute()}, {file_state(self._path)}"

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, self._records)

    def keys(self) -> Iterator[str]:
        """Lists the keys of the images that the file names."""
        return map(_key, self._records)

    def members_left_out(self) -> Counter[str]:
        """Nothing: there are no shards."""
        return Counter()

    def _item(self, record: Record) -> Item:
        if record.problem is not None:
            rejection = Rejection.of(record.problem, str(self._path), printable(record.image))
            return Item(rejection.key, lambda: rejection)
        path = self._folder / record.image
        key = _key(record)
        told = Sample(key, printable(str(path)), b"", record.captions, record.metadata)
        return Item(key, lambda: self._load(path, told), told)

    def _load(self, path: Path, told: Sample) -> Sample | Rejection:
        try:
            return replace(told, image=read_image_bytes(path))
        except UsageError:
            what = f"{told.source}: doesn't exist, but {self._path} names it"
            return Rejection(told.source, told.key, "missing image", what)
        except DataError as error:
            return Rejection.of(error, told.source, told.key)


def file_state(path: Path) -> str:
    """Size and time of a file, which differ when it has changed."""
    try:
        status = path.stat()
    except OSError:
        return "unreadable"
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def _key(record: Record) -> str:
    return printable(os.path.splitext(record.image)[0])  # noqa: PTH122 (any text)


def _image_reader(source: Source) -> Callable[[], Sample | Rejection]:
    return lambda: read_image_file(source.path, source.key)


def _loaded(item: Sample | Rejection) -> Item:
    return Item(item.key, lambda: item, replace(item, image=b"") if isinstance(item, Sample) else None)
