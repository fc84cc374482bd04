"""Shards read in order, and by position."""

from __future__ import annotations

import bisect
import itertools
import os
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mm.data.manifest import Manifest, ManifestEntry
from mm.data.samples import Rejection, Sample, parse_captions
from mm.data.tar import CUT, IMAGE_SUFFIXES, Group, groups
from mm.errors import DataError, ShardError

FEWER = "fewer samples than the manifest says"
MORE = "more samples than the manifest says"
LARGER = "shard larger than the manifest says"
NO_IMAGE = "no image"
SEVERAL_IMAGES = "more than one image"
DUPLICATE_MEMBER = "duplicate member"
NOT_A_FILE = "member is not a file"


def read_shard(
    path: str | Path, expected: ManifestEntry | None = None, captions: bool = False
) -> Iterator[Sample | Rejection]:
    """Reads a shard from start to end. Nothing is left out silently.

    A damaged shard yields its good samples, then a rejection that names the shard. Where a manifest says how
    many samples to expect, the samples of all rejections and the samples used add up to that number.

    Args:
        path: the tar file.
        expected: what the manifest says about it.
        captions: whether a sample without a caption is rejected.
    """
    path = Path(path)
    seen = 0
    problem: ShardError | None = None
    try:
        for group in groups(path):
            seen += 1
            try:
                yield _read(path, _locate(group), captions)
            except ShardError as error:
                seen -= 1
                raise error
            except DataError as error:
                yield Rejection.of(error, f"{path}/{group.key}", group.key)
    except ShardError as error:
        problem = error
    else:
        problem = _disagreement(path, seen, expected)
    if problem is not None:
        lost = max(expected.nsamples - seen, 0) if expected is not None else 1
        detail = f"{problem} ({seen} of {expected.nsamples} samples read)" if expected is not None else str(problem)
        yield Rejection(str(path), "", problem.reason, detail, lost)


