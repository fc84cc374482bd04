"""Inspecting shards: what is in each, and whether it is what the manifest says."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mm.data.images import DEFAULT_MAX_PIXELS, check_image, open_image
from mm.data.parallel import file_size, map_in_processes, process_count, usable_cpus
from mm.data.samples import Rejection
from mm.data.shards.archive import Archive, HashingReader, Window
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.inspection import FileState, Inspection, Thoroughness
from mm.data.shards.layout import DIGEST_BYTES, Layout, Located, combine_digests, make_sample
from mm.errors import DataError, ShardError

if TYPE_CHECKING:
    from mm.data.shards.known import KnownShards

Progress = Callable[[int], None]
Each = Callable[[Located], None]

_MANY_SAMPLES = 20_000  # whose headers and captions are read in a second or so
_FEW_SAMPLES = 10  # what opening a shard takes as long as
_MOST_AT_ONCE = 64
_MUCH_AT_ONCE = 1 << 22  # bytes, which are hashed in some hundredths of a second


def inspect_shard(
    path: Path,
    expected: ManifestEntry | None = None,
    *,
    captions: bool = True,
    verify: bool = False,
    images: bool = False,
    headers: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    each: Each | None = None,
) -> Inspection:
    """Inspects a shard: its framing, its captions, and whether it is what the manifest says.

    Args:
        path: the tar file.
        expected: what the manifest says about it.
        captions: whether a sample without a caption can't be used.
        verify: whether all of it is read and hashed, and held against the manifest's SHA-256.
        images: whether every image is decoded.
        headers: whether the header of every image is read.
        max_pixels: the most pixels an image may have.
        each: called with every sample that is there.
    """
    name = (expected and expected.remote) or str(path)
    thoroughness = Thoroughness(captions, verify, images, max_pixels, headers)
    found, _ = _inspect(path, name, thoroughness, each)
    return found if expected is None else found.against(expected)


def inspect_shards(
    shards: Sequence[ManifestEntry | Path],
    *,
    captions: bool = True,
    verify: bool = False,
    images: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    known: KnownShards | None = None,
    progress: Progress | None = None,
) -> list[Inspection]:
    """Inspects shards as ``inspect_shard`` does; in several processes where there is much to read.

    Args:
        shards: what the manifest says about each, or the path of one that it doesn't list.
        captions: whether a sample without a caption can't be used.
        verify: whether all of each is read and hashed.
        images: whether every image is decoded.
        max_pixels: the most pixels an image may have.
        known: what is remembered of shards that haven't changed; takes in what is found.
        progress: called with the number of samples just inspected; those of known shards count too.

    Raises:
        DataError: a process that inspected shards was killed.
    """
    thoroughness = Thoroughness(captions, verify, images, max_pixels)
    entries = [ManifestEntry(shard.name, shard, 0) if isinstance(shard, Path) else shard for shard in shards]
    inspections: dict[int, Inspection] = {} if known is None else known.find(entries, thoroughness)
    if progress is not None:
        progress(sum(len(found.languages) for found in inspections.values()))
    left = [number for number in range(len(entries)) if number not in inspections]
    try:
        results = _inspect_each([entries[number] for number in left], thoroughness)
        for number, (found, state) in zip(left, results, strict=True):
            inspections[number] = found
            if known is not None and state is not None:
                known.keep(entries[number], thoroughness, state, found)
            if progress is not None:
                progress(len(found.languages))
    finally:
        if known is not None:
            known.flush()
    return [
        inspections[number] if isinstance(shard, Path) else inspections[number].against(shard)
        for number, shard in enumerate(shards)
    ]


def _inspect_each(
    entries: list[ManifestEntry], thoroughness: Thoroughness
) -> Iterator[tuple[Inspection, FileState | None]]:
    """Inspects shards in order, in several processes where that pays."""
    inspect = functools.partial(_inspect_all, thoroughness)
    whole = thoroughness.verify or thoroughness.images
    if sum(max(entry.nsamples, _FEW_SAMPLES) for entry in entries) >= _MANY_SAMPLES:
        workers = usable_cpus()
    else:
        workers = process_count([entry.path for entry in entries]) if whole else 1
    most = max(1, min(_MOST_AT_ONCE, len(entries) // (4 * workers)))
    for results in map_in_processes(inspect, _pieces(entries, most, _MUCH_AT_ONCE if whole else None), workers):
        yield from results


def _pieces(entries: list[ManifestEntry], most: int, much: int | None) -> list[list[ManifestEntry]]:
    """Divides shards among tasks, in order: few large ones or many small ones to each.

    Args:
        entries: the shards.
        most: how many shards a task takes at most.
        much: the bytes after which it takes no further one; None for any number.
    """
    pieces: list[list[ManifestEntry]] = []
    size = 0
    for entry in entries:
        if not pieces or len(pieces[-1]) == most or (much is not None and size >= much):
            pieces.append([])
            size = 0
        pieces[-1].append(entry)
        if much is not None:
            size += file_size(entry.path) if entry.bytes is None else entry.bytes
    return pieces


def _inspect_all(thoroughness: Thoroughness, entries: list[ManifestEntry]) -> list[tuple[Inspection, FileState | None]]:
    return [_inspect(entry.path, entry.name, thoroughness) for entry in entries]


def _inspect(
    path: Path, name: str, thoroughness: Thoroughness, each: Each | None = None
) -> tuple[Inspection, FileState | None]:
    """What is in a shard, whatever a manifest says; and the state it was in, None if that may pass."""
    try:
        with Archive(path, name) as archive:
            return _Look(archive, thoroughness, each).inspection(path), FileState.of(archive.stat)
    except ShardError as error:
        return Inspection(ManifestEntry(path.name, path, 0), [Rejection.of(error, name)], [0]), None


class _Look:
    """One pass over a shard."""

    def __init__(self, archive: Archive, thoroughness: Thoroughness, each: Each | None) -> None:
        self._archive = archive
        self._captions, self._verify, self._images, self._max_pixels, self._headers = thoroughness
        self._each = each
        self._hasher = HashingReader(archive) if self._verify else None
        self._window = Window(archive)

    def inspection(self, path: Path) -> Inspection:
        """Looks at every sample.

        Raises:
            ShardError: the shard can't be read any more, or changed meanwhile.
        """
        layout = Layout(self._archive)
        problems: list[Rejection] = []
        unusable: list[int] = []
        languages: list[str] = []
        digests = bytearray()
        if layout.damage is not None:
            problems.append(Rejection.of(layout.damage, layout.name))
        for place, located in enumerate(layout):
            error, codes, digest = self._sample(located)
            if error is not None:
                problems.append(Rejection.of(error, f"{layout.name}/{located.key}", located.key))
                unusable.append(place)
            languages.append(codes)
            digests += digest
            if self._each is not None:
                self._each(located)
        if layout.damage is not None:
            unusable.append(len(layout))
        sha256 = self._hasher.hexdigest() if self._hasher is not None else None
        self._archive.check_unchanged()
        entry = ManifestEntry(path.name, path, len(layout), self._archive.size, sha256)
        return Inspection(entry, problems, unusable, languages, bytes(digests) if self._verify else None)

    def _sample(self, located: Located) -> tuple[DataError | None, str, bytes]:
        """What is wrong with a sample, if anything; its languages, and its digest."""
        if located.problem is not None:
            return located.problem, "", bytes(DIGEST_BYTES)
        contents: list[bytes | None] = [None, None, None]
        hashes = [b"", b"", b""]
        parts = [(*part, which) for which, part in enumerate(located.parts) if part is not None]
        for offset, size, which in sorted(parts):
            wanted = which > 0 or self._images or self._headers
            if self._hasher is not None:
                contents[which], hashes[which] = _hashed(self._hasher, offset, size, wanted)
            elif which > 0:
                contents[which] = self._window.read(offset, size)
            elif wanted:
                contents[which] = self._archive.content(offset, size)
        codes, error = "", None
        try:
            sample = make_sample(self._archive.name, located, (contents[0], contents[1], contents[2]), self._captions)
            codes = " ".join(sample.captions)
            if self._images:
                check_image(sample.image, sample.source, self._max_pixels)
            elif self._headers:
                open_image(sample.image, sample.source, self._max_pixels)
        except DataError as problem:
            error = problem
            error.offset = located.offset
        return error, codes, combine_digests(hashes) if self._hasher is not None else b""


def _hashed(reader: HashingReader, offset: int, size: int, wanted: bool) -> tuple[bytes | None, bytes]:
    """A part of a shard, if it is wanted, and its SHA-256."""
    digest = hashlib.sha256()
    pieces = []
    for block in reader.blocks(offset, size):
        digest.update(block)
        if wanted:
            pieces.append(block)
    return (b"".join(pieces) if wanted else None), digest.digest()
