"""The perceiver resampler: any number of image tokens becomes a fixed, small number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mm.layers.attention import Attention
from mm.layers.feedforward import FeedForward


class ResamplerBlock(nn.Module):
    """Latents gather from the image and from each other, then pass a feed-forward network.

    Args:
        attention: from the latents to image and latents.
        feed_forward: the position-wise network.
        norms: of the image tokens, of the latents, and of what goes into the feed-forward network.
    """

    def __init__(self, attention: Attention, feed_forward: FeedForward, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.context_norm, self.latents_norm, self.feed_forward_norm = norms

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """Maps (B, L, D) latents and (B, P, D) image tokens to (B, L, D)."""
        h = self.latents_norm(latents)
        whole = torch.cat([self.context_norm(context), h], 1)
        latents = latents + self.attention(h, self.attention.keys_values(whole))
        return latents + self.feed_forward(self.feed_forward_norm(latents))


class Resampler(nn.Module):
    """Learned latents that gather what an image's tokens hold (Flamingo, arXiv:2204.14198).

    Args:
        blocks: what the latents pass, one after the other.
        latents: number of latents L, the image tokens that come out.
        width: D.
    """

    def __init__(self, blocks: Sequence[ResamplerBlock], latents: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (B, P, D) image tokens to (B, L, D)."""
        latents = self.latents.expand(len(tokens), -1, -1)
        for block in self.blocks:
            latents = block(latents, tokens)
        return self.norm(latents)
