"""LLaMA."""

from __future__ import annotations

from torch import nn

from mm.layers import Attention, FeedForward, Rotary
from mm.models.presets.blocks import Blocks, output_head, token_embedding
from mm.models.text import TextTransformer


def llama(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    hidden: int,
    max_tokens: int,
    *,
    key_value_heads: int | None = None,
    head_width: int | None = None,
    context_width: int | None = None,
    cross: str = "attention",
    cross_every: int = 1,
    gate_width: int = 1,
    cross_head_norms: bool = False,
    head_norms: bool = False,
    tied: bool = False,
    bias: bool = False,
    activation: str = "silu",
    eps: float = 1e-6,
    base: float = 10000.0,
    stretch: float = 1.0,
    llama3: list[float] | None = None,
    dropout: float = 0.0,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds LLaMA (arXiv:2302.13971): pre-RMSNorm, rotary positions, SwiGLU, grouped-query attention.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        hidden: width inside the feed-forward networks.
        max_tokens: the most tokens of a text.
        key_value_heads: heads of keys and values; None for N.
        head_width: width of a head; None for D / N.
        context_width: width of what its cross-attention sees; None for none.
        cross: ``attention`` in the blocks, or ``gated`` before them.
        cross_every: one block in so many has cross-attention, from the first.
        gate_width: of the gates of gated cross-attention: 1, or D.
        cross_head_norms: normalize queries and keys of each head in gated cross-attention.
        head_norms: normalize queries and keys of each head in self-attention.
        tied: whether logits come from the token embedding.
        bias: whether attention has biases.
        activation: of the gate.
        eps: of the norms.
        base: of the rotary wavelengths.
        stretch: positions are divided by this.
        llama3: the four numbers of ``mm.layers.Rotary``, or None.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """
    size = head_width or width // heads

    def norm() -> nn.Module:
        return nn.RMSNorm(width, eps=eps)

    def pair(wanted: bool) -> tuple[nn.Module, nn.Module] | None:
        return (nn.RMSNorm(size, eps=eps), nn.RMSNorm(size, eps=eps)) if wanted else None

    def network() -> FeedForward:
        return FeedForward(width, hidden, activation=activation, gated=True, bias=False)

    def attention(context: int | None = None) -> Attention:
        if context is not None:
            pairs = pair(cross_head_norms)
            return Attention(width, heads, head_width=head_width, context_width=context, bias=False, head_norms=pairs)
        return Attention(
            width,
            heads,
            key_value_heads=key_value_heads,
            head_width=head_width,
            bias=bias,
            head_norms=pair(head_norms),
        )

    seeing = Blocks(width, context_width, cross, cross_every, norm, attention, network, dropout, gate_width)
    scaling = None if llama3 is None else (llama3[0], llama3[1], llama3[2], llama3[3])
    return TextTransformer(
        embedding or token_embedding(vocabulary, width),
        [seeing.block(number) for number in range(blocks)],
        max_tokens,
        "causal",
        positions=Rotary(size, base, stretch=stretch, llama3=scaling),
        norm=norm(),
        head=output_head(vocabulary, width, tied=tied, bias=False),
        dropout=dropout,
    )
