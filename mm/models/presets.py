"""Presets: plain functions from plain numbers to a built model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mm.layers import Attention, Block, FeedForward
from mm.models.vision import ConvStem, HybridViT, TimmViT


def block(
    width: int,
    heads: int,
    *,
    context_width: int | None = None,
    pre_norm: bool = True,
    dropout: float = 0.0,
) -> Block:
    """Builds a block with LayerNorm, GELU and a feed-forward network four times as wide as the model.

    Args:
        width: D.
        heads: N.
        context_width: width of the image tokens that a cross-attention sees; None for no cross-attention.
        pre_norm: normalize what goes into each part rather than what comes out.
        dropout: probability of dropping a unit while training.
    """
    cross = Attention(width, heads, context_width=context_width) if context_width else None
    return Block(
        Attention(width, heads),
        FeedForward(width, 4 * width),
        [nn.LayerNorm(width) for _ in range(2 + (cross is not None))],
        cross_attention=cross,
        pre_norm=pre_norm,
        dropout=dropout,
    )


def vision_encoder(
    name: str,
    *,
    image_size: int = 224,
    mean: Iterable[float] = (0.5, 0.5, 0.5),
    std: Iterable[float] = (0.5, 0.5, 0.5),
    hybrid_blocks: int = 0,
    width: int = 256,
    heads: int = 8,
    frozen_stages: int = 0,
    dropout: float = 0.0,
    pooled_dropout: float = 0.0,
) -> TimmViT | HybridViT:
    """Builds a vision encoder without pretrained weights.

    Args:
        name: a ViT of timm; with ``hybrid_blocks``, the convolutional network of timm that is the stem.
        image_size: side of the square input in pixels.
        mean: per-channel mean of the pixels that the weights expect.
        std: per-channel standard deviation likewise.
        hybrid_blocks: transformer blocks on top of a convolutional stem; 0 for a plain ViT.
        width: D of those blocks.
        heads: N of those blocks.
        frozen_stages: stages of the stem, from the first, that aren't trained; -1 for all.
        dropout: probability of dropping a unit in those blocks while training.
        pooled_dropout: likewise of the stem's pooled features.

    Raises:
        UsageError: timm has no such model, or it can't be used in this role.
    """
    if not hybrid_blocks:
        return TimmViT(name, image_size, mean, std)
    stem = ConvStem(name, frozen_stages)
    blocks = [block(width, heads, dropout=dropout) for _ in range(hybrid_blocks)]
    return HybridViT(
        stem, blocks, width, -(-image_size // 32), mean, std, dropout=dropout, pooled_dropout=pooled_dropout
    )
