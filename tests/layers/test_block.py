from __future__ import annotations

import pytest
import torch
from torch import nn

from mm.layers import Attention, Block, FeedForward
from mm.models.presets import block


@pytest.mark.parametrize("pre_norm", [True, False])
def test_block_is_its_parts(pre_norm: bool) -> None:
    torch.manual_seed(0)
    unit = block(16, 4, context_width=12, pre_norm=pre_norm)
    x, image = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    assert unit.cross_attention is not None and unit.cross_attention_norm is not None
    context = unit.cross_attention.keys_values(image)
    one, two, three = unit.attention_norm, unit.cross_attention_norm, unit.feed_forward_norm
    if pre_norm:
        h = x + unit.attention(one(x), unit.attention.keys_values(one(x)))
        h = h + unit.cross_attention(two(h), context)
        h = h + unit.feed_forward(three(h))
    else:
        h = one(x + unit.attention(x, unit.attention.keys_values(x)))
        h = two(h + unit.cross_attention(h, context))
        h = three(h + unit.feed_forward(h))
    torch.testing.assert_close(unit(x, context=context), h)


def test_without_an_image_the_cross_attention_is_passed_by() -> None:
    torch.manual_seed(0)
    unit = block(16, 4, context_width=12)
    x = torch.randn(2, 5, 16)
    h = x + unit.attention(unit.attention_norm(x), unit.attention.keys_values(unit.attention_norm(x)))
    torch.testing.assert_close(unit(x), h + unit.feed_forward(unit.feed_forward_norm(h)))


def test_dropout_acts_only_while_training() -> None:
    torch.manual_seed(0)
    unit, x = block(16, 4, dropout=0.5), torch.randn(2, 5, 16)
    assert not torch.equal(unit(x), unit(x))
    unit.eval()
    assert torch.equal(unit(x), unit(x))


def test_a_norm_for_each_part() -> None:
    norms: list[nn.Module] = [nn.LayerNorm(8), nn.LayerNorm(8)]
    with pytest.raises(ValueError, match="2 norms for 3 parts"):
        Block(Attention(8, 2), FeedForward(8, 16), norms, cross_attention=Attention(8, 2))
