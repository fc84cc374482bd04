"""The order of training samples: a pure function of the seed and a position.

Training walks through one endless sequence, the concatenation of one permutation of the samples per epoch. A position
in it is one integer, the number of samples consumed so far, whatever the number of ranks, of workers or of samples in
a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler


class Place(NamedTuple):
    """Which sample comes at some position: the epoch it belongs to and its index among the samples."""

    epoch: int
    index: int  # type: ignore[assignment]  # tuple.index isn't used


def epoch_order(seed: int, epoch: int, total: int) -> np.ndarray:
    """Gives the (total,) int64 permutation of sample indices that one epoch walks through.

    Args:
        seed: 0 or more.
        epoch: 0 or more.
        total: number of samples.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(total)


def walk(seed: int, total: int, position: int) -> Iterator[Place]:
    """Walks through the sequence from a position on, without end.

    Raises:
        ValueError: there are no samples.
    """
    if total < 1:
        raise ValueError("there are no samples to put in order")
    epoch, start = divmod(position, total)
    while True:
        for index in epoch_order(seed, epoch, total)[start:]:
            yield Place(epoch, int(index))
        epoch, start = epoch + 1, 0


class OrderedBatches(Sampler[list[Place]]):
    """Batches of the sequence for one of several ranks, which stride over it together.

    Args:
        total: number of samples.
        batch_size: samples in a batch of one rank.
        seed: what the order depends on.
        rank: this process among the ranks.
        ranks: how many processes train together.
    """

    def __init__(self, total: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.total = total
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.position = 0

    @property
    def stride(self) -> int:
        """Samples that all ranks together consume in a step."""
        return self.batch_size * self.ranks

    def __len__(self) -> int:
        return max(1, self.total // self.stride)

    def __iter__(self) -> Iterator[list[Place]]:
        places = walk(self.seed, self.total, self.position)
        for _ in range(len(self)):
            step = [next(places) for _ in range(self.stride)]
            yield step[self.rank :: self.ranks]


class ResumableLoader(DataLoader):
    """A DataLoader over ``OrderedBatches`` whose state is the number of samples consumed.

    Lightning saves and restores that state with a checkpoint, also in the middle of an epoch.

    Args:
        dataset: maps a ``Place`` to a sample.
        batches: the order.
        unfinished: tells how many of the batches handed out haven't been trained on: after an interruption the one at
            hand, which is to be repeated.
        options: what else a DataLoader takes.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: OrderedBatches,
        *,
        unfinished: Callable[[], int] = lambda: 0,
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_sampler=batches, **options)
        self._batches = batches
        self._unfinished = unfinished
        self._position = 0

    def state_dict(self) -> dict[str, int]:
        """Returns the position behind the last batch that was handed out and trained on."""
        return {"position": self._position - self._unfinished() * self._batches.stride}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a saved position, at the next iteration."""
        self._position = state["position"]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._batches.position = self._position
        for batch in super().__iter__():
            self._position += self._batches.stride
            yield batch
