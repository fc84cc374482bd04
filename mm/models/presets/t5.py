"""T5."""

from __future__ import annotations

from torch import nn

from mm.layers import Attention, FeedForward, RelativeBias
from mm.layers.masks import MaskKind
from mm.models.presets.blocks import Blocks, output_head, token_embedding
from mm.models.text import TextTransformer


def t5(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    hidden: int,
    *,
    head_width: int | None = None,
    max_tokens: int = 512,
    mask: MaskKind = "causal",
    context_width: int | None = None,
    cross: str = "attention",
    cross_every: int = 1,
    head: bool = True,
    tied: bool = True,
    scaled: bool = True,
    activation: str = "relu",
    gated: bool = False,
    buckets: int = 32,
    furthest: int = 128,
    eps: float = 1e-6,
    dropout: float = 0.1,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds T5's encoder or decoder (arXiv:1910.10683): pre-RMSNorm and a relative bias.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        hidden: width inside the feed-forward networks.
        head_width: width of a head; None for D / N.
        max_tokens: the most tokens of a text.
        mask: ``causal`` for the decoder, ``bidirectional`` for the encoder.
        context_width: width of what its cross-attention sees; None for none.
        cross: ``attention`` in the blocks, or ``gated`` before them.
        cross_every: one block in so many has cross-attention, from the first.
        head: whether it gives logits.
        tied: whether logits come from the token embedding.
        scaled: whether hidden states are divided by the root of D before they become logits.
        activation: of the feed-forward networks.
        gated: whether a third map gates them (v1.1).
        buckets: distances that are told apart.
        furthest: distance from which on all are the same.
        eps: of the norms.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """

    def attention(context: int | None = None) -> Attention:
        return Attention(width, heads, head_width=head_width, context_width=context, bias=False, scale=1.0)

    def norm() -> nn.Module:
        return nn.RMSNorm(width, eps=eps)

    def network() -> FeedForward:
        return FeedForward(width, hidden, activation=activation, gated=gated, bias=False, dropout=dropout)

    seeing = Blocks(width, context_width, cross, cross_every, norm, attention, network, dropout)
    scale = width**-0.5 if scaled else 1.0
    return TextTransformer(
        embedding or token_embedding(vocabulary, width),
        [seeing.block(number) for number in range(blocks)],
        max_tokens,
        mask,
        positions=RelativeBias(heads, buckets, furthest, mask == "bidirectional"),
        norm=norm(),
        head=output_head(vocabulary, width, tied=tied, bias=False, scale=scale) if head else None,
        dropout=dropout,
    )
