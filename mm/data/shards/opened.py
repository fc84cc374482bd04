"""Shards that are open: the files of some, and the headers of many more."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mm.data.shards.archive import MISSING, UNREADABLE, Archive, changed
from mm.data.shards.inspecting import inspect_shards
from mm.data.shards.inspection import FileState, Inspection
from mm.data.shards.known import KnownShards
from mm.data.shards.layout import HASH_DIFFERS, Layout, disagreement
from mm.data.shards.manifest import ManifestEntry
from mm.errors import ShardError

OPEN_SHARDS = 128
KEPT_SAMPLES = 1 << 20  # whose headers stay in memory, at 150 bytes each
REFETCHES = 3  # how often a remote shard may vanish before it is open

_PASSING = (MISSING, UNREADABLE)

Fetch = Callable[[ManifestEntry], Path]


class OpenShard(NamedTuple):
    """A shard that is open.

    ``digests`` are 8 bytes for each sample, or None where the shard wasn't verified.
    """

    archive: Archive
    layout: Layout
    digests: bytes | None


class OpenShards:
    """Opens shards when they are asked for, and closes those that weren't for longest.

    A shard's headers are read when it is first opened, and again when its file has changed or the headers of many
    others were read since. A shard that can't be fetched or is damaged fails again without a further attempt. Instances
    can be pickled, forked and shared between threads.

    Args:
        entries: what the manifest says about the shards.
        inspections: what was found in each shard; None for what nobody looked at.
        fetch: makes a remote shard local, and says where it lies.
        verify: whether a remote shard that nobody looked at is compared with its SHA-256. A copy that differs is
            fetched again, once.
    """

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        inspections: Sequence[Inspection | None] | None = None,
        fetch: Fetch | None = None,
        verify: bool = False,
    ) -> None:
        self._arguments = (entries, inspections, fetch, verify)
        self._failed: dict[int, tuple[str, str, int | None]] = {}
        self._opened = functools.lru_cache(OPEN_SHARDS)(_Opener(*self._arguments, self._failed))

    def __reduce__(self) -> tuple[type[OpenShards], tuple[object, ...]]:
        return OpenShards, self._arguments

    def __getitem__(self, number: int) -> OpenShard:
        """Opens a shard, unless it is open.

        Raises:
            ShardError: it is damaged, missing or changed, or can't be read or fetched.
        """
        if number in self._failed:
            raise ShardError(*self._failed[number])
        try:
            return self._opened(number)
        except ShardError as error:
            if error.reason not in _PASSING:
                self._failed[number] = (str(error), error.reason, error.offset)
            raise


class _Kept(NamedTuple):
    """What is known of a shard's content as long as its file is in a state."""

    state: FileState
    layout: Layout
    digests: bytes | None


class _Opener:
    """Opens a shard, with what was kept of its content if it was open before; notes those that can't be fetched."""

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        inspections: Sequence[Inspection | None] | None,
        fetch: Fetch | None,
        verify: bool,
        failed: dict[int, tuple[str, str, int | None]],
    ) -> None:
        self._entries, self._inspections, self._fetch, self._verify = entries, inspections, fetch, verify
        self._failed = failed
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        samples = sum(entry.nsamples for entry in entries)
        self._most = max(1, KEPT_SAMPLES * len(entries) // max(1, samples))

    def __call__(self, number: int) -> OpenShard:
        """Opens a shard; a remote one again, where another process makes room between the fetch and that."""
        refetched = False
        for _ in range(REFETCHES - 1):
            try:
                return self._open(number)
            except ShardError as error:
                differs = error.reason == HASH_DIFFERS and not refetched
                if self._entries[number].remote is None or number in self._failed:
                    raise
                if error.reason != MISSING and not differs:
                    raise
                refetched = refetched or differs
        return self._open(number)

    def _open(self, number: int) -> OpenShard:
        entry = self._entries[number]
        path = self._local(number, entry)
        archive = Archive(path, entry.name)
        state = FileState.of(archive.stat)
        kept = self._kept.get(number)
        if kept is None or kept.state != state:
            kept = _Kept(state, *self._content(number, archive, path))
            self._kept.pop(number, None)
            self._kept[number] = kept
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return OpenShard(archive, kept.layout, kept.digests)

    def _local(self, number: int, entry: ManifestEntry) -> Path:
        if entry.remote is None or self._fetch is None:
            return entry.path
        try:
            return self._fetch(entry)
        except ShardError as error:
            self._failed[number] = (str(error), error.reason, error.offset)
            raise

    def _content(self, number: int, archive: Archive, path: Path) -> tuple[Layout, bytes | None]:
        """Reads a shard's headers, and holds them against what was found when it was inspected, or the manifest."""
        entry = self._entries[number]
        found = self._inspections[number] if self._inspections is not None else None
        if found is None and self._verify and entry.remote is not None:
            found = _verified(archive, entry, path)
        layout = Layout(archive)
        if found is None:
            problem = fault(archive, layout, entry)
        elif (archive.size, len(layout)) != (found.entry.bytes, found.entry.nsamples):
            passing = layout.damage is not None and layout.damage.reason in _PASSING
            problem = fault(archive, layout, entry) if passing else changed(entry.name)
        else:
            problem = None
        if problem is not None:
            raise problem
        return layout, None if found is None else found.digests


def fault(archive: Archive, layout: Layout, entry: ManifestEntry) -> ShardError | None:
    """What is wrong with a shard as a whole, if anything."""
    if layout.damage is not None:
        return ShardError(str(layout.damage), layout.damage.reason, layout.damage.offset)
    return disagreement(layout.name, ManifestEntry(entry.url, entry.path, len(layout), archive.size), entry)


def _verified(archive: Archive, entry: ManifestEntry, path: Path) -> Inspection:
    """Inspects the copy of a remote shard, unless a process on this machine has; removes one that differs.

    Raises:
        ShardError: it differs from the manifest's SHA-256, or is damaged.
    """
    with archive.locked():
        copy = replace(entry, path=path)
        (found,) = inspect_shards([copy], captions=False, verify=True, known=KnownShards())
    if found.entry.sha256 not in (None, entry.sha256):
        with suppress(OSError):  # a cache that may only be read
            path.unlink(missing_ok=True)
        raise ShardError(f"{entry.name}: its copy {path} differs from the manifest's SHA-256", HASH_DIFFERS)
    found.raise_fault()
    return found
