"""The text transformer of mm-tiny."""

from __future__ import annotations

from torch import nn

from mm.layers.masks import MaskKind
from mm.models.presets.blocks import block, token_embedding
from mm.models.text import Head, TextTransformer


def own(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    max_tokens: int,
    *,
    mask: MaskKind = "causal",
    context_width: int | None = None,
    head: bool = True,
    dropout: float = 0.1,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds a text transformer as mm-tiny has: pre-LayerNorm, learned positions, logits from the token embedding.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        max_tokens: the most tokens of a text.
        mask: ``causal`` for a decoder, ``bidirectional`` for an encoder.
        context_width: width of what its cross-attention sees; None for none.
        head: whether it gives logits.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """
    stack = [block(width, heads, context_width=context_width, dropout=dropout) for _ in range(blocks)]
    return TextTransformer(
        embedding or token_embedding(vocabulary, width),
        stack,
        max_tokens,
        mask,
        norm=nn.LayerNorm(width),
        head=Head(vocabulary) if head else None,
        dropout=dropout,
    )
