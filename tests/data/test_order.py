from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.data.order import BLOCK, GROUP, WINDOW, SampleOrder
from mm.errors import OptionError

SEEDS = st.integers(0, 2**40)
SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=50).filter(any)
BLOCKS = st.sampled_from([1, 2, 16])
Walk = list[tuple[int, int]]


def walk(order: SampleOrder, epoch: int, start: int = 0) -> Walk:
    """All places of an epoch from one on: how often each sample came before, and its index."""
    return [
        place
        for epochs, indices in order.epoch(epoch, start)
        for place in zip(epochs.tolist(), indices.tolist(), strict=True)
    ]


@given(SEEDS, st.integers(0, 1000), SHARDS, BLOCKS)
def test_an_epoch_holds_every_sample_once(seed: int, epoch: int, sizes: list[int], block: int) -> None:
    places = walk(SampleOrder([sizes], None, seed, block), epoch)
    assert sorted(places) == [(epoch, index) for index in range(sum(sizes))]


@given(SEEDS, SHARDS, BLOCKS)
def test_an_epoch_depends_on_its_arguments_alone(seed: int, sizes: list[int], block: int) -> None:
    first = walk(SampleOrder([sizes], None, seed, block), 3)
    np.random.default_rng().random()
    assert first == walk(SampleOrder([sizes], None, seed, block), 3)


@pytest.mark.parametrize("block", [1, BLOCK])
def test_orders_differ_between_seeds_and_epochs(block: int) -> None:
    orders = {tuple(walk(SampleOrder([[50]], None, seed, block), epoch)) for seed in range(5) for epoch in range(5)}
    assert len({tuple(index for _, index in order) for order in orders}) == 25


def test_orders_stay_the_same_between_releases() -> None:
    """A resumed run would otherwise see other samples."""
    assert [index for _, index in walk(SampleOrder([[5, 3]], None, 3), 1)] == [4, 0, 3, 7, 2, 6, 1, 5]
    assert [index for _, index in walk(SampleOrder([[5, 3]], None, 3, 1), 1)] == [4, 2, 3, 5, 1, 7, 6, 0]
    assert [index for _, index in walk(SampleOrder([[4], [4]], [1, 0.5], 3), 1)] == [0, 3, 1, 6, 2, 7]


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.lists(SHARDS, min_size=1, max_size=3), st.integers(0, 5), st.data())
def test_an_epoch_can_begin_anywhere(seed: int, sources: list[list[int]], epoch: int, data: st.DataObject) -> None:
    weights = data.draw(st.none() | st.lists(st.floats(0.2, 3), min_size=len(sources), max_size=len(sources)))
    try:
        order = SampleOrder(sources, weights, seed)
    except OptionError:
        return
    start = data.draw(st.integers(0, order.total))
    assert walk(order, epoch)[start:] == walk(order, epoch, start)


def test_weights_say_how_often_an_epoch_holds_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm.data.order.MIXED_AT_ONCE", 16)
    order = SampleOrder([[30, 10], [20], [7]], [1, 2.5, 1 / 7], seed=1)
    assert order.counts == [40, 50, 1] and order.total == 91
    seen: Counter[int] = Counter()
    for epoch in range(14):
        places = walk(order, epoch)
        counts = Counter(np.searchsorted([40, 60], [index for _, index in places], side="right").tolist())
        assert counts == {0: 40, 1: 50, 2: 1}
        assert len(set(places)) == len(places)  # a sample that comes again does so in another epoch of its own
        seen.update(index for _, index in places)
    assert set(seen.values()) == {14, 35, 2}
    # the sources are mixed all through an epoch
    half = [index for _, index in walk(order, 3)[:45]]
    assert 15 < sum(index < 40 for index in half) < 25


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ([1, 0.0], "weight 0"),
        ([float("nan"), 1], "weight nan"),
        ([1, 0.01], "weight 0.01 leaves none of a source's 4 samples"),
    ],
)
def test_weights_that_make_no_sense(weights: list[float], what: str) -> None:
    with pytest.raises(OptionError, match=what):
        SampleOrder([[3], [4]], weights)


def test_nothing_to_order() -> None:
    with pytest.raises(ValueError, match="no samples"):
        SampleOrder([[3], [0]])


def test_blocks_stay_together_and_windows_are_shuffled() -> None:
    sizes = [100] * 100
    indices = np.asarray([index for _, index in walk(SampleOrder([sizes], None, 0), 0)])
    shards = indices // 100
    assert len(set(shards[: GROUP * 100].tolist())) == GROUP
    for start in range(0, GROUP * 100, WINDOW):
        window = indices[start : min(start + WINDOW, GROUP * 100)]
        blocks = Counter(zip(window // 100, window % 100 // BLOCK, strict=True))
        assert len(blocks) > 30
        split = sum(1 for (_, block), count in blocks.items() if count < (BLOCK if block < 100 // BLOCK else 4))
        assert split <= 2  # at most one block at each end
        assert np.abs(np.diff(window)).mean() > 500


def test_a_shuffle_in_blocks_mixes_nearly_as_well_as_a_full_one() -> None:
    """How far apart two samples are in the order doesn't depend on how far apart they are in the shards."""
    sizes = [1000] * 6
    for block, least in ((1, 0.95), (BLOCK, 0.9)):
        place = np.empty(6000, np.int64)
        place[[index for _, index in walk(SampleOrder([sizes], None, 0, block), 0)]] = np.arange(6000)
        # neighbours at a distance of 40 to 960 samples in a shard, against the third of the range that chance gives
        spread = [np.abs(place[shift:] - place[:-shift]).mean() / 2000 for shift in (40, 200, 960)]
        assert min(spread) > least and max(spread) < 1.1
        assert abs(np.corrcoef(place, np.arange(6000))[0, 1]) < 0.1


def test_an_epoch_of_ten_million_samples_begins_at_once() -> None:
    order = SampleOrder([[1000] * 10_000], None, 0)
    first = next(order.epoch(0))
    assert len(first.indices) == GROUP * 1000
    assert len(next(order.epoch(7, 9_999_990)).indices) == 10
