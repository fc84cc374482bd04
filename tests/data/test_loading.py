from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from mm.data.loading import OrderedBatches, ResumableLoader
from mm.data.order import Place, SampleOrder
from mm.data.samples import Rejection
from mm.errors import DataError

TOTALS = st.integers(1, 60)
Batch = dict[str, list[Place]]


def batches(
    total: int, batch_size: int, rank: int = 0, ranks: int = 1, unusable: Sequence[int] = (), **options: bool
) -> OrderedBatches:
    order = SampleOrder([[total]], None, 5, 2)
    return OrderedBatches(order, np.asarray(unusable, np.int64), batch_size, rank, ranks, **options)


def sequence(total: int, epochs: int, unusable: Sequence[int] = ()) -> list[Place]:
    """All places of the first epochs in order, but for the unusable ones."""
    order = SampleOrder([[total]], None, 5, 2)
    return [
        Place(epoch, index)
        for epoch in range(epochs)
        for _, indices in order.epoch(epoch)
        for index in indices.tolist()
        if index not in unusable
    ]


@settings(max_examples=60, deadline=None)
@given(TOTALS, st.integers(1, 5), st.integers(1, 9), st.booleans(), st.data())
def test_ranks_share_one_sequence(total: int, ranks: int, batch_size: int, pad: bool, data: st.DataObject) -> None:
    unusable = sorted(data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1)))
    stride, usable = ranks * batch_size, total - len(unusable)
    pad |= usable < stride  # an epoch has at least one batch
    per_rank = [list(batches(total, batch_size, rank, ranks, unusable, pad=pad)) for rank in range(ranks)]
    steps = -(-usable // stride) if pad else usable // stride
    assert all(len(of_rank) == steps and {len(batch) for batch in of_rank} == {batch_size} for of_rank in per_rank)
    together = [place for step in zip(*per_rank, strict=True) for places in zip(*step, strict=True) for place in places]
    whole = sequence(total, 1, unusable)
    if not pad:
        assert together == whole[: steps * stride]
    else:
        assert together == list(itertools.islice(itertools.cycle(whole), steps * stride))
    assert batches(total, batch_size, 0, ranks, unusable, pad=pad).remainder == usable - steps * stride


def test_the_end_of_an_epoch_is_where_the_next_one_begins() -> None:
    made = batches(10, 3, unusable=[0, 7])
    assert [len(made), made.remainder] == [2, 2]
    list(made)
    assert made.ends[-1] == 10
    made.go_on(10, 2)
    assert [place.epoch for batch in made for place in batch] == [1] * 6
    made.go_on(made.ends[0], 3)  # also where an iteration begins in the middle of one
    assert [place.epoch for batch in made for place in batch] == [1] * 3 + [2] * 6


class Places(Dataset[Place]):
    """Gives places as they are; ends the process that loads it at some of them, once each or always."""

    def __init__(self, deadly: int | None = None, mark: Path | None = None) -> None:
        self.deadly = deadly
        self.mark = mark

    def __getitem__(self, place: Place) -> Place:
        if place.index == self.deadly and (self.mark is None or not self.mark.exists()):
            if self.mark is not None:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return place


def collate(places: Sequence[Place]) -> dict[str, list]:
    return {"places": list(places), "rejected": [Rejection("x", str(p.index), "bad") for p in places if p.index == 3]}


def loader(
    total: int, batch_size: int, workers: int = 0, dataset: Dataset | None = None, **options: object
) -> ResumableLoader:
    return ResumableLoader(
        dataset or Places(), batches(total, batch_size), num_workers=workers, collate_fn=collate, **options
    )


def places(found: list[Batch]) -> list[Place]:
    return [place for batch in found for place in batch["places"]]


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 60), st.integers(1, 9), st.integers(0, 40), st.integers(1, 9))
def test_resuming_continues_exactly(total: int, batch_size: int, steps: int, later_size: int) -> None:
    """Stopped after any number of steps, also with another batch size afterwards."""
    first, seen = loader(total, batch_size), []
    while steps > len(seen):
        seen += list(itertools.islice(first, steps - len(seen)))
    state = first.state_dict()
    per_epoch = total // batch_size
    assert state["position"] == steps // per_epoch * total + steps % per_epoch * batch_size
    second = loader(total, later_size)
    second.load_state_dict(state)
    rest = places(list(second))
    epoch, done = divmod(state["position"], total)
    left = [place for place in sequence(total, epoch + 1) if place.epoch == epoch][done:]
    now = min(len(left) // later_size * later_size, len(rest))
    assert rest[:now] == left[:now]
    assert all(place.epoch == epoch + 1 for place in rest[now:])
    assert len(rest) == later_size * (total // later_size)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_workers_fetched_ahead_do_not_count(workers: int) -> None:
    first = loader(40, 4, workers)
    running = iter(first)
    seen = [next(running) for _ in range(3)]
    assert first.state_dict() == {"position": 12}
    second = loader(40, 4, workers)
    second.load_state_dict(first.state_dict())
    assert places(seen + list(itertools.islice(second, 7))) == sequence(40, 1)


def test_a_batch_at_hand_is_repeated() -> None:
    interrupted = loader(40, 4, unfinished=lambda: 1)
    running = iter(interrupted)
    next(running), next(running)
    assert interrupted.state_dict() == {"position": 4}
    again = loader(40, 4, unfinished=lambda: 1)
    again.load_state_dict({"position": 4})
    assert again.state_dict() == {"position": 4}  # before the first batch, nothing is at hand


@pytest.mark.parametrize("workers", [0, 1])
def test_rejections_are_passed_on(workers: int) -> None:
    told: list[str] = []
    made = loader(8, 4, workers, rejected=lambda rejections: told.extend(r.key for r in rejections))
    assert all("rejected" not in batch for batch in made)
    assert told == ["3"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    dataset = Places(deadly=17, mark=tmp_path / "died")
    begin = time.monotonic()
    found = list(loader(40, 4, 2, dataset))
    assert (tmp_path / "died").exists()
    assert places(found) == sequence(40, 1)
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_an_error_that_says_what_to_do() -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"died 4 times in an epoch.*memory.*data.workers"):
        list(loader(40, 4, 1, Places(deadly=17)))
    assert time.monotonic() - begin < 60
