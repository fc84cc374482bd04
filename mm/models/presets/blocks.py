"""What the presets of text transformers share: blocks that may see an image, embeddings and heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mm.layers import Attention, Block, Crossing, FeedForward
from mm.models.text import Head


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


class Blocks:
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


def token_embedding(vocabulary: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(vocabulary, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def output_head(vocabulary: int, width: int, *, tied: bool = True, bias: bool = True, **others: Any) -> Head:
    weight = None if tied else torch.randn(vocabulary, width) * 0.02
    return Head(vocabulary, weight=weight, bias=bias, **others)
