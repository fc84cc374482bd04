from __future__ import annotations

import pytest
import torch

from mm.layers import KeyValues, SelfAttentionCache


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
