"""Images from whatever was named: files, folders and shards."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mm.data.counting import add_counts
from mm.data.images import read_image_bytes
from mm.data.samples import Rejection, Sample, parse_captions, printable
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.finding import MANIFEST_NAME, Shard, ShardFolder, is_shard, missing, no_shards
from mm.data.shards.reading import read_shard
from mm.data.shards.tar import IMAGE_SUFFIXES
from mm.errors import DataError, UsageError

NOT_LISTED = "shard not in the manifest"

_Open = Callable[[Path], ShardFolder]


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
    return _resolve_all(paths, functools.cache(ShardFolder))


def _resolve_all(paths: Sequence[str | Path], open_folder: _Open) -> list[Source]:
    if not paths:
        raise UsageError("no images were named; give image files, folders or .tar shards")
    sources: dict[Path, Source] = {}
    for path in map(Path, paths):
        for source in _resolve(path, open_folder):
            sources.setdefault(source.path.absolute(), source)
    return list(sources.values())


def count_images(sources: Iterable[Source]) -> int | None:
    """How many images there are, or None where a shard without a manifest would have to be read for it."""
    return add_counts(source.count for source in sources)


def find_shards(paths: str | Path | Sequence[str | Path]) -> tuple[list[Shard], list[Rejection]]:
    """Finds the shards that paths stand for, those of subfolders too.

    Args:
        paths: folders of shards, and shards.

    Returns:
        Each shard once, missing ones that a manifest lists too; and what is wrong with manifests.

    Raises:
        UsageError: there is no such path, or no shards in it.
    """
    open_folder = functools.cache(ShardFolder)
    sources = _resolve_all([paths] if isinstance(paths, str | Path) else paths, open_folder)
    shards: list[Shard] = [(source.path, source.expected) for source in sources if source.is_shard]
    problems = [source.problem for source in sources if source.problem is not None]
    if not shards:
        raise no_shards(sources[0].path.parent)
    for path, expected in shards:
        if expected is None and open_folder(path.parent).listed:
            detail = f"{path}: isn't listed in {MANIFEST_NAME}; remove one, or write the manifest anew"
            problems.append(Rejection(str(path), "", NOT_LISTED, detail, 0))
    return shards, problems


def count_samples(shards: Iterable[Shard]) -> int | None:
    """How many samples there are going by manifests, or None where one of the shards isn't listed."""
    return add_counts(None if entry is None else entry.nsamples for _, entry in shards)


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


def _resolve(path: Path, open_folder: _Open) -> list[Source]:
    name = printable(str(path))
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except OSError as error:
        raise UsageError(f"{name}: can't be read: {error.strerror}") from error
    if not exists:
        raise missing(path)
    if is_folder:
        found = list(_search(path, open_folder))
        if all(source.problem is not None for source in found):
            problems = [source.problem.detail for source in found if source.problem is not None]
            raise UsageError(problems[0] if problems else f"{name}: holds no images or .tar shards")
        return found
    if not is_file:
        raise UsageError(f"{name}: isn't a file or folder; give image files, folders or .tar shards")
    if not is_shard(path):
        return [Source(path, printable(path.stem))]
    folder = open_folder(path.parent)
    return [*_problem_sources(_problems(folder)), Source(path, printable(path.stem), folder.listed.get(path))]


def _search(folder: Path, open_folder: _Open) -> Iterator[Source]:
    problems: list[Rejection] = []
    listed: set[Path] = set()
    for subfolder, names in _folders(folder, problems):
        opened = open_folder(subfolder)
        problems += _problems(opened)
        for path, expected in opened.shards:
            if path not in listed:
                listed.add(path)
                yield Source(path, printable(path.stem), expected)
        for path in (subfolder / name for name in names):
            if is_image(path) and path.is_file():
                yield Source(path, _key(path, folder))
    yield from _problem_sources(problems)


def _problems(folder: ShardFolder) -> list[Rejection]:
    return [] if folder.problem is None else [Rejection.of(folder.problem, str(folder.manifest), samples=0)]


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
