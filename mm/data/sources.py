"""Images from whatever was named: files, folders and shards."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mm.data.images import read_image_bytes
from mm.data.samples import Rejection, Sample, parse_captions, printable
from mm.data.shards.manifest import ManifestEntry, list_shards
from mm.data.shards.reading import read_shard
from mm.data.shards.tar import IMAGE_SUFFIXES
from mm.errors import DataError, UsageError

Listing = tuple[dict[Path, ManifestEntry | None], list[Rejection]]
"""The shards of a folder with what its manifest says about each, and what is wrong with the manifest."""


@dataclass(frozen=True)
class Source:
    """One image file or shard to read.

    Args:
        path: the file.
        key: the image's name; for a shard, its own.
        expected: what a manifest says about a shard.
        problem: why nothing can be read here, found while looking.
    """

    path: Path
    key: str
    expected: ManifestEntry | None = None
    problem: Rejection | None = None

    @property
    def is_shard(self) -> bool:
        """Whether it is a tar."""
        return is_shard(self.path)

    @property
    def count(self) -> int | None:
        """The number of images, or None where it isn't known without reading the shard."""
        if self.problem is not None:
            return 0
        if not self.is_shard:
            return 1
        return self.expected.nsamples if self.expected is not None else None


def resolve_sources(paths: Sequence[str | Path]) -> list[Source]:
    """Finds everything that paths stand for, before any of it is read.

    Folders are searched with all their subfolders, in order of names; hidden files are left out.

    Args:
        paths: image files, ``.tar`` shards, and folders of both.

    Returns:
        Each file once.

    Raises:
        UsageError: no paths; or one that doesn't exist, isn't a file or folder, or is a folder without images.
    """
    if not paths:
        raise UsageError("no images were named; give image files, folders or .tar shards")
    sources: dict[Path, Source] = {}
    list_folder = functools.cache(_list_folder)
    for path in map(Path, paths):
        for source in _resolve(path, list_folder):
            sources.setdefault(source.path.absolute(), source)
    return list(sources.values())


def count_images(sources: Iterable[Source]) -> int | None:
    """How many images there are, or None where a shard without a manifest would have to be read for it."""
    total = 0
    for source in sources:
        count = source.count
        if count is None:
            return None
        total += count
    return total


def iter_images(
    sources: Sequence[str | Path] | Sequence[Source], captions: bool = False
) -> Iterator[Sample | Rejection]:
    """Reads images without decoding them.

    Args:
        sources: paths, or what ``resolve_sources`` made of them.
        captions: whether captions beside image files are read, where there are any. Those in shards are in any case.

    Raises:
        UsageError: as ``resolve_sources`` does, at once.
    """
    resolved = [source for source in sources if isinstance(source, Source)]
    if len(resolved) != len(sources) or not sources:
        resolved = resolve_sources([source for source in sources if not isinstance(source, Source)])
    return _read_all(resolved, captions)


def read_image_file(path: Path, key: str, captions: bool = True) -> Sample | Rejection:
    """Reads an image file and the caption files beside it, ``name.txt`` and ``name.json``.

    Args:
        path: the image file.
        key: the sample's key.
        captions: whether to read captions.
    """
    source = printable(str(path))
    try:
        image = read_image_bytes(path)
        if not captions:
            return Sample(key, source, image)
        texts, metadata = parse_captions(
            _beside(path, ".txt"), _beside(path, ".json"), printable(str(path.with_suffix("")))
        )
        return Sample(key, source, image, texts, metadata)
    except UsageError as error:
        return Rejection(source, key, "missing file", str(error))
    except DataError as error:
        return Rejection.of(error, source, key)


def is_image(path: Path) -> bool:
    """Whether a file's suffix is an image's."""
    return path.suffix[1:].lower() in IMAGE_SUFFIXES


def is_shard(path: Path) -> bool:
    """Whether a file's suffix is a shard's."""
    return path.suffix.lower() == ".tar"


def _list_folder(folder: Path) -> Listing:
    shards, problems = list_shards(folder)
    return dict(shards), problems


def _resolve(path: Path, list_folder: Callable[[Path], Listing]) -> list[Source]:
    name = printable(str(path))
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except OSError as error:
        raise UsageError(f"{name}: can't be read: {error.strerror}") from error
    if not exists:
        raise UsageError(f"{name}: doesn't exist; check the path")
    if is_folder:
        found = list(_search(path, list_folder))
        if all(source.problem is not None for source in found):
            problems = [source.problem.detail for source in found if source.problem is not None]
            raise UsageError(problems[0] if problems else f"{name}: holds no images or .tar shards")
        return found
    if not is_file:
        raise UsageError(f"{name}: isn't a file or folder; give image files, folders or .tar shards")
    if not is_shard(path):
        return [Source(path, printable(path.stem))]
    listed, wrong = list_folder(path.parent)
    return [*_problem_sources(wrong), Source(path, printable(path.stem), listed.get(path))]


def _search(folder: Path, list_folder: Callable[[Path], Listing]) -> Iterator[Source]:
    problems: list[Rejection] = []
    listed: set[Path] = set()
    for subfolder, names in _folders(folder, problems):
        shards, wrong = list_folder(subfolder)
        problems += wrong
        for path, expected in shards.items():
            if path not in listed:
                listed.add(path)
                yield Source(path, printable(path.stem), expected)
        for path in (subfolder / name for name in names):
            if is_image(path) and path.is_file():
                yield Source(path, _key(path, folder))
    yield from _problem_sources(problems)


def _problem_sources(problems: Iterable[Rejection]) -> Iterator[Source]:
    return (Source(Path(problem.source), "", problem=problem) for problem in problems)


def _folders(folder: Path, problems: list[Rejection]) -> Iterator[tuple[Path, list[str]]]:
    """A folder and its subfolders, each with its files, in order of names, without hidden ones."""

    def unreadable(error: OSError) -> None:
        source = printable(str(error.filename))
        problems.append(Rejection(source, "", "unreadable folder", f"{source}: can't be read: {error.strerror}", 0))

    for path, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(path), sorted(name for name in names if not name.startswith("."))


def _key(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder).with_suffix("").as_posix())


def _read_all(sources: list[Source], captions: bool) -> Iterator[Sample | Rejection]:
    for source in sources:
        if source.problem is not None:
            yield source.problem
        elif source.is_shard:
            yield from read_shard(source.path, source.expected)
        else:
            yield read_image_file(source.path, source.key, captions)


def _beside(path: Path, suffix: str) -> bytes | None:
    """The content of the caption file beside an image, or None where there is none."""
    beside = path.with_suffix(suffix)
    try:
        return beside.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{printable(str(beside))}: can't be read: {error.strerror}", "unreadable file") from error
