from __future__ import annotations

import pytest
import torch

from mm.layers import KeyValues, SelfAttentionCache, SlotCache


def cache(rows: int = 2, capacity: int = 5) -> SelfAttentionCache:
    return SelfAttentionCache(2, rows, 3, capacity, 4, dtype=torch.float32, device=torch.device("cpu"))


def new(rows: int, tokens: int) -> KeyValues:
    return KeyValues(torch.randn(rows, 3, tokens, 4), torch.randn(rows, 3, tokens, 4))


def test_what_was_appended_comes_back_in_order() -> None:
    torch.manual_seed(0)
    store, parts = cache(), [[new(2, tokens) for tokens in (2, 1, 2)] for _ in range(2)]
    for step, tokens in enumerate((2, 1, 2)):
        for layer in range(2):
            both = store.append(layer, parts[layer][step])
            seen = parts[layer][: step + 1]
            assert torch.equal(both.keys, torch.cat([part.keys for part in seen], 2))
            assert torch.equal(both.values, torch.cat([part.values for part in seen], 2))
        store.advance(tokens)
        for layer in range(2):
            assert torch.equal(store.seen(layer).keys, torch.cat([part.keys for part in parts[layer][: step + 1]], 2))
            assert torch.equal(
                store.seen(layer).values, torch.cat([part.values for part in parts[layer][: step + 1]], 2)
            )
    assert store.length == 5


def test_rows_are_selected_with_repetition() -> None:
    torch.manual_seed(0)
    store, first, second = cache(), new(2, 3), new(3, 1)
    store.append(0, first)
    store.advance(3)
    rows = torch.tensor([1, 1, 0])
    store.select(rows)
    both = store.append(0, second)
    assert torch.equal(both.keys, torch.cat([first.keys[rows], second.keys], 2))
    assert torch.equal(both.values, torch.cat([first.values[rows], second.values], 2))


def test_a_full_cache_says_so() -> None:
    store = cache(capacity=2)
    store.append(0, new(2, 2))
    store.advance(2)
    with pytest.raises(ValueError, match="a cache for 2 tokens can't hold 3"):
        store.append(0, new(2, 1))


def test_slots_are_written_in_place_wherever_they_are() -> None:
    torch.manual_seed(0)
    room, first = [new(2, 6), new(2, 6)], new(2, 2)
    before = [KeyValues(part.keys.clone(), part.values.clone()) for part in room]
    store = SlotCache(room, torch.tensor([4, 1]))
    both = store.append(1, first)
    store.advance(2)
    assert store.length == 6
    assert both is room[1] and torch.equal(room[0].keys, before[0].keys)
    for whole, old, part in zip(both, before[1], first, strict=True):
        assert torch.equal(whole[:, :, [4, 1]], part)
        assert torch.equal(whole[:, :, [0, 2, 3, 5]], old[:, :, [0, 2, 3, 5]])
