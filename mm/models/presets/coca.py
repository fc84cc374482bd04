"""CoCa (arXiv:2205.01917) as open_clip builds it: an image tower with pooled tokens, and a text decoder whose first
half is the text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mm.errors import UsageError
from mm.layers import Attention, Block, Crossing, FeedForward
from mm.models.coca import ClassTokenEncoder, OpenClipVision
from mm.models.presets.blocks import block
from mm.models.text import Head, TextTransformer


def open_clip_vision(
    embed_dim: int,
    vision_cfg: Mapping[str, Any],
    *,
    image_size: int = 224,
    quick_gelu: bool = False,
    mean: Iterable[float] = (0.5, 0.5, 0.5),
    std: Iterable[float] = (0.5, 0.5, 0.5),
) -> OpenClipVision:
    """Builds the image tower of a CoCa of open_clip, without weights.

    Args:
        embed_dim: what open_clip calls E.
        vision_cfg: open_clip's description of the tower.
        image_size: side of the square input in pixels.
        quick_gelu: whether activations are the approximate GELU of the first CLIP.
        mean: per-channel mean of the pixels that the weights expect.
        std: per-channel standard deviation likewise.

    Raises:
        UsageError: the tower is none that gives tokens.
    """
    from open_clip.model import _build_vision_tower
    from open_clip.transformer import VisionTransformer

    given: Any = dict(vision_cfg) | {"image_size": image_size, "output_tokens": True}
    tower: Any = _build_vision_tower(embed_dim, given, quick_gelu)
    if not isinstance(tower, VisionTransformer):
        raise UsageError(f"open_clip's {type(tower).__name__} gives no image tokens, which a text decoder sees")
    tower.proj = None
    return OpenClipVision(tower, mean, std)


def coca_encoder(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    max_tokens: int,
    *,
    hidden: int | None = None,
    activation: str = "gelu",
    eps: float = 1e-5,
    padding: int = 0,
    dropout: float = 0.0,
) -> ClassTokenEncoder:
    """Builds CoCa's text encoder: pre-LayerNorm, causal, with a class token behind the text.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        max_tokens: the most tokens of a text, without the class token.
        hidden: width inside the feed-forward networks; None for four times D.
        activation: of the feed-forward networks.
        eps: of the norms.
        padding: id of the padding token.
        dropout: probability of dropping a unit while training.
    """
    embedding = nn.Embedding(vocabulary, width)
    nn.init.normal_(embedding.weight, std=0.02)
    stack = [block(width, heads, hidden=hidden, activation=activation, eps=eps, dropout=dropout) for _ in range(blocks)]
    norm = nn.LayerNorm(width, eps=eps)
    return ClassTokenEncoder(embedding, stack, max_tokens, norm=norm, padding=padding, dropout=dropout)


def coca_decoder(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    max_tokens: int,
    *,
    context_width: int,
    below: TextTransformer | None = None,
    activation: str = "gelu",
    dropout: float = 0.0,
) -> TextTransformer:
    """Builds CoCa's text decoder: the text encoder's blocks, then as many of its own, which also see the image.

    Args:
        vocabulary: V.
        width: D, as that of the text encoder.
        heads: N, as those of the text encoder.
        blocks: how many of its own.
        max_tokens: the most tokens of a text.
        context_width: width of the image tokens.
        below: the text encoder, with which it shares embedding, positions and blocks.
        activation: of the feed-forward networks.
        dropout: probability of dropping a unit while training.

    Raises:
        ValueError: there is no text encoder, or it has another width or number of heads.
    """
    shared: Any = [] if below is None else list(below.blocks)
    if below is None or below.width != width or shared[0].attention.heads != heads:
        raise ValueError(f"its first blocks are a text encoder's, which must be {width} wide and have {heads} heads")

    def network() -> FeedForward:
        return FeedForward(width, 4 * width, activation=activation)

    def own() -> Block:
        crossing = Crossing(
            Attention(width, heads, context_width=context_width),
            network(),
            (nn.LayerNorm(width), nn.LayerNorm(width)),
            context_norm=nn.LayerNorm(context_width),
            dropout=dropout,
        )
        norms = [nn.LayerNorm(width), nn.LayerNorm(width)]
        return Block(
            Attention(width, heads), network(), norms, crossing=crossing, crossing_first=False, dropout=dropout
        )

    decoder = TextTransformer(
        below.embedding,
        [*shared, *(own() for _ in range(blocks))],
        max_tokens,
        "causal",
        positions=None,
        norm=nn.LayerNorm(width),
        head=Head(vocabulary, weight=torch.randn(vocabulary, width) * 0.02, bias=False),
        dropout=dropout,
    )
    decoder.positions = below.positions
    return decoder
