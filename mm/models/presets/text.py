"""Text encoders and decoders: one preset for each family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mm.layers import ACTIVATIONS, Attention, Block, Crossing, FeedForward, RelativeBias, Rotary
from mm.layers.masks import MaskKind
from mm.models.text import Head, TextTransformer


def block(
    width: int,
    heads: int,
    *,
    context_width: int | None = None,
    hidden: int | None = None,
    pre_norm: bool = True,
    activation: str = "gelu",
    eps: float = 1e-5,
    dropout: float = 0.0,
) -> Block:
    """Builds a block with LayerNorm.

    Args:
        width: D.
        heads: N.
        context_width: width of the image tokens that a cross-attention sees; None for no cross-attention.
        hidden: width inside the feed-forward network; None for four times D.
        pre_norm: normalize what goes into each part rather than what comes out.
        activation: of the feed-forward network.
        eps: of the norms.
        dropout: probability of dropping a unit while training.
    """
    cross = Attention(width, heads, context_width=context_width) if context_width else None
    return Block(
        Attention(width, heads),
        FeedForward(width, hidden or 4 * width, activation=activation),
        [nn.LayerNorm(width, eps=eps) for _ in range(2 + (cross is not None))],
        cross_attention=cross,
        pre_norm=pre_norm,
        dropout=dropout,
    )


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
        embedding or _embedding(vocabulary, width),
        stack,
        max_tokens,
        mask,
        norm=nn.LayerNorm(width),
        head=Head(vocabulary) if head else None,
        dropout=dropout,
    )


def bert(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    hidden: int,
    max_tokens: int,
    *,
    mask: MaskKind = "bidirectional",
    context_width: int | None = None,
    cross: str = "attention",
    cross_every: int = 1,
    head: bool = True,
    tied: bool = True,
    activation: str = "gelu",
    head_transform: bool = True,
    eps: float = 1e-12,
    dropout: float = 0.1,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692), BLIP's text parts or GIT's decoder: post-LayerNorm.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        hidden: width inside the feed-forward networks.
        max_tokens: the most tokens of a text.
        mask: ``causal`` for a decoder, ``bidirectional`` for an encoder.
        context_width: width of what its cross-attention sees; None for none.
        cross: ``attention`` in the blocks, or ``gated`` before them.
        cross_every: one block in so many has cross-attention, from the first.
        head: whether it gives logits.
        tied: whether logits come from the token embedding.
        activation: of the feed-forward networks and the head.
        head_transform: whether hidden states pass a linear map, activation and norm before they become logits.
        eps: of the norms.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """

    def norm() -> nn.Module:
        return nn.LayerNorm(width, eps=eps)

    def attention(context: int | None = None) -> Attention:
        return Attention(width, heads, context_width=context)

    def network() -> FeedForward:
        return FeedForward(width, hidden, activation=activation)

    seeing = _Seeing(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or _embedding(vocabulary, width),
        [seeing.block(number, pre_norm=False) for number in range(blocks)],
        max_tokens,
        mask,
        embedding_norm=norm(),
        head=_head(
            vocabulary, width, tied=tied, transform=_Transform(width, activation, eps) if head_transform else None
        )
        if head
        else None,
        dropout=dropout,
    )


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

    seeing = _Seeing(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or _embedding(vocabulary, width),
        [seeing.block(number) for number in range(blocks)],
        max_tokens,
        mask,
        norm=norm(),
        head=_head(vocabulary, width, tied=tied, bias=False) if head else None,
        dropout=dropout,
    )


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

    seeing = _Seeing(width, context_width, cross, cross_every, norm, attention, network, dropout, gate_width)
    scaling = None if llama3 is None else (llama3[0], llama3[1], llama3[2], llama3[3])
    return TextTransformer(
        embedding or _embedding(vocabulary, width),
        [seeing.block(number) for number in range(blocks)],
        max_tokens,
        "causal",
        positions=Rotary(size, base, stretch=stretch, llama3=scaling),
        norm=norm(),
        head=_head(vocabulary, width, tied=tied, bias=False),
        dropout=dropout,
    )


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

    seeing = _Seeing(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or _embedding(vocabulary, width),
        [seeing.block(number, norms=norms, parallel=parallel) for number in range(blocks)],
        max_tokens,
        "causal",
        positions=Rotary(width // heads, base),
        norm=norm(),
        head=_head(vocabulary, width, tied=tied, bias=False),
        dropout=dropout,
    )


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

    seeing = _Seeing(width, context_width, cross, cross_every, norm, attention, network, dropout)
    scale = width**-0.5 if scaled else 1.0
    return TextTransformer(
        embedding or _embedding(vocabulary, width),
        [seeing.block(number) for number in range(blocks)],
        max_tokens,
        mask,
        positions=RelativeBias(heads, buckets, furthest, mask == "bidirectional"),
        norm=norm(),
        head=_head(vocabulary, width, tied=tied, bias=False, scale=scale) if head else None,
        dropout=dropout,
    )


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

    seeing = _Seeing(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or _embedding(vocabulary, width),
        [seeing.block(number, pre_norm=pre_norm) for number in range(blocks)],
        max_tokens,
        mask,
        norm=norm() if pre_norm else None,
        embedding_norm=norm(),
        embedding_scale=embedding_scale,
        head=_head(vocabulary, width, tied=tied) if head else None,
        dropout=dropout,
    )


class _Seeing:
    """Builds the blocks of a language model, which may see an image: by cross-attention in them, or before them.

    Args:
        width: D.
        context_width: width of what is seen; None for nothing.
        kind: ``attention`` in the blocks, or ``gated``: before them, with a feed-forward network of its own and gates.
        every: one block in so many sees, from the first.
        norm: makes a norm.
        attention: makes a self-attention, or of a context's width a cross-attention.
        network: makes a feed-forward network.
        dropout: probability of dropping a unit while training.
        gate_width: of gates.

    Raises:
        ValueError: an unknown kind, or a number is out of range.
    """

    def __init__(
        self,
        width: int,
        context_width: int | None,
        kind: str,
        every: int,
        norm: Callable[[], nn.Module],
        attention: Callable[..., Attention],
        network: Callable[[], FeedForward],
        dropout: float,
        gate_width: int = 1,
    ) -> None:
        if kind not in ("attention", "gated"):
            raise ValueError(f"cross is {kind!r}: attention or gated")
        if every < 1:
            raise ValueError(f"cross_every must be at least 1, not {every}")
        if gate_width not in (1, width):
            raise ValueError(f"gate_width must be 1 or the width {width}, not {gate_width}")
        self.context_width = context_width
        self.gated = kind == "gated"
        self.every = every
        self.norm, self.attention, self.network = norm, attention, network
        self.dropout = dropout
        self.gate_width = gate_width

    def block(self, number: int, *, norms: int = 2, parallel: bool = False, pre_norm: bool = True) -> Block:
        """Builds the block of this number; a parallel one has what sees before it, with gates or without."""
        cross, crossing = None, None
        if self.context_width and number % self.every == 0:
            sight = self.attention(self.context_width)
            if self.gated or parallel:
                pair = (self.norm(), self.norm())
                gates = self.gate_width if self.gated else 0
                crossing = Crossing(sight, self.network(), pair, gate_width=gates, dropout=self.dropout)
            else:
                cross = sight
        return Block(
            self.attention(),
            self.network(),
            [self.norm() for _ in range(norms + (cross is not None))],
            cross_attention=cross,
            crossing=crossing,
            pre_norm=pre_norm,
            parallel=parallel,
            dropout=self.dropout,
        )


class _Transform(nn.Module):
    """What hidden states of BERT pass before they become logits: a linear map, an activation and a norm."""

    def __init__(self, width: int, activation: str, eps: float) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.map(hidden)))


def _embedding(vocabulary: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(vocabulary, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def _head(vocabulary: int, width: int, *, tied: bool = True, bias: bool = True, **others: Any) -> Head:
    weight = None if tied else torch.randn(vocabulary, width) * 0.02
    return Head(vocabulary, weight=weight, bias=bias, **others)


TEXT: dict[str, Callable[..., TextTransformer]] = {
    "mm": own,
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "falcon": falcon,
    "t5": t5,
    "bart": bart,
}
