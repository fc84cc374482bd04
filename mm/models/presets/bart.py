"""BART and mBART."""

from __future__ import annotations

from torch import nn

from mm.layers import Attention, FeedForward
from mm.layers.masks import MaskKind
from mm.models.presets.blocks import Blocks, output_head, token_embedding
from mm.models.text import TextTransformer


def bart(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    hidden: int,
    max_tokens: int,
    *,
    mask: MaskKind = "causal",
    context_width: int | None = None,
    cross: str = "attention",
    cross_every: int = 1,
    head: bool = True,
    tied: bool = True,
    pre_norm: bool = False,
    embedding_scale: float = 1.0,
    activation: str = "gelu",
    dropout: float = 0.1,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds the encoder or decoder of BART (arXiv:1910.13461), or with ``pre_norm`` of mBART (arXiv:2001.08210).

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        hidden: width inside the feed-forward networks.
        max_tokens: the most tokens of a text.
        mask: ``causal`` for the decoder, ``bidirectional`` for the encoder.
        context_width: width of what its cross-attention sees; None for none.
        cross: ``attention`` in the blocks, or ``gated`` before them.
        cross_every: one block in so many has cross-attention, from the first.
        head: whether it gives logits.
        tied: whether logits come from the token embedding.
        pre_norm: normalize what goes into each part, and what comes out in the end.
        embedding_scale: what embedded tokens are multiplied with.
        activation: of the feed-forward networks.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """

    def norm() -> nn.Module:
        return nn.LayerNorm(width)

    def attention(context: int | None = None) -> Attention:
        return Attention(width, heads, context_width=context)

    def network() -> FeedForward:
        return FeedForward(width, hidden, activation=activation)

    seeing = Blocks(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or token_embedding(vocabulary, width),
        [seeing.block(number, pre_norm=pre_norm) for number in range(blocks)],
        max_tokens,
        mask,
        norm=norm() if pre_norm else None,
        embedding_norm=norm(),
        embedding_scale=embedding_scale,
        head=output_head(vocabulary, width, tied=tied) if head else None,
        dropout=dropout,
    )
