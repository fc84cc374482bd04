"""Shards inspected as a whole, before anything is made of them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mm.data.images import DEFAULT_MAX_PIXELS, check_image, open_image
from mm.data.parallel import map_in_processes, process_count, usable_cpus
from mm.data.samples import Rejection
from mm.data.shards.archive import CHANGED, MISSING, UNREADABLE, Archive, HashingReader, Window
from mm.data.shards.layout import (
    DIGEST_BYTES,
    DUPLICATE_KEY,
    DUPLICATE_MEMBER,
    FEWER,
    HASH_DIFFERS,
    LARGER,
    MORE,
    NO_IMAGE,
    NOT_ADJACENT,
    Layout,
    Located,
    combine_digests,
    disagreement,
    make_sample,
)
from mm.data.shards.manifest import ManifestEntry
from mm.data.shards.tar import CORRUPT, CUT, EMPTY, NOT_A_TAR
from mm.errors import DataError, ShardError

if TYPE_CHECKING:
    from mm.data.shards.known import KnownShards

Progress = Callable[[int], None]
Each = Callable[[Located], None]

# An archive with one of these can't be trusted as a whole.
FAULTS = frozenset(
    (
        *(MISSING, UNREADABLE, CHANGED, EMPTY, NOT_A_TAR, CORRUPT, CUT),
        *(FEWER, MORE, LARGER, HASH_DIFFERS),
        *(DUPLICATE_MEMBER, DUPLICATE_KEY, NOT_ADJACENT, NO_IMAGE),
    )
)

_MANY_SAMPLES = 20_000  # whose headers and captions are read in a second or so
_FEW_SAMPLES = 10  # what opening a shard takes as long as
_MOST_AT_ONCE = 64


class Thoroughness(NamedTuple):
    """How much of a shard is looked at: see ``inspect_shard``."""

    captions: bool = True
    verify: bool = False
    images: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    headers: bool = False


class FileState(NamedTuple):
    """What changes when a file does."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """The state that the system reports."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Inspection:
    """What was found in a shard.

    The number of ``unusable`` samples is the sum of all problems' ``samples``.

    Args:
        entry: the shard as it was found: the samples that are there, its bytes, and its SHA-256 if it was hashed.
        problems: what is wrong with the shard, and then with its samples.
        unusable: places in the shard of the samples that can't be used, in order: of those that are there, and of
            those that the manifest promises.
        languages: for each sample that is there, the codes of the languages that it has captions in, with blanks
            between them.
        digests: 8 bytes for each sample that is there, of its image, text and JSON file; None if it wasn't verified.
    """

    entry: ManifestEntry
    problems: list[Rejection] = field(default_factory=list)
    unusable: list[int] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    digests: bytes | None = None

    @property
    def damaged(self) -> bool:
        """Whether the archive can't be trusted as a whole."""
        return any(problem.reason in FAULTS for problem in self.problems)

    @property
    def fault(self) -> Rejection | None:
        """What is wrong with the shard as a whole, if anything."""
        return next((problem for problem in self.problems if not problem.key), None)

    def raise_fault(self) -> None:
        """Raises a ``ShardError`` if something is wrong with the shard as a whole."""
        if self.fault is not None:
            raise ShardError(self.fault.detail, self.fault.reason, self.fault.offset)

    def against(self, expected: ManifestEntry) -> Inspection:
        """The same findings, held against a manifest.

        Of a damaged shard, the samples before the damage can be used. Of one that is well-formed, but not the one that
        the manifest describes, none can: there is no telling which of them are still right.

        Args:
            expected: what the manifest says.
        """
        there = len(self.languages)
        problems = [problem for problem in self.problems if problem.key]
        unusable = {place for place in self.unusable if place < there}
        problem = self.fault
        trusted = min(there, expected.nsamples)
        name = expected.remote or self.entry.name
        if problem is None and (error := disagreement(name, self.entry, expected)) is not None:
            problem, trusted = Rejection.of(error, name), 0
        lost = set(range(trusted, max(there, expected.nsamples))) - unusable
        if problem is not None:
            problems.insert(0, replace(problem, samples=len(lost)))
        entry = replace(self.entry, url=expected.url, remote=expected.remote)
        return replace(self, entry=entry, problems=problems, unusable=sorted(unusable | lost))


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
    step = 1 if whole else max(1, min(_MOST_AT_ONCE, len(entries) // (4 * workers)))
    chunks = [entries[start : start + step] for start in range(0, len(entries), step)]
    for results in map_in_processes(inspect, chunks, workers):
        yield from results


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
