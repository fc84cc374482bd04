"""Clean shards written from damaged ones, with a list of everything that was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mm.data.reports.checking import CheckedShard, ShardReport
from mm.data.samples import Rejection, Sample, Tally, rejection_line
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import read_shard
from mm.data.shards.writing import NO_SAMPLES, write_shards
from mm.errors import DataError, OutputError, ShardError
from mm.files import write_whole

REJECTS_NAME = "rejects.jsonl"


@dataclass(frozen=True)
class Repair:
    """What ``repair_shards`` did.

    Args:
        manifest: of the shards written; None where no sample was left to write.
        tally: samples written, and what was left out.
        rejects: the file that lists what was left out.
    """

    manifest: Manifest | None
    tally: Tally
    rejects: Path


def repair_shards(report: ShardReport, out: str | Path, progress: Callable[[int], None] | None = None) -> Repair:
    """Writes every sample that can be trusted to new shards, in the same order, and what can't be to a list.

    Of an archive that is cut or corrupt, the samples before the damage are kept. A well-formed archive that isn't the
    one its manifest describes, by its SHA-256, size or number of samples, is left out as a whole: there is no telling
    which of its samples are still right. A key that several shards have gets a number.

    Args:
        report: what is wrong with the shards.
        out: the folder for the new shards, their manifest and ``rejects.jsonl``; must hold no shards.
        progress: called with 1 for each sample, written or left out.

    Returns:
        Samples written and left out add up to those that the shards have or were to have.

    Raises:
        OutputError: the folder can't be written to, or holds shards.
        ShardError: writing failed.
    """
    out = Path(out)
    tally = Tally()
    for problem in report.others:
        tally.reject(problem)
    items = (item for shard in report.shards for item in _sorted_out(shard))
    manifest = None
    try:
        manifest = write_shards(items, out, progress=progress, tally=tally)
    except ShardError:  # writing failed
        raise
    except DataError as error:  # no sample was left to write
        if error.reason != NO_SAMPLES:
            raise
    rejects = out / REJECTS_NAME
    try:
        write_whole(rejects, "".join(map(rejection_line, tally.rejections)).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{rejects}: can't be written ({error.strerror})") from error
    return Repair(manifest, tally, rejects)


def _sorted_out(shard: CheckedShard) -> Iterator[Sample | Rejection]:
    """The samples of a shard that can be trusted, and rejections for the others."""
    yield from shard.problems
    for place, item in enumerate(read_shard(shard.path)):
        if place < shard.found.nsamples and place not in shard.unusable:
            yield item
