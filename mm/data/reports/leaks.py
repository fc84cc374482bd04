"""Near-duplicate images: photos of one split that are in another one too, perhaps resized, re-encoded or mirrored.

An image is scaled to a thumbnail of 16 x 16 grey pixels. Its perceptual hash has 64 bits, the signs of the thumbnail's
lowest frequencies (a discrete cosine transform) relative to their median. Images whose hashes differ in few bits are
candidates, and are compared by the correlation of their thumbnails. (Zauner, "Implementation and Benchmarking of
Perceptual Image Hash Functions", 2010, describes hashes of this kind.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mm.data.hashes import hash64
from mm.data.images import DEFAULT_MAX_PIXELS, decode_small
from mm.data.parallel import map_in_processes, process_count
from mm.data.samples import Rejection, Sample
from mm.data.shards.reading import read_shard
from mm.errors import ImageError

SAME, NEAR, MIRRORED = "same file", "near-duplicate", "mirrored"

LARGEST_DISTANCE = 14
"""Bits of 64 in which the hashes of near-duplicates may differ."""
LEAST_CORRELATION = {NEAR: 0.9, MIRRORED: 0.95}
"""Of the thumbnails of near-duplicates."""

_SIDE = 16
_FREQUENCIES = 8
_LEAST_CONTRAST = 4.0  # standard deviation in levels of 256: what is below is noise
_QUERIES = 64
_PAIRS = 1 << 14


@dataclass(frozen=True)
class Fingerprints:
    """What images are compared by.

    Args:
        samples: shard and key of each of n images.
        thumbnails: (n, 16, 16) uint8, grey.
        digests: (n,) uint64 hashes of the files.
        rejections: what couldn't be read.
    """

    samples: list[tuple[Path, str]]
    thumbnails: np.ndarray
    digests: np.ndarray
    rejections: list[Rejection]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Leak:
    """An image of the test split, and the most similar one of the training split.

    Args:
        train: shard and key.
        test: shard and key.
        kind: ``SAME``, ``NEAR`` or ``MIRRORED``.
        distance: bits of 64 in which the hashes differ.
        correlation: of the thumbnails.
        others: how many other images of the training split are near-duplicates of this test image.
    """

    train: tuple[Path, str]
    test: tuple[Path, str]
    kind: str
    distance: int
    correlation: float
    others: int = 0

    def document(self) -> dict[str, Any]:
        """The leak as JSON values."""
        return {
            "train": _named(self.train),
            "test": _named(self.test),
            "kind": self.kind,
            "distance": self.distance,
            "correlation": round(self.correlation, 4),
            "others": self.others,
        }


class _Match(NamedTuple):
    """An image of the training split that a test image resembles."""

    correlation: float
    distance: int
    number: int
    kind: str


def fingerprint_shards(
    shards: Sequence[Path],
    progress: Callable[[int], None] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Fingerprints:
    """Reads all images of shards, several shards at once.

    Args:
        shards: the tar files.
        progress: called with the number of images of each shard that was read.
        max_pixels: the most pixels an image may have.
    """
    fingerprint = partial(_fingerprint_shard, max_pixels=max_pixels)
    parts = []
    for part in map_in_processes(fingerprint, shards, process_count(shards)):
        parts.append(part)
        if progress is not None:
            progress(len(part) + len(part.rejections))
    return Fingerprints(
        [sample for part in parts for sample in part.samples],
        np.concatenate([part.thumbnails for part in parts]),
        np.concatenate([part.digests for part in parts]),
        [rejection for part in parts for rejection in part.rejections],
    )


def thumbnail_of(image: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Scales an image to (16, 16) uint8 grey pixels, upright; a JPEG is decoded at a fraction of its size.

    Raises:
        ImageError: it can't be decoded.
    """
    grey = decode_small(image, 4 * _SIDE, name, max_pixels).convert("L")
    return np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """The perceptual hashes of thumbnails: (n, 16, 16) to (n, 8) uint8, 64 bits each."""
    waves = np.cos(np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(_SIDE) + 0.5))
    spectrum = waves @ thumbnails.astype(np.float64) @ waves.T
    lowest = spectrum.reshape(-1, _FREQUENCIES**2)
    threshold = np.median(lowest[:, 1:], axis=1, keepdims=True)  # the first is the brightness
    return np.packbits(lowest > threshold, axis=1)


def find_leaks(train: Fingerprints, test: Fingerprints, progress: Callable[[int], None] | None = None) -> list[Leak]:
    """Finds the images of the test split that the training split holds too, in the test split's order.

    Scaling, re-encoding, brightness, contrast, colours, mirroring, and cuts or turns of a few per cent don't matter. An
    image of nearly one colour is only found as the same file.

    Args:
        train: the images of the training split.
        test: those of the test split.
        progress: called with the number of test images just compared.
    """
    return _find(train, test, progress, earlier=False)


