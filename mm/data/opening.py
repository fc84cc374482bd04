"""From what a user names to shards that are known to be sound, and which of their samples can be used."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np

from mm.data.remote.cache import ShardCache
from mm.data.remote.folders import remote_manifest
from mm.data.samples import Need, Rejection, Tally
from mm.data.shards.finding import is_remote
from mm.data.shards.inspection import FAULTS, Inspection
from mm.data.shards.layout import MISSING_CAPTION
from mm.data.shards.manifest import Inspect, Manifest, ManifestEntry
from mm.data.shards.reading import IndexedShards
from mm.errors import UsageError

Sources = str | Sequence[str] | Mapping[str, float]


def expand(sources: Sources) -> list[str]:
    """Expands shell patterns in paths of shards, in sorted order. A path that exists is no pattern, nor is an address.

    Raises:
        UsageError: a pattern matches nothing.
    """
    paths: list[str] = []
    for source in [sources] if isinstance(sources, str) else sources:
        if is_remote(source):
            paths.append(source)
            continue
        pattern = glob.has_magic(source) and not Path(source).exists()
        found = sorted(glob.glob(source)) if pattern else [source]  # noqa: PTH207
        if not found:
            raise UsageError(f"{source}: matches no shard")
        paths += found
    return paths


def weighted(sources: Sources) -> TypeGuard[Mapping[str, float]]:
    """Whether sources come with weights."""
    return isinstance(sources, Mapping)


def find_manifest(sources: Sources, cache: ShardCache | None = None, inspect: Inspect | None = None) -> Manifest:
    """The manifest of all shards that are named: folders, shards, patterns of them, and remote ones.

    Args:
        sources: one or several.
        cache: where remote shards are kept; None for the default place.
        inspect: how local shards that no manifest lists are looked through, as ``Manifest.of`` has it.

    Raises:
        UsageError: a path doesn't exist, a pattern matches nothing, or remote shards have no manifest.
        DataError: a ``manifest.json`` is there but wrong, or can't be fetched.
    """
    entries: list[ManifestEntry] = []
    for remote, names in itertools.groupby(expand(sources), is_remote):
        if not remote:
            entries += Manifest.of(list(names), inspect).shards
            continue
        for name in names:
            entries += remote_manifest(name, cache or ShardCache()).shards
    return Manifest(entries)


def unusable_samples(
    shards: IndexedShards, inspections: Sequence[Inspection | None], need: Need, tally: Tally
) -> np.ndarray:
    """Finds the samples that can't be used, and counts all of them.

    Args:
        shards: the shards.
        inspections: what was found in each of them; None for one that isn't known yet.
        need: what a sample must have.
        tally: takes up how many can be used, and why others can't.

    Returns:
        (n,) sorted indices into ``shards``.
    """
    unusable: list[int] = []
    start = 0
    for shard, inspection in zip(shards.manifest.shards, inspections, strict=True):
        if inspection is not None:
            known = {place for place in inspection.unusable if place < shard.nsamples}  # others aren't in the manifest
            unusable += [start + place for place in known]
            tally.rejections += inspection.problems
            for place, lack in _lacking(inspection, need):
                if place < shard.nsamples and place not in known:
                    unusable.append(start + place)
                    name = shards.name(start + place)
                    detail = f"{name}: {lack}"
                    tally.reject(Rejection(name, shards.key(start + place), MISSING_CAPTION, detail))
        start += shard.nsamples
    tally.use(start - len(unusable))
    return np.asarray(sorted(unusable), np.int64)


def _lacking(inspection: Inspection, need: Need) -> Iterator[tuple[int, str]]:
    lacks = {languages: need.lack(languages.split()) for languages in set(inspection.languages)}
    if any(lacks.values()):
        for place, languages in enumerate(inspection.languages):
            if lack := lacks[languages]:
                yield place, lack


def faults(rejections: Sequence[Rejection]) -> list[Rejection]:
    """Those rejections that mean that a shard can't be trusted."""
    return [rejection for rejection in rejections if rejection.reason in FAULTS]
