"""Falcon and PaLM."""

from __future__ import annotations

from torch import nn

from mm.layers import Attention, FeedForward, Rotary
from mm.models.presets.blocks import Blocks, output_head, token_embedding
from mm.models.text import TextTransformer


def falcon(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    max_tokens: int,
    *,
    hidden: int | None = None,
    key_value_heads: int = 1,
    norms: int = 1,
    parallel: bool = True,
    gated: bool = False,
    context_width: int | None = None,
    cross: str = "attention",
    cross_every: int = 1,
    tied: bool = True,
    bias: bool = False,
    activation: str = "gelu",
    eps: float = 1e-5,
    base: float = 10000.0,
    dropout: float = 0.0,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds Falcon (arXiv:2311.16867), or with ``gated`` and ``silu`` PaLM (arXiv:2204.02311): parallel, multi-query.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        max_tokens: the most tokens of a text.
        hidden: width inside the feed-forward networks; None for four times D.
        key_value_heads: heads of keys and values.
        norms: 1 where attention and feed-forward network share their norm, else 2.
        parallel: whether both see what came in, or one comes after the other.
        gated: whether a third map gates the feed-forward network.
        context_width: width of what its cross-attention sees; None for none.
        cross: ``attention`` or ``gated``; where blocks are parallel, both stand before them.
        cross_every: one block in so many has cross-attention, from the first.
        tied: whether logits come from the token embedding.
        bias: whether linear maps have biases.
        activation: of the feed-forward network.
        eps: of the norms.
        base: of the rotary wavelengths.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """

    def norm() -> nn.Module:
        return nn.LayerNorm(width, eps=eps)

    def network() -> FeedForward:
        return FeedForward(width, hidden or 4 * width, activation=activation, gated=gated, bias=bias)

    def attention(context: int | None = None) -> Attention:
        groups = key_value_heads if context is None else None
        return Attention(width, heads, key_value_heads=groups, context_width=context, bias=bias)

    seeing = Blocks(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or token_embedding(vocabulary, width),
        [seeing.block(number, norms=norms, parallel=parallel) for number in range(blocks)],
        max_tokens,
        "causal",
        positions=Rotary(width // heads, base),
        norm=norm(),
        head=output_head(vocabulary, width, tied=tied, bias=False),
        dropout=dropout,
    )
