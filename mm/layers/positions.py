"""Positions that aren't added to the tokens: rotary embeddings and relative biases."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Rotation(NamedTuple):
    """How queries and keys are turned at some positions: (1 or B, 1, T, D / N) cosines and sines."""

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Turns (B, N, T, D / N) queries or keys: pairs are made of the first and the second half of a head."""
        first, second = x.chunk(2, -1)
        return (x * self.cos + torch.cat([-second, first], -1) * self.sin).to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., arXiv:2104.09864).

    Args:
        head_width: D / N, even.
        base: of the wavelengths.
        stretch: positions are divided by this: 1 as trained, 2 for twice as long a text.
        llama3: ``(factor, low, high, original)``: wavelengths above ``original / low`` are divided by ``factor``, those
            below ``original / high`` stay, and between the two it is blended (Llama 3, arXiv:2407.21783).

    Raises:
        ValueError: ``head_width`` is odd.
    """

    frequencies: Tensor

    def __init__(
        self,
        head_width: int,
        base: float = 10000.0,
        *,
        stretch: float = 1.0,
        llama3: tuple[float, float, float, float] | None = None,
    ) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"rotary positions turn pairs: a head's width must be even, not {head_width}")
        with torch.device("cpu"):  # computed, so never among the weights: real also while a model is only planned
            exponents = torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width
            frequencies = 1.0 / base**exponents / stretch
            if llama3 is not None:
                frequencies = _llama3(frequencies, *llama3)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> Rotation:
        """Gives the rotation at (T,) or (B, T) positions."""
        angles = positions.float()[..., None] * self.frequencies
        both = torch.cat([angles, angles], -1)
        both = both[None, None] if both.ndim == 2 else both[:, None]
        return Rotation(both.cos(), both.sin())


def _llama3(frequencies: Tensor, factor: float, low: float, high: float, original: float) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    blend = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


class RelativeBias(nn.Module):
    """A learned number for each head and distance, added to the scores (T5, arXiv:1910.10683).

    Args:
        heads: number of heads N.
        buckets: distances that are told apart; half of them one by one, the others ever more coarsely.
        furthest: distance from which on all are the same.
        bidirectional: whether keys to the right are told from those to the left.
    """

    def __init__(self, heads: int, buckets: int, furthest: int, bidirectional: bool) -> None:
        super().__init__()
        self.buckets = buckets
        self.furthest = furthest
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.randn(buckets, heads) * 0.02)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Gives (1 or B, N, queries, keys) numbers for the positions of queries and keys: (T,) or (B, T) each."""
        distance = keys[..., None, :] - queries[..., :, None]
        bias = self.weight[self._bucket(distance)].movedim(-1, -3)
        return bias[None] if bias.ndim == 3 else bias

    def _bucket(self, distance: Tensor) -> Tensor:
        buckets, start = self.buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            start, distance = (distance > 0) * buckets, distance.abs()
        else:
            distance = (-distance).clamp_min(0)
        exact = buckets // 2
        steps = torch.log(distance.clamp_min(1).float() / exact) / math.log(self.furthest / exact) * (buckets - exact)
        coarse = (exact + steps.long()).clamp_max(buckets - 1)
        return start + torch.where(distance < exact, distance, coarse)
