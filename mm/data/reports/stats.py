"""What shards hold, counted in one pass: images, captions, vocabulary, duplicates and problems."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mm.data.hashes import hash64
from mm.data.images import DEFAULT_MAX_PIXELS, open_image
from mm.data.parallel import map_in_processes, process_count
from mm.data.reports.page import small_jpeg
from mm.data.rgb import upright_size
from mm.data.samples import Sample
from mm.data.shards.finding import Shard
from mm.data.shards.reading import read_shard
from mm.errors import ImageError

T = TypeVar("T")

EXAMPLES = 24
"""Samples that a page shows."""

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"(?:(?![{_IDEOGRAPH}])[^\W_])"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|{_LETTER}+(?:['’-]{_LETTER}+)*")


@dataclass
class CaptionStatistics:
    """The captions in one language; lengths are in words, and in characters where a language writes no spaces."""

    samples: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    per_sample: Counter[int] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    digests: list[np.ndarray] = field(default_factory=list)

    def add(self, captions: Sequence[str]) -> None:
        """Counts the captions of one sample."""
        self.samples += 1
        self.per_sample[len(captions)] += 1
        for caption in captions:
            words = words_of(caption)
            self.lengths[len(words)] += 1
            self.words.update(words)
        self.digests.append(np.array([hash64(caption) for caption in captions], np.uint64))

    def merge(self, other: CaptionStatistics) -> None:
        """Counts what another one counted."""
        self.samples += other.samples
        self.lengths += other.lengths
        self.per_sample += other.per_sample
        self.words.update(other.words)
        self.digests += other.digests


@dataclass
class Statistics:
    """What was counted.

    Args:
        shards: how many shards.
        bytes: their size.
        samples: how many samples can be used.
        problems: samples that can't, by reason.
        formats: images by format.
        sizes: images by (width, height) in pixels, upright.
        file_sizes: images by the size of their file in KiB, rounded up.
        captions: by language.
        uncaptioned: samples without any caption.
        digests: (n,) uint64 arrays over the files of images.
        examples: the place of some samples, by a hash of the key, and the samples.
    """

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    file_sizes: Counter[int] = field(default_factory=Counter)
    captions: dict[str, CaptionStatistics] = field(default_factory=dict)
    uncaptioned: int = 0
    digests: list[np.ndarray] = field(default_factory=list)
    examples: list[tuple[int, Sample]] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """How many samples can't be used."""
        return self.problems.total()

    def add(self, sample: Sample, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        """Counts a sample.

        Raises:
            ImageError: its image has no header that can be read, or too many pixels.
        """
        image = open_image(sample.image, sample.source, max_pixels)
        self.samples += 1
        self.formats[image.format or "?"] += 1
        self.sizes[upright_size(image)] += 1
        self.file_sizes[-(-len(sample.image) // 1024)] += 1
        self.uncaptioned += not sample.captions
        for language, captions in sample.captions.items():
            self.captions.setdefault(language, CaptionStatistics()).add(captions)
        self.digests.append(np.array([hash64(sample.image)], np.uint64))

    def show(self, sample: Sample) -> None:
        """Keeps a sample as an example where it is among the 24 that come first by the hash of their key."""
        place = hash64(sample.key)
        if len(self.examples) < EXAMPLES or place < self.examples[-1][0]:
            self.examples = heapq.nsmallest(EXAMPLES, [*self.examples, (place, sample)], key=_place)

    def merge(self, other: Statistics) -> None:
        """Counts what another one counted."""
        self.shards += other.shards
        self.bytes += other.bytes
        self.samples += other.samples
        self.uncaptioned += other.uncaptioned
        for mine, its in (
            (self.problems, other.problems),
            (self.formats, other.formats),
            (self.sizes, other.sizes),
            (self.file_sizes, other.file_sizes),
        ):
            mine.update(its)  # type: ignore[arg-type]
        for language, captions in other.captions.items():
            self.captions.setdefault(language, CaptionStatistics()).merge(captions)
        self.digests += other.digests
        self.examples = heapq.nsmallest(EXAMPLES, self.examples + other.examples, key=_place)


def count_shards(
    shards: Sequence[Shard],
    progress: Callable[[int], None] | None = None,
    examples: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    workers: int | None = None,
) -> Statistics:
    """Counts what shards hold, several shards at once.

    Args:
        shards: the tar files, each with what a manifest says about it, if anything.
        progress: called with the number of samples of each shard that was read.
        examples: whether some samples are kept, with their images scaled down.
        max_pixels: the most pixels an image may have.
        workers: how many processes; as many as pay if None.
    """
    count = partial(_count_shard, examples=examples, max_pixels=max_pixels)
    total = Statistics()
    for part in map_in_processes(count, shards, workers or process_count([path for path, _ in shards])):
        total.merge(part)
        if progress is not None:
            progress(part.samples + part.rejected)
    return total


def words_of(caption: str) -> list[str]:
    """The words of a caption in lower case; each Chinese or Japanese character is one."""
    return _WORD.findall(caption.lower())


def figures(counted: Statistics, frequent: int = 25) -> dict[str, Any]:
    """The figures that statistics come down to, as JSON values.

    Args:
        counted: the statistics.
        frequent: how many of the most frequent words and sizes are listed.
    """
    sizes = counted.sizes
    return {
        "shards": counted.shards,
        "bytes": counted.bytes,
        "samples": counted.samples,
        "rejected": counted.rejected,
        "problems": dict(counted.problems.most_common()),
        "images": {
            "formats": dict(counted.formats.most_common()),
            "width": spread(_counted(sizes, lambda size: size[0])),
            "height": spread(_counted(sizes, lambda size: size[1])),
            "sizes": {f"{width} x {height}": count for (width, height), count in sizes.most_common(frequent)},
            "aspect_ratios": {str(ratio): count for ratio, count in sorted(aspect_ratios(counted).items())},
            "kibibytes": spread(counted.file_sizes),
            "duplicates": duplicates(counted.digests),
        },
        "uncaptioned": counted.uncaptioned,
        "captions": {language: _caption_figures(its, frequent) for language, its in sorted(counted.captions.items())},
    }


def aspect_ratios(counted: Statistics) -> Counter[float]:
    """Images by width over height, to a tenth."""
    return _counted(counted.sizes, lambda size: round(size[0] / size[1], 1))


def longer_sides(counted: Statistics) -> Counter[int]:
    """Images by their longer side in pixels."""
    return _counted(counted.sizes, max)


def duplicates(digests: Sequence[np.ndarray]) -> int:
    """How many of the things that digests stand for repeat an earlier one."""
    if not digests:
        return 0
    joined = np.concatenate(digests)
    return len(joined) - len(np.unique(joined))


def spread(counts: Counter[int]) -> dict[str, int | float] | None:
    """The smallest, middle and largest of values that were counted, and their mean; None where there are none."""
    total = counts.total()
    if not total:
        return None
    values = sorted(counts)
    passed = np.cumsum([counts[value] for value in values])
    median = values[int(np.searchsorted(passed, (total + 1) // 2))]
    mean = sum(value * count for value, count in counts.items()) / total
    return {"least": values[0], "median": median, "mean": round(mean, 2), "most": values[-1]}


def _caption_figures(counted: CaptionStatistics, frequent: int) -> dict[str, Any]:
    return {
        "captions": counted.lengths.total(),
        "samples": counted.samples,
        "per_sample": {str(count): samples for count, samples in sorted(counted.per_sample.items())},
        "length": spread(counted.lengths),
        "words": counted.words.total(),
        "vocabulary": len(counted.words),
        "once": sum(count == 1 for count in counted.words.values()),
        "frequent": dict(counted.words.most_common(frequent)),
        "duplicates": duplicates(counted.digests),
    }


def _counted(sizes: Counter[tuple[int, int]], what: Callable[[tuple[int, int]], T]) -> Counter[T]:
    counts: Counter[T] = Counter()
    for size, count in sizes.items():
        counts[what(size)] += count
    return counts


def _count_shard(shard: Shard, examples: bool, max_pixels: int) -> Statistics:
    path, expected = shard
    counted = Statistics(shards=1, bytes=path.stat().st_size if path.is_file() else 0)
    for item in read_shard(path, expected):
        if not isinstance(item, Sample):
            counted.problems[item.reason] += item.samples
            continue
        try:
            counted.add(item, max_pixels)
        except ImageError as error:
            counted.problems[error.reason] += 1
            continue
        if examples:
            counted.show(item)
    counted.examples = [shown for example in counted.examples if (shown := _scaled_down(example, max_pixels))]
    counted.digests = _joined(counted.digests)
    for captions in counted.captions.values():
        captions.digests = _joined(captions.digests)
    return counted


def _joined(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate(arrays)] if arrays else []


def _scaled_down(example: tuple[int, Sample], max_pixels: int) -> tuple[int, Sample] | None:
    """An example with its image scaled down; None where that can't be decoded."""
    place, sample = example
    try:
        return place, replace(sample, image=small_jpeg(sample.image, sample.source, max_pixels))
    except ImageError:
        return None


def _place(example: tuple[int, Sample]) -> int:
    return example[0]
