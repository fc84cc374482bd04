from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from mm.data.order import OrderedBatches, Place, ResumableLoader, epoch_order, walk

SEEDS = st.integers(0, 2**40)
TOTALS = st.integers(1, 60)


@given(SEEDS, st.integers(0, 1000), TOTALS)
def test_an_epoch_is_a_permutation_that_depends_on_its_arguments_alone(seed: int, epoch: int, total: int) -> None:
    order = epoch_order(seed, epoch, total)
    assert sorted(order.tolist()) == list(range(total))
    np.random.default_rng().random()
    assert np.array_equal(order, epoch_order(seed, epoch, total))


def test_orders_differ_between_seeds_and_epochs() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_orders_stay_the_same_between_releases() -> None:
    assert epoch_order(3, 1, 8).tolist() == [0, 7, 6, 1, 5, 3, 2, 4]


@given(SEEDS, TOTALS, st.integers(0, 300))
def test_walking_can_begin_anywhere(seed: int, total: int, position: int) -> None:
    whole = list(itertools.islice(walk(seed, total, 0), position + 2 * total))
    assert whole[position:] == list(itertools.islice(walk(seed, total, position), 2 * total))
    assert [place.epoch for place in whole] == [i // total for i in range(len(whole))]


@settings(max_examples=60)
@given(SEEDS, TOTALS, st.integers(1, 5), st.integers(1, 9), st.integers(0, 100))
def test_ranks_share_one_sequence(seed: int, total: int, ranks: int, batch_size: int, position: int) -> None:
    per_rank = []
    for rank in range(ranks):
        batches = OrderedBatches(total, batch_size, seed, rank, ranks)
        batches.position = position
        assert batches.stride == ranks * batch_size
        per_rank.append(list(batches))
        assert len(per_rank[-1]) == len(batches) == max(1, total // batches.stride)
        assert all(len(batch) == batch_size for batch in per_rank[-1])
    together = []
    for step in zip(*per_rank, strict=True):
        for places in zip(*step, strict=True):
            together += places
    assert together == list(itertools.islice(walk(seed, total, position), len(together)))


class Places(Dataset[Place]):
    def __getitem__(self, place: Place) -> Place:
        return place


def loader(total: int, batch_size: int, workers: int = 0, **options: object) -> ResumableLoader:
    return ResumableLoader(
        Places(), OrderedBatches(total, batch_size, 5), num_workers=workers, collate_fn=list, **options
    )


@settings(max_examples=40, deadline=None)
@given(TOTALS, st.integers(1, 9), st.integers(0, 40), st.integers(1, 9))
def test_resuming_continues_exactly(total: int, batch_size: int, steps: int, later_size: int) -> None:
    """Stopped after any number of steps, also with another batch size afterwards."""
    first, seen = loader(total, batch_size), []
    while steps > len(seen):
        for batch in itertools.islice(first, steps - len(seen)):
            seen.append(batch)
    state = first.state_dict()
    assert state == {"position": len(seen) * batch_size}
    second = loader(total, later_size)
    second.load_state_dict(state)
    rest = [place for batch in second for place in batch]
    whole = [place for batch in seen for place in batch] + rest
    assert whole == list(itertools.islice(walk(5, total, 0), len(whole)))
    assert len(rest) == later_size * max(1, total // later_size)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_workers_fetched_ahead_do_not_count(workers: int) -> None:
    first = loader(40, 4, workers)
    running = iter(first)
    seen = [next(running) for _ in range(3)]
    assert first.state_dict() == {"position": 12}
    second = loader(40, 4, workers)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert [place for batch in seen + rest for place in batch] == list(itertools.islice(walk(5, 40, 0), 12 + 40))


def test_a_batch_at_hand_is_repeated() -> None:
    interrupted = loader(40, 4, unfinished=lambda: 1)
    running = iter(interrupted)
    next(running), next(running)
    assert interrupted.state_dict() == {"position": 4}


def test_nothing_to_order() -> None:
    with pytest.raises(ValueError, match="no samples"):
        next(walk(0, 0, 0))
    assert math.prod(epoch_order(0, 0, 0).shape) == 0
