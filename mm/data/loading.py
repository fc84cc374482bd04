"""Batches of the order of samples, for one of several ranks, from a loader that can go on anywhere."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from mm.data.order import Place, SampleOrder
from mm.data.samples import Rejection
from mm.errors import DataError

log = logging.getLogger(__name__)

RESTARTS = 3  # how often in an epoch loading starts again after a worker died
DEAD_WORKER = "DataLoader worker (pid"  # how what torch says of it begins


class Step(NamedTuple):
    """Places that all ranks together take in a step, and the position behind them."""

    places: list[Place]
    end: int


class OrderedBatches(Sampler[list[Place]]):
    """Batches of an epoch for one of several ranks, which stride over the order together.

    Every rank gets the same number of batches, each of the same size. What is left over at the end of an epoch is
    dropped, or completed with the epoch's first samples; so is an epoch that is less than a batch.

    Args:
        order: of all samples.
        unusable: (n,) sorted indices of samples that are passed over.
        batch_size: samples in a batch of one rank.
        rank: this process among the ranks.
        ranks: how many processes train together.
        pad: whether the last batch of an epoch is completed, and not dropped.
    """

    def __init__(
        self,
        order: SampleOrder,
        unusable: np.ndarray,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        pad: bool = False,
    ) -> None:
        self.order = order
        self.unusable = unusable
        self.batch_size = batch_size
        self.rank = rank
        self.ranks = ranks
        self.ends: deque[int] = deque()  # positions behind the batches that were drawn
        self._pad = pad or self._usable < self.stride
        self.go_on(0, None)

    @property
    def stride(self) -> int:
        """Samples that all ranks together take in a step."""
        return self.batch_size * self.ranks

    @property
    def remainder(self) -> int:
        """Samples of an epoch that are dropped at its end; below 0, how many are given twice instead."""
        return self._usable - len(self) * self.stride

    @cached_property
    def _usable(self) -> int:
        """The number of samples in every epoch that can be used, at least: of some weighted sources, it varies."""
        bounds = np.searchsorted(self.unusable, np.cumsum([0, *(source.total for source in self.order.sources)]))
        visits = [
            -(-count // source.total) for count, source in zip(self.order.counts, self.order.sources, strict=True)
        ]
        return self.order.total - int(np.diff(bounds) @ visits)

    def __len__(self) -> int:
        return self._batches_in(self._usable)

    def _batches_in(self, samples: int) -> int:
        return -(-samples // self.stride) if self._pad else samples // self.stride

    def left(self, position: int) -> int:
        """The number of batches from a position to the end of its epoch."""
        epoch, start = divmod(position, self.order.total)
        if start == 0:
            return len(self)
        return max(0, self._batches_in(self._usable - self._used(epoch, start)))

    def _used(self, epoch: int, start: int) -> int:
        """How many of the first samples of an epoch can be used."""
        if not len(self.unusable):
            return start
        used = 0
        for _, indices in self.order.epoch(epoch):
            used += int(self._fit(indices[:start]).sum())
            start -= min(start, len(indices))
            if not start:
                break
        return used

    def go_on(self, position: int, count: int | None) -> None:
        """Settles where the next iteration begins, and how many batches it gives; None for those of an epoch."""
        self._position, self._count = position, count

    def __iter__(self) -> Iterator[list[Place]]:
        self.ends.clear()
        for step in itertools.islice(self._steps(), len(self) if self._count is None else self._count):
            self.ends.append(step.end)
            yield step.places[self.rank :: self.ranks]

    def _steps(self) -> Iterator[Step]:
        position = self._position
        while True:
            yield from self._rest_of_epoch(position)
            position += self.order.total - position % self.order.total

    def _rest_of_epoch(self, position: int) -> Iterator[Step]:
        """Gives the steps from a position on; the last one ends where the next epoch begins."""
        begin = position - position % self.order.total
        # after the epoch's samples come its first ones again, for a last batch that is completed
        again = itertools.cycle([begin]) if self._pad else iter(())
        places = itertools.chain(self._walk(position), itertools.chain.from_iterable(map(self._walk, again)))
        for left in range(self.left(position), 0, -1):
            step = list(itertools.islice(places, self.stride))
            end = step[-1][1] if left > 1 else begin + self.order.total
            yield Step([place for place, _ in step], end)

    def _walk(self, position: int) -> Iterator[tuple[Place, int]]:
        """Gives the usable places from a position to the end of its epoch, each with the position behind it."""
        epoch, start = divmod(position, self.order.total)
        for epochs, indices in self.order.epoch(epoch, start):
            for at in np.flatnonzero(self._fit(indices)).tolist():
                yield Place(int(epochs[at]), int(indices[at])), position + at + 1
            position += len(indices)

    def _fit(self, indices: np.ndarray) -> np.ndarray:
        if not len(self.unusable):
            return np.ones(len(indices), bool)
        at = np.minimum(np.searchsorted(self.unusable, indices), len(self.unusable) - 1)
        return self.unusable[at] != indices


class Loader(DataLoader):
    """A DataLoader that passes on what samples were rejected for, and that tells of dead processes at the right moment.

    The signal handler that torch sets for these would raise anywhere, such as in the middle of a step of training;
    without it, the death of a process is noticed within seconds where its batch is waited for.

    Args:
        dataset: gives samples, or rejections that its batches hold as ``rejected``.
        rejected: told of rejections, in this process.
        options: what else a DataLoader takes.
    """

    def __init__(self, dataset: Dataset, rejected: Callable[[list[Rejection]], None], **options: Any) -> None:
        super().__init__(dataset, **options)
        self._rejected = rejected

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in self._start():
            self._rejected(batch.pop("rejected", []))
            if batch:
                yield batch

    def _start(self) -> Iterator[Any]:
        if threading.current_thread() is not threading.main_thread():
            return super().__iter__()
        before = signal.getsignal(signal.SIGCHLD)
        batches = super().__iter__()
        signal.signal(signal.SIGCHLD, before)
        return batches


class ResumableLoader(Loader):
    """A loader of ``OrderedBatches`` whose state is the number of samples accounted for.

    Lightning saves and restores that state with a checkpoint, also in the middle of an epoch. Where a process that
    loads data dies, loading starts again behind the last batch.

    Args:
        dataset: maps a list of places to a list of samples.
        batches: the order.
        rejected: told of rejections, in this process.
        unfinished: tells how many of the batches handed out haven't been trained on: after an interruption the one at
            hand, which is to be repeated; 0 or 1.
        options: what else a DataLoader takes.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: OrderedBatches,
        rejected: Callable[[list[Rejection]], None] = lambda rejections: None,
        unfinished: Callable[[], int] = lambda: 0,
        **options: Any,
    ) -> None:
        super().__init__(dataset, rejected, batch_sampler=batches, **options)
        self._batches = batches
        self._unfinished = unfinished
        self._positions = [0]  # behind the last two batches

    def state_dict(self) -> dict[str, int]:
        """Returns the position behind the last batch that was handed out and trained on."""
        return {"position": self._positions[max(-1 - self._unfinished(), -len(self._positions))]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a saved position, at the next iteration."""
        self._positions = [state["position"]]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        restarts, missing = 0, len(self)
        while missing:
            self._batches.go_on(self._positions[-1], missing)
            try:
                for batch in self._start():
                    self._positions = [self._positions[-1], self._batches.ends.popleft()]
                    self._rejected(batch.pop("rejected", []))
                    missing -= 1
                    yield batch
            except RuntimeError as error:
                if not str(error).startswith(DEAD_WORKER):
                    raise
                restarts += 1
                if restarts > RESTARTS:
                    raise DataError(
                        f"processes that load data died {restarts} times in an epoch, at last: {error}; where memory "
                        "ran out, lower data.workers or data.batch_size; data.workers 0 loads without them",
                        "loader died",
                    ) from error
                log.warning("a process that loads data died; loading goes on behind the last batch: %s", error)
