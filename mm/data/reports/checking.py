"""Shards checked from end to end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from mm.data.hashes import hash64
from mm.data.images import DEFAULT_MAX_PIXELS
from mm.data.parallel import map_in_processes, process_count
from mm.data.samples import Rejection, Tally
from mm.data.shards.archive import Archive
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.finding import MANIFEST_NAME, Shard, find_tars
from mm.data.shards.inspecting import inspect_shard
from mm.data.shards.layout import Layout
from mm.data.shards.manifest import Manifest
from mm.data.sources import find_shards
from mm.errors import DataError, UsageError

KEY_IN_SEVERAL = "key in several shards"


@dataclass(frozen=True)
class CheckedShard:
    """What was found in one shard.

    Args:
        path: the shard.
        expected: what the manifest says about it.
        found: the shard as it is.
        problems: what is wrong with it and its samples.
        unusable: places in the shard of the samples that can't be used.
        keys: (n,) uint64 hashes of its samples' keys.
    """

    path: Path
    expected: ManifestEntry | None
    found: ManifestEntry
    problems: list[Rejection]
    unusable: frozenset[int]
    keys: np.ndarray

    @property
    def usable(self) -> int:
        """How many of its samples can be used."""
        return self.found.nsamples - sum(place < self.found.nsamples for place in self.unusable)

    @property
    def samples(self) -> int:
        """How many samples the shard has, or was to have if that is more."""
        return self.usable + sum(problem.samples for problem in self.problems)


@dataclass
class ShardReport:
    """What ``check_shards`` found.

    Args:
        shards: each shard, missing ones too, in order.
        others: what is wrong with manifests, and between shards.
    """

    shards: list[CheckedShard] = field(default_factory=list)
    others: list[Rejection] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def samples(self) -> int:
        """How many samples can be used."""
        return sum(shard.usable for shard in self.shards)

    @property
    def problems(self) -> list[Rejection]:
        """Everything that is wrong."""
        return self.others + [problem for shard in self.shards for problem in shard.problems]

    @property
    def tally(self) -> Tally:
        """Samples that can be used, and everything that is wrong."""
        return Tally(self.samples, self.problems)


def check_shards(
    paths: str | Path | Sequence[str | Path],
    progress: Callable[[int], None] | None = None,
    captions: bool = False,
    decode: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    workers: int | None = None,
) -> ShardReport:
    """Checks shards: framing, hashes, counts, captions, keys that occur twice, and images. Reads several at once.

    Args:
        paths: folders of shards, and shards; their manifests are used where there are any.
        progress: called with the number of samples of each shard that was checked.
        captions: whether every sample must have a caption.
        decode: whether images are decoded as a whole, and not only their headers.
        max_pixels: the most pixels an image may have.
        workers: how many processes; as many as pay if None.

    Raises:
        UsageError: there is no such path, or no shards in it.
    """
    shards, problems = find_shards(paths)
    report = ShardReport(others=problems)
    check = partial(_check_shard, captions=captions, decode=decode, max_pixels=max_pixels)
    for checked in map_in_processes(check, shards, workers or process_count([path for path, _ in shards])):
        report.shards.append(checked)
        if progress is not None:
            progress(checked.samples)
    report.others += _keys_in_several(report.shards)
    return report


def write_manifests(report: ShardReport) -> list[Path]:
    """Writes the manifest of each folder whose shards were checked and that has none.

    Args:
        report: what was found in the shards.

    Returns:
        The files written.

    Raises:
        DataError: something is wrong with the shards.
        UsageError: only some of a folder's shards were checked.
        OutputError: a manifest can't be written.
    """
    if not report.ok:
        raise DataError("no manifest was written: it would vouch for shards that have problems; repair them first")
    written = []
    for folder, entries in unlisted(report).items():
        left = {path.name for path in find_tars(folder)} - {entry.path.name for entry in entries}
        if left:
            raise UsageError(f"{folder}: not all of its shards were checked ({min(left)}, ...); name the folder itself")
        written.append(Manifest(entries).write(folder / MANIFEST_NAME))
    return written


def unlisted(report: ShardReport) -> dict[Path, list[ManifestEntry]]:
    """The shards of folders without a manifest, as they were found."""
    folders: dict[Path, list[ManifestEntry]] = defaultdict(list)
    for shard in report.shards:
        if not (shard.path.parent / MANIFEST_NAME).exists():
            folders[shard.path.parent].append(replace(shard.found, url=shard.path.name))
    return dict(folders)


def _check_shard(shard: Shard, captions: bool, decode: bool, max_pixels: int) -> CheckedShard:
    path, expected = shard
    keys: list[int] = []
    found = inspect_shard(
        path,
        expected,
        captions=captions,
        verify=True,
        images=decode,
        headers=not decode,
        max_pixels=max_pixels,
        each=lambda located: keys.append(hash64(located.key)),
    )
    unusable = frozenset(found.unusable)
    return CheckedShard(path, expected, found.entry, found.problems, unusable, np.array(keys, np.uint64))


def _keys_in_several(shards: Sequence[CheckedShard]) -> Iterator[Rejection]:
    """Keys that shards share. Their samples can be used, but whatever goes by keys takes them for one."""
    if not shards:
        return
    values, counts = np.unique(np.concatenate([np.unique(shard.keys) for shard in shards]), return_counts=True)
    shared = set(values[counts > 1].tolist())
    first: dict[str, Path] = {}
    for shard in shards:
        if shared.isdisjoint(shard.keys.tolist()):
            continue
        with Archive(shard.path) as archive:
            offsets = {located.key: located.offset for located in Layout(archive) if hash64(located.key) in shared}
        for key, offset in offsets.items():
            if first.setdefault(key, shard.path) != shard.path:
                name = f"{shard.path}/{key}"
                detail = f"{name}: {first[key]} has this key too; `mm shards check --repair` gives it another"
                yield Rejection(name, key, KEY_IN_SEVERAL, detail, 0, offset)