class IndexedShards:
    """Samples of shards by position, in the manifest's order.

    The index is made in one pass over the headers. Its length is always the manifest's total, so that the order
    of samples depends on the manifest alone; samples that a damaged shard lacks raise when asked for. Files are
    opened per access: instances can be pickled, forked and shared between threads.

    Args:
        manifest: the shards.
        captions: whether a sample without a caption is an error.
        images: whether the bytes of images are read; without, they are empty.
    """

    def __init__(self, manifest: Manifest, captions: bool = False, images: bool = True) -> None:
        self.manifest = manifest
        self.problems: list[Rejection] = []
        self._captions, self._images = captions, images
        self._starts = [0, *itertools.accumulate(shard.nsamples for shard in manifest.shards)]
        self._keys: list[str] = []
        self._packed: list[_Packed] = []
        for shard in manifest.shards:
            packed = _Packed(shard.path)
            problem: ShardError | None
            try:
                for group in itertools.islice(groups(shard.path), shard.nsamples + 1):
                    packed.append(_locate(group))
                problem = _disagreement(shard.path, len(packed), shard)
            except ShardError as error:
                problem = error
            if problem is not None:
                lost = max(shard.nsamples - len(packed), 0)
                self.problems.append(Rejection.of(problem, str(shard.path), samples=lost))
            self._packed.append(packed)
            keys = packed.keys[: shard.nsamples]
            self._keys += keys + [""] * (shard.nsamples - len(keys))

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def keys(self) -> list[str]:
        """The key of every sample; ``""`` where a damaged shard lacks it."""
        return self._keys

    def __getitem__(self, index: int) -> Sample:
        """Reads one sample.

        Raises:
            ShardError: the shard is damaged, missing or changed since it was indexed.
            DataError: the sample has no image, or its captions can't be read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        number = bisect.bisect_right(self._starts, index) - 1
        shard, within, packed = self.manifest.shards[number], index - self._starts[number], self._packed[number]
        if within >= len(packed):
            reason = next((p.reason for p in self.problems if p.source == str(shard.path)), CUT)
            raise ShardError(f"{shard.path}: sample {within} of {shard.nsamples} can't be read: {reason}", reason)
        located = packed.get(within)
        if not self._images:
            located.parts = (None, *located.parts[1:])
        return _read(shard.path, located, self._captions, packed.bytes)


@dataclass(slots=True)
class _Located:
    """Where the parts of a sample lie in its shard: (offset, size) in bytes, or None where there is no such part."""

    key: str
    suffix: str
    parts: tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[int, int] | None]
    problem: str | None


class _Packed:
    """The samples of one shard, a few machine words each."""

    def __init__(self, path: Path) -> None:
        self.bytes = path.stat().st_size if path.is_file() else 0
        self.keys: list[str] = []
        self._suffixes: list[str] = []
        self._parts = array("q")
        self._problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def append(self, located: _Located) -> None:
        if located.problem is not None:
            self._problems[len(self.keys)] = located.problem
        self.keys.append(located.key)
        self._suffixes.append(sys.intern(located.suffix))
        for part in located.parts:
            self._parts.extend(part or (-1, 0))

    def get(self, index: int) -> _Located:
        image, text, document = (
            (self._parts[at], self._parts[at + 1]) if self._parts[at] >= 0 else None
            for at in range(6 * index, 6 * index + 6, 2)
        )
        return _Located(self.keys[index], self._suffixes[index], (image, text, document), self._problems.get(index))


def _locate(group: Group) -> _Located:
    suffix = group.image or ""
    members = [group.members.get(name) for name in (suffix, "txt", "json")]
    problem = None
    if group.duplicate is not None:
        problem = DUPLICATE_MEMBER
    elif not suffix:
        problem = SEVERAL_IMAGES if IMAGE_SUFFIXES & group.members.keys() else NO_IMAGE
    elif not all(member.regular for member in members if member is not None):
        problem = NOT_A_FILE
    image, text, document = ((member.offset, member.size) if member is not None else None for member in members)
    return _Located(group.key, suffix, (image, text, document), problem)


def _read(path: Path, located: _Located, captions: bool, size: int | None = None) -> Sample:
    """Reads one sample; ``size`` is what the shard had when it was indexed, in bytes."""
    name = f"{path}/{located.key}"
    if located.problem is not None:
        raise DataError(f"{name}: {located.problem}; expected one image, with .txt or .json", located.problem)
    try:
        with path.open("rb") as file:
            if size is not None and os.fstat(file.fileno()).st_size != size:
                raise ShardError(f"{path}: changed while it was in use; start again", "shard changed")
            image, text, document = (_part(file, part, path) for part in located.parts)
    except OSError as error:
        raise ShardError(f"{path}: can't be read: {error.strerror}", "unreadable shard") from error
    texts, metadata = parse_captions(text, document, name)
    if captions and not texts:
        raise DataError(f"{name}: has no caption; add {located.key}.txt or .json", "missing caption")
    return Sample(located.key, f"{name}.{located.suffix}", image or b"", texts, metadata)


def _part(file: BinaryIO, part: tuple[int, int] | None, path: Path) -> bytes | None:
    if part is None:
        return None
    file.seek(part[0])
    content = file.read(part[1])
    if len(content) < part[1]:
        raise ShardError(f"{path}: changed while it was in use; start again", "shard changed")
    return content


def _disagreement(path: Path, seen: int, expected: ManifestEntry | None) -> ShardError | None:
    """What is wrong with a well-formed shard, going by its manifest."""
    if expected is None:
        return None
    if seen < expected.nsamples:
        return ShardError(f"{path}: holds {seen} samples, the manifest says {expected.nsamples}", FEWER)
    if seen > expected.nsamples:
        return ShardError(f"{path}: holds more samples than the {expected.nsamples} in the manifest", MORE)
    size = path.stat().st_size
    if expected.bytes is not None and size != expected.bytes:
        reason = CUT if size < expected.bytes else LARGER
        return ShardError(f"{path}: is {size} bytes, the manifest says {expected.bytes}", reason)
    return None
