"""Shards read in order, and by position."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.data.samples import Rejection, Sample
from mm.data.shards.archive import Archive, HashingReader, changed
from mm.data.shards.layout import DIGEST_BYTES, Layout, digest_contents, disagreement, make_sample, read_parts
from mm.data.shards.manifest import Manifest, ManifestEntry
from mm.data.shards.opened import Fetch, OpenShards, fault
from mm.errors import DataError, ShardError

if TYPE_CHECKING:
    from mm.data.shards.inspection import Inspection

DIFFERS = "content differs from when it was verified"
READ_AHEAD = 4096  # blocks that the system isn't told of again


def read_shard(
    path: str | Path, expected: ManifestEntry | None = None, verify: bool = False
) -> Iterator[Sample | Rejection]:
    """Reads a shard from start to end. Nothing is left out silently.

    All headers are read first, so that no sample is made of members that don't belong together. A damaged shard
    yields its good samples, then a rejection that names the shard. Where a manifest says how many samples to expect,
    the samples of all rejections and the samples used add up to that number, or to those that are there if they
    are more.

    Args:
        path: the tar file.
        expected: what the manifest says about it.
        verify: whether the file is hashed as it is read, and held against the manifest's SHA-256.
    """
    path = Path(path)
    name = expected.remote or str(path) if expected is not None else str(path)
    seen = 0
    problem: ShardError | None = None
    try:
        with Archive(path, name) as archive:
            layout = Layout(archive)
            reader = HashingReader(archive) if verify else None
            for located in layout:
                try:
                    if located.problem is not None:
                        raise located.problem
                    yield make_sample(name, located, read_parts(reader or archive, located))
                except ShardError:
                    raise
                except DataError as error:
                    yield Rejection.of(error, f"{name}/{located.key}", located.key)
                seen += 1
            problem = layout.damage
            if problem is None and expected is not None:
                sha256 = None if reader is None else reader.hexdigest()
                problem = disagreement(name, ManifestEntry(path.name, path, seen, archive.size, sha256), expected)
    except ShardError as error:
        problem = error
    if problem is not None:
        lost = max(expected.nsamples - seen, 0) if expected is not None else 1
        detail = f"{problem} ({seen} of {expected.nsamples} samples read)" if expected is not None else str(problem)
        yield Rejection(name, "", problem.reason, detail, lost, problem.offset)


class IndexedShards:
    """Samples of shards by position, in the manifest's order.

    The length is always the manifest's total, so that the order of samples depends on the manifest alone; samples
    that a damaged shard lacks raise when asked for. A shard's headers are read when the first of its samples is, and
    it then stays open until many others were used since. Instances can be pickled, forked and shared between threads.

    Args:
        manifest: the shards.
        images: whether the bytes of images are read; without, they are empty.
        inspections: what was found in each shard. A shard that isn't as it was found is an error; where None, one that
            is damaged or isn't as the manifest says. Samples are held against the digests that inspections have.
        fetch: makes a remote shard local, and says where it lies.
        block: how many neighbouring samples will be asked for soon where one of them is: they are read together.
        verify: whether remote shards without an inspection are compared with their SHA-256 when they are first opened,
            and their samples with the digests found then. A copy that differs is fetched again, once.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        images: bool = True,
        inspections: Sequence[Inspection | None] | None = None,
        fetch: Fetch | None = None,
        block: int = 1,
        verify: bool = False,
    ) -> None:
        self.manifest = manifest
        self._images = images
        self._opened = OpenShards(manifest.shards, inspections, fetch, verify)
        self._block = block
        self._starts = [0, *itertools.accumulate(shard.nsamples for shard in manifest.shards)]
        self._prepare()

    def _prepare(self) -> None:
        self._read_ahead = functools.lru_cache(READ_AHEAD)(functools.partial(_read_ahead, self._opened, self._block))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_read_ahead"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """Reads one sample.

        Raises:
            ShardError: the shard is damaged, missing or changed.
            DataError: the sample has no image, its captions can't be read, or its content differs.
        """
        number, place = self._find(index)
        archive, layout, digests = self._opened[number]
        archive.check_unchanged()
        self._read_ahead(number, place // self._block)
        if place >= len(layout):
            raise fault(archive, layout, self.manifest.shards[number]) or changed(layout.name)
        located = layout[place]
        if located.problem is not None:
            raise located.problem
        contents = read_parts(archive, located, self._images or digests is not None)
        if digests is not None:
            known = digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)]
            if digest_contents(contents) != known:
                raise DataError(f"{layout.name}/{located.key}: {DIFFERS}; get the shard again", DIFFERS, located.offset)
        if not self._images:
            contents = (None, *contents[1:])
        return make_sample(layout.name, located, contents)

    def key(self, index: int) -> str:
        """The key of a sample; ``""`` where its shard can't be read."""
        number, place = self._find(index)
        try:
            layout = self._opened[number].layout
        except ShardError:
            return ""
        return layout.key(place) if place < len(layout) else ""

    def name(self, index: int) -> str:
        """Names a sample in messages: shard and key, or its place in the shard where that can't be read."""
        number, place = self._find(index)
        key = self.key(index)
        shard = self.manifest.shards[number].name
        return f"{shard}/{key}" if key else f"{shard}, sample {place}"

    def _find(self, index: int) -> tuple[int, int]:
        """The shard that holds a sample, and the sample's place in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]


def _read_ahead(opened: OpenShards, size: int, number: int, block: int) -> None:
    """Lets the system read a block of a shard's samples at once."""
    archive, layout, _ = opened[number]
    start, end = block * size, min((block + 1) * size, len(layout))
    if end - start > 1:
        first = layout[start].offset
        archive.read_ahead(first, (layout[end].offset if end < len(layout) else archive.size) - first)
