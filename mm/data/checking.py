"""Shards checked from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mm.data.images import DEFAULT_MAX_PIXELS, decode_image, open_image
from mm.data.manifest import ManifestEntry, find_entry, hash_file, is_manifest, list_shards
from mm.data.reading import read_shard
from mm.data.samples import Rejection, Sample, Tally
from mm.errors import DataError, ImageError, ShardError, UsageError


@dataclass
class ShardReport:
    """What ``check_shards`` found.

    Args:
        shards: number of shards, missing ones too.
        tally: samples that can be used, and everything that is wrong.
    """

    shards: int = 0
    tally: Tally = field(default_factory=Tally)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.tally.ok

    @property
    def samples(self) -> int:
        """How many samples can be used."""
        return self.tally.used

    @property
    def problems(self) -> list[Rejection]:
        """Everything that is wrong."""
        return self.tally.rejections


def check_shards(
    path: str | Path,
    progress: Callable[[int], None] | None = None,
    captions: bool = False,
    decode: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> ShardReport:
    """Checks shards: framing, hashes, counts, captions, keys that occur twice, and images.

    Args:
        path: a folder of shards, or one shard; its manifest is used where there is one.
        progress: called with the number of samples just checked.
        captions: whether every sample must have a caption.
        decode: whether images are decoded as a whole, and not only their headers.
        max_pixels: the most pixels an image may have.

    Raises:
        UsageError: there is no such path, or no shards in it.
    """
    path = Path(path)
    report = ShardReport()
    shards = _shards(path, report)
    keys: set[str] = set()
    for shard, expected in shards:
        report.shards += 1
        damaged = False
        for item in read_shard(shard, expected, captions):
            problem = item if isinstance(item, Rejection) else _check(item, keys, decode, max_pixels)
            if problem is None:
                report.tally.use()
            else:
                damaged |= not problem.key
                report.tally.reject(problem)
            if progress is not None:
                progress(1 if problem is None else problem.samples)
        if not damaged and expected is not None and expected.sha256 is not None:
            _check_hash(expected, expected.sha256, report)
    return report


def _shards(path: Path, report: ShardReport) -> list[tuple[Path, ManifestEntry | None]]:
    if path.is_dir():
        shards, problems = list_shards(path)
        report.tally.rejections += problems
        if not shards:
            raise UsageError(f"{path}: holds no .tar shards; `mm shards make` makes them from images")
        if is_manifest(path / "manifest.json") and not problems:
            for shard, expected in shards:
                if expected is None:
                    detail = f"{shard}: isn't listed in manifest.json"
                    report.tally.reject(Rejection(str(shard), "", "shard not in the manifest", detail, 0))
        return shards
    if not path.is_file():
        raise UsageError(f"{path}: doesn't exist; give a folder of shards or a .tar file")
    try:
        return [(path, find_entry(path))]
    except DataError as error:
        report.tally.reject(Rejection.of(error, str(path.parent / "manifest.json"), samples=0))
        return [(path, None)]


def _check(sample: Sample, keys: set[str], decode: bool, max_pixels: int) -> Rejection | None:
    """What is wrong with a sample, if anything."""
    if sample.key in keys:
        detail = f"{sample.source}: the key {sample.key!r} occurred before; keys must differ"
        return Rejection(sample.source, sample.key, "duplicate key", detail)
    keys.add(sample.key)
    try:
        if decode:
            decode_image(sample.image, sample.source, max_pixels)
        else:
            open_image(sample.image, sample.source, max_pixels)
    except ImageError as error:
        return Rejection.of(error, sample.source, sample.key)
    return None


def _check_hash(expected: ManifestEntry, sha256: str, report: ShardReport) -> None:
    try:
        if hash_file(expected.path) != sha256:
            raise ShardError(f"{expected.path}: its SHA-256 isn't the manifest's; get it again", "shard hash differs")
    except ShardError as error:
        report.tally.reject(Rejection.of(error, str(expected.path), samples=0))
