"""GPT-2, and the text towers of CLIP and SigLIP."""

from __future__ import annotations

from torch import nn

from mm.layers import Attention, FeedForward
from mm.layers.masks import MaskKind
from mm.models.presets.blocks import Blocks, output_head, token_embedding
from mm.models.text import TextTransformer


def gpt2(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    max_tokens: int,
    *,
    hidden: int | None = None,
    mask: MaskKind = "causal",
    context_width: int | None = None,
    cross: str = "attention",
    cross_every: int = 1,
    head: bool = True,
    tied: bool = True,
    activation: str = "gelu_tanh",
    eps: float = 1e-5,
    dropout: float = 0.1,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds GPT-2, or the text tower of CLIP and SigLIP: pre-LayerNorm and learned positions.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        max_tokens: the most tokens of a text.
        hidden: width inside the feed-forward networks; None for four times D.
        mask: ``causal`` for a decoder, ``bidirectional`` for an encoder.
        context_width: width of what its cross-attention sees; None for none.
        cross: ``attention`` in the blocks, or ``gated`` before them.
        cross_every: one block in so many has cross-attention, from the first.
        head: whether it gives logits.
        tied: whether logits come from the token embedding.
        activation: of the feed-forward networks.
        eps: of the norms.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """

    def norm() -> nn.Module:
        return nn.LayerNorm(width, eps=eps)

    def network() -> FeedForward:
        return FeedForward(width, hidden or 4 * width, activation=activation)

    def attention(context: int | None = None) -> Attention:
        return Attention(width, heads, context_width=context)

    seeing = Blocks(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or token_embedding(vocabulary, width),
        [seeing.block(number) for number in range(blocks)],
        max_tokens,
        mask,
        norm=norm(),
        head=output_head(vocabulary, width, tied=tied, bias=False) if head else None,
        dropout=dropout,
    )
