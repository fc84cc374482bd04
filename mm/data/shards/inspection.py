"""What was found in a shard as a whole, before anything is made of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mm.data.images import DEFAULT_MAX_PIXELS
from mm.data.samples import Rejection
from mm.data.shards.archive import CHANGED, MISSING, UNREADABLE
from mm.data.shards.layout import (
    DUPLICATE_KEY,
    DUPLICATE_MEMBER,
    FEWER,
    HASH_DIFFERS,
    LARGER,
    MORE,
    NO_IMAGE,
    NOT_ADJACENT,
    disagreement,
)
from mm.data.shards.manifest import ManifestEntry
from mm.data.shards.tar import CORRUPT, CUT, EMPTY, NOT_A_TAR
from mm.errors import ShardError

# An archive with one of these can't be trusted as a whole.
FAULTS = frozenset(
    (
        *(MISSING, UNREADABLE, CHANGED, EMPTY, NOT_A_TAR, CORRUPT, CUT),
        *(FEWER, MORE, LARGER, HASH_DIFFERS),
        *(DUPLICATE_MEMBER, DUPLICATE_KEY, NOT_ADJACENT, NO_IMAGE),
    )
)


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
