from __future__ import annotations

import math

import pytest
import torch

from mm.layers import RelativeBias


def square(layer: RelativeBias, length: int) -> torch.Tensor:
    """The numbers for every pair of positions of a text."""
    return layer(torch.arange(length), torch.arange(length))


def bucket(distance: int, buckets: int, furthest: int, bidirectional: bool) -> int:
    """The rule of the paper, one distance at a time; ``distance`` is the key's position minus the query's.

    Half of the buckets hold one distance each; the others grow with its logarithm up to ``furthest``, from which on all
    share the last.
    """
    start = 0
    if bidirectional:
        buckets //= 2
        start = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    if distance >= furthest:
        return start + buckets - 1
    share = math.log(distance / exact) / math.log(furthest / exact)
    return start + min(buckets - 1, exact + math.floor(share * (buckets - exact)))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (10, 50)])
def test_distances_fall_into_the_papers_buckets(bidirectional: bool, buckets: int, furthest: int) -> None:
    layer, length = RelativeBias(3, buckets, furthest, bidirectional), 150
    table = square(layer, length)
    assert table.shape == (1, 3, length, length)
    for query in (0, 1, 70, length - 1):
        expected = [bucket(key - query, buckets, furthest, bidirectional) for key in range(length)]
        torch.testing.assert_close(table[0, :, query], layer.weight[expected].T, rtol=0, atol=0)


def test_every_bucket_is_used_and_far_keys_share_the_last() -> None:
    one_way, both_ways = RelativeBias(2, 32, 128, False), RelativeBias(2, 32, 128, True)
    near, far = square(one_way, 200)[0, :, -1], square(both_ways, 200)[0, :, 0]
    torch.testing.assert_close(near[:, 0], one_way.weight[31], rtol=0, atol=0)
    assert len(near[:, :71].unique(dim=1).T) == 1  # 129 to 199 tokens back
    assert len(near.unique(dim=1).T) == 32
    torch.testing.assert_close(far[:, -1], both_ways.weight[31], rtol=0, atol=0)
    used = square(both_ways, 200)[0].flatten(1).unique(dim=1)
    assert len(used.T) == 31  # that of a distance of nought to the right stays empty


def test_a_decoder_tells_nothing_to_the_right_apart() -> None:
    layer = RelativeBias(2, 8, 20, False)
    table = square(layer, 9)[0]
    torch.testing.assert_close(table.triu(), layer.weight[0][:, None, None].expand_as(table).triu(), rtol=0, atol=0)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_queries_behind_a_cache_are_the_last_positions(bidirectional: bool) -> None:
    layer = RelativeBias(4, 8, 20, bidirectional)
    whole, places = square(layer, 30), torch.arange(30)
    for queries in (1, 4, 29):
        torch.testing.assert_close(layer(places[-queries:], places), whole[:, :, -queries:], rtol=0, atol=0)
