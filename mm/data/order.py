"""The order of training samples: a pure function of the seed, the epoch and the sizes of the shards.

An epoch is a sequence of all samples. A position in training is one integer, the number of samples that were
accounted for since its start, whatever the number of ranks, of workers or of samples in a batch: in the epoch
``position // total``, all samples before ``position % total`` are done with.

Samples are shuffled in blocks, so that shards are read in stretches and not sample by sample: the shards of a source
are put in a random order, and taken in groups; the blocks of a group's shards are put in a random order, and then the
samples within windows of them. Blocks of one sample are a full shuffle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mm.errors import OptionError

BLOCK = 16  # neighbouring samples of a shard that stay close together
WINDOW = 2048  # samples that are shuffled among each other in the end, beginning with the blocks' order
GROUP = 32  # shards that are read at the same time
MIXED_AT_ONCE = 1 << 16  # samples of weighted sources that are mixed together


class Place(NamedTuple):
    """Which sample comes at some position: how often it came before, and its index among all samples."""

    epoch: int
    index: int  # type: ignore[assignment]  # tuple.index isn't used


class Stretch(NamedTuple):
    """Some neighbouring places of an epoch: epochs of the samples' own source and indices, (n,) int64 each."""

    epochs: np.ndarray
    indices: np.ndarray


class Source:
    """Shards that are shuffled together.

    Args:
        sizes: number of samples of each shard.
        first: index of the first sample among those of all sources.
        seed: what the order depends on, with the epoch.
        block: how many neighbouring samples of a shard stay close together; 1 for a full shuffle.
    """

    def __init__(self, sizes: Sequence[int], first: int, seed: Sequence[int], block: int = BLOCK) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.total = int(self.sizes.sum())
        self._starts = first + np.cumsum(self.sizes) - self.sizes
        self._seed = tuple(seed)
        self._block = block

    def walk(self, position: int) -> Iterator[Stretch]:
        """Walks through the source's endless sequence, one epoch after another, from a position on."""
        epoch, start = divmod(position, self.total)
        while True:
            for indices in self._epoch(epoch, start):
                yield Stretch(np.full(len(indices), epoch), indices)
            epoch, start = epoch + 1, 0

    def _epoch(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Gives the samples of an epoch from one on, group by group."""
        if self._block == 1:
            yield (self._starts[0] + self._random(epoch, 0).permutation(self.total))[start:]
            return
        order = self._random(epoch, 0).permutation(len(self.sizes))
        for number, at in enumerate(range(0, len(order), GROUP)):
            shards = order[at : at + GROUP]
            count = int(self.sizes[shards].sum())
            if start < count:
                yield self._group(shards, self._random(epoch, 1 + number))[start:]
            start = max(0, start - count)

    def _group(self, shards: np.ndarray, random: np.random.Generator) -> np.ndarray:
        blocks = [
            (self._starts[shard] + at, min(self._block, self.sizes[shard] - at))
            for shard in shards
            for at in range(0, int(self.sizes[shard]), self._block)
        ]
        firsts, lengths = np.asarray(blocks, np.int64).reshape(-1, 2)[random.permutation(len(blocks))].T
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        samples = np.repeat(firsts, lengths) + within
        for at in range(0, len(samples), WINDOW):
            samples[at : at + WINDOW] = random.permutation(samples[at : at + WINDOW])
        return samples

    def _random(self, epoch: int, part: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._seed, epoch, part])))


class SampleOrder:
    """The endless sequence of samples that training walks through.

    Args:
        sources: for each source, the number of samples of each of its shards, in the manifest's order.
        weights: how often an epoch holds each sample of a source, on average; None for once.
        seed: what the order depends on.
        block: how many neighbouring samples of a shard stay close together; 1 for a full shuffle.

    Raises:
        OptionError: a weight that isn't above 0, or that leaves nothing of its source.
        ValueError: there are no samples.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        block: int = BLOCK,
    ) -> None:
        totals = [sum(sizes) for sizes in sources]
        if not all(totals) or not totals:
            raise ValueError("there are no samples to put in order")
        firsts = np.cumsum([0, *totals]).tolist()
        self.seed = seed
        self._block = block
        self.sources = [
            Source(sizes, first, (seed, number, 1), block)
            for number, (sizes, first) in enumerate(zip(sources, firsts, strict=False))
        ]
        for weight in weights or []:
            if not (np.isfinite(weight) and weight > 0):
                raise OptionError(f"data.train has weight {weight:g} for a source; weights must be above 0")
        shares = weights or [1.0] * len(totals)
        self.counts = [round(total * share) for total, share in zip(totals, shares, strict=True)]
        for weight, total, count in zip(shares, totals, self.counts, strict=True):
            if not count:
                raise OptionError(f"data.train: weight {weight:g} leaves none of a source's {total} samples; raise it")

    @cached_property
    def total(self) -> int:
        """The number of samples in an epoch."""
        return sum(self.counts)

    @cached_property
    def fingerprint(self) -> str:
        """What tells this order from others."""
        sizes = [source.sizes.tolist() for source in self.sources]
        return hashlib.sha256(f"{sizes} {self.counts} {self.seed} {self._block}".encode()).hexdigest()[:16]

    def epoch(self, number: int, start: int = 0) -> Iterator[Stretch]:
        """Gives the places of an epoch from one on, in stretches.

        Args:
            number: of the epoch, from 0.
            start: how many places are left out.
        """
        if len(self.sources) == 1:
            yield from _take(self.sources[0].walk(number * self.total + start), self.total - start)
            return
        yield from self._mixed(number, start)

    def _mixed(self, number: int, start: int) -> Iterator[Stretch]:
        """Draws from all sources, each as often as its share of the samples says, in parts of an epoch.

        Up to the end of each part, every source has had its share to the nearest sample.
        """
        parts = -(-self.total // MIXED_AT_ONCE)
        done = np.asarray(self.counts) * np.arange(parts + 1)[:, None] // parts  # (parts + 1, sources)
        first = int(np.searchsorted(done.sum(1), start, side="right")) - 1
        readers = [
            _Reader(source.walk(number * count + before))
            for source, count, before in zip(self.sources, self.counts, done[first].tolist(), strict=True)
        ]
        skipped = start - int(done[first].sum())
        for part in range(first, parts):
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number, part])))
            drawn = random.permutation(np.repeat(np.arange(len(readers)), done[part + 1] - done[part]))
            epochs, indices = np.empty_like(drawn), np.empty_like(drawn)
            for source, reader in enumerate(readers):
                mine = drawn == source
                epochs[mine], indices[mine] = reader.read(int(mine.sum()))
            yield Stretch(epochs[skipped:], indices[skipped:])
            skipped = 0


class _Reader:
    """Reads a walk in pieces of any length."""

    def __init__(self, walk: Iterator[Stretch]) -> None:
        self._walk = walk
        self._rest = Stretch(np.empty(0, np.int64), np.empty(0, np.int64))

    def read(self, count: int) -> Stretch:
        parts, missing = [self._rest], count - len(self._rest.indices)
        while missing > 0:
            parts.append(next(self._walk))
            missing -= len(parts[-1].indices)
        epochs, indices = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self._rest = Stretch(epochs[count:], indices[count:])
        return Stretch(epochs[:count], indices[:count])


def _take(stretches: Iterator[Stretch], count: int) -> Iterator[Stretch]:
    """Gives the first places of stretches."""
    while count > 0:
        epochs, indices = next(stretches)
        yield Stretch(epochs[:count], indices[:count])
        count -= len(indices)