def find_repeats(images: Fingerprints, progress: Callable[[int], None] | None = None) -> list[Leak]:
    """Finds the images of a split that repeat an earlier one of it, as ``find_leaks`` does between splits.

    Args:
        images: all of them; each is compared with all before it.
        progress: called with the number of images just compared.
    """
    return _find(images, images, progress, earlier=True)


def _find(train: Fingerprints, test: Fingerprints, progress: Callable[[int], None] | None, earlier: bool) -> list[Leak]:
    if not len(train):
        return []
    import faiss

    index = faiss.IndexBinaryFlat(8 * _FREQUENCIES)
    index.add(_hashes(train.thumbnails))
    same = _same_files(train, test)
    leaks = []
    for start in range(0, len(test), _QUERIES):
        numbers = range(start, min(start + _QUERIES, len(test)))
        found: dict[int, list[_Match]] = {number: [] for number in numbers}
        for kind in (NEAR, MIRRORED):
            thumbnails = test.thumbnails[start : numbers.stop]
            thumbnails = thumbnails[:, :, ::-1] if kind == MIRRORED else thumbnails
            for query, match in _matches(index, train.thumbnails, thumbnails, kind):
                if not earlier or match.number < start + query:
                    found[start + query].append(match)
        for number in numbers:
            copy = same.get(number)
            leaks += _leak(train, test, number, found[number], None if earlier and copy == number else copy)
        if progress is not None:
            progress(len(numbers))
    return leaks


def _fingerprint_shard(path: Path, max_pixels: int) -> Fingerprints:
    samples: list[tuple[Path, str]] = []
    thumbnails: list[np.ndarray] = []
    digests: list[int] = []
    rejections: list[Rejection] = []
    for item in read_shard(path):
        if isinstance(item, Sample):
            try:
                thumbnails.append(thumbnail_of(item.image, item.source, max_pixels))
            except ImageError as error:
                rejections.append(Rejection.of(error, item.source, item.key))
                continue
            samples.append((path, item.key))
            digests.append(hash64(item.image))
        else:
            rejections.append(item)
    stacked = np.stack(thumbnails) if thumbnails else np.empty((0, _SIDE, _SIDE), np.uint8)
    return Fingerprints(samples, stacked, np.array(digests, np.uint64), rejections)


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hashes of many thumbnails, in blocks."""
    blocks = (thumbnails[start : start + _PAIRS] for start in range(0, len(thumbnails), _PAIRS))
    return np.concatenate([hash_thumbnails(block) for block in blocks])


def _normalized(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails as (n, 256) float32 of mean 0 and variance 1, or less where there is hardly any contrast."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(flat.std(axis=1, keepdims=True), _LEAST_CONTRAST)


def _matches(index: Any, train: np.ndarray, queries: np.ndarray, kind: str) -> Iterator[tuple[int, _Match]]:
    """Which queries match which images of the training split: hashes are close, and thumbnails correlate."""
    limits, distances, numbers = index.range_search(hash_thumbnails(queries), LARGEST_DISTANCE + 1)
    which = np.repeat(np.arange(len(queries)), np.diff(limits.astype(np.int64)))
    normalized = _normalized(queries)
    for start in range(0, len(which), _PAIRS):
        block = slice(start, start + _PAIRS)
        correlations = (normalized[which[block]] * _normalized(train[numbers[block]])).mean(axis=1)
        for place in np.flatnonzero(correlations >= LEAST_CORRELATION[kind]):
            at = start + int(place)
            yield int(which[at]), _Match(float(correlations[place]), int(distances[at]), int(numbers[at]), kind)


def _same_files(train: Fingerprints, test: Fingerprints) -> dict[int, int]:
    """Test images whose files occur in the training split: number in the one to number in the other."""
    digests, first = np.unique(train.digests, return_index=True)
    places = np.searchsorted(digests, test.digests).clip(max=len(digests) - 1)
    return {int(at): int(first[places[at]]) for at in np.flatnonzero(digests[places] == test.digests)}


def _leak(train: Fingerprints, test: Fingerprints, number: int, found: list[_Match], same: int | None) -> list[Leak]:
    """The leak of one test image, if it is one."""
    if same is not None:
        nearest = _Match(1.0, 0, same, SAME)
    elif found:
        nearest = max(found, key=lambda match: (match.correlation, -match.distance))
    else:
        return []
    others = len({match.number for match in found} - {nearest.number})
    pair = train.samples[nearest.number], test.samples[number]
    return [Leak(*pair, nearest.kind, nearest.distance, nearest.correlation, others)]


def _named(sample: tuple[Path, str]) -> str:
    return f"{sample[0]}/{sample[1]}"
