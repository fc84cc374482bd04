from __future__ import annotations

import math

import pytest
import torch

from mm.layers import Attention, FeedForward


def by_hand(layer: Attention, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention head by head, query by query."""
    query, key, value = layer.query(x), layer.key(context), layer.value(context)
    size = query.shape[-1] // layer.heads
    rows = []
    for b in range(len(x)):
        heads = []
        for n in range(layer.heads):
            part = slice(n * size, (n + 1) * size)
            scores = query[b, :, part] @ key[b, :, part].T / math.sqrt(size)
            if mask is not None:
                scores = scores.masked_fill(~mask[b, 0], -torch.inf)
            heads.append(scores.softmax(-1) @ value[b, :, part])
        rows.append(torch.cat(heads, -1))
    return layer.output(torch.stack(rows))


@pytest.mark.parametrize("context_width", [None, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_formula(context_width: int | None, masked: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(16, 4, context_width=context_width)
    x, context = torch.randn(3, 5, 16), torch.randn(3, 7, context_width or 16)
    mask = torch.rand(3, 1, 5, 7) < 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True
    torch.testing.assert_close(layer(x, layer.keys_values(context), mask), by_hand(layer, x, context, mask))


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="10 is not a multiple of 4"):
        Attention(10, 4)


def test_feed_forward_acts_on_each_position_alone() -> None:
    torch.manual_seed(0)
    layer = FeedForward(8, 32)
    x = torch.randn(2, 5, 8)
    whole = layer(x)
    for position in range(5):
        torch.testing.assert_close(layer(x[:, position]), whole[:, position])
