"""Sampling: which tokens may be drawn, what they are drawn with, and the draw itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from mm.generation.config import GenerationConfig
from mm.generation.rules import NEVER


class Sampler:
    """Draws next tokens by their probability, after temperature, top-k, top-p and min-p, in that order.

    Args:
        config: for these four.
    """

    def __init__(self, config: GenerationConfig) -> None:
        self.temperature = config.temperature
        self.top_k, self.top_p, self.min_p = config.top_k, config.top_p, config.min_p

    def __call__(self, scores: Tensor, noise: Tensor | None) -> Tensor:
        """Draws one token for each row.

        Args:
            scores: (B, K, V) logits of next tokens.
            noise: (B, K) numbers from [0, 1).

        Returns:
            (B, K) int64 tokens.

        Raises:
            ValueError: there is nothing to draw with.
        """
        if noise is None:
            raise ValueError("sampling needs numbers to draw with")
        return invert(self.probabilities(scores), noise)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Gives what tokens are drawn by.

        Args:
            scores: (B, K, V) logits.

        Returns:
            (B, K, V) probabilities; 0 for what is cut off.
        """
        scores = scores / self.temperature
        if self.top_k is not None:
            scores = cut_top_k(scores, self.top_k)
        if self.top_p < 1:
            scores = cut_top_p(scores, self.top_p)
        if self.min_p > 0:
            scores = cut_min_p(scores, self.min_p)
        return scores.softmax(-1)


def cut_top_k(scores: Tensor, k: int) -> Tensor:
    """Leaves the k best of (..., V) scores, and whatever equals the last of them."""
    worst = scores.topk(min(k, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores < worst, NEVER)


def cut_top_p(scores: Tensor, p: float) -> Tensor:
    """Leaves the fewest likeliest tokens whose probability is p together, one at least (arXiv:1904.09751).

    Args:
        scores: (..., V) logits.
        p: above 0, below 1.

    Returns:
        (..., V); what is cut off has minus infinity.
    """
    ascending, tokens = scores.sort(stable=True)
    cut = ascending.softmax(-1).cumsum(-1) <= 1 - p
    cut[..., -1] = False
    return scores.masked_fill(cut.scatter(-1, tokens, cut), NEVER)


def cut_min_p(scores: Tensor, share: float) -> Tensor:
    """Leaves the tokens with at least this share of the likeliest one's probability (arXiv:2407.01082).

    Args:
        scores: (..., V) logits.
        share: from 0 to 1.

    Returns:
        (..., V); what is cut off has minus infinity.
    """
    probabilities = scores.softmax(-1)
    least = share * probabilities.amax(-1, keepdim=True)
    return scores.masked_fill(probabilities < least, NEVER)


def invert(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Draws by inverting the cumulative distribution: the first token that takes it above a given number.

    Args:
        probabilities: (..., V); they needn't sum up to exactly 1.
        noise: (...) float32 from [0, 1).

    Returns:
        (...) int64 tokens; never one of probability 0.
    """
    # In float64 rounding is far below the distance of float32 numbers from 1: every number is reached. An accelerator
    # adds in parallel, where a sum may exceed the one before it by rounding alone: such a token isn't taken.
    cumulative = probabilities.double().cumsum(-1)
    reached = cumulative > noise.double()[..., None] * cumulative[..., -1:]
    return (reached & (probabilities > 0)).int().argmax(-1)


def draw(seeds: Sequence[int], captions: int, steps: int, device: torch.device) -> Tensor:
    """Draws what captions are sampled with.

    Every caption of an image has a stream of its own: its numbers depend neither on the other images, nor on how many
    captions are found, nor on how long they may be.

    Args:
        seeds: one for each of B images, from 0.
        captions: C, how many are found for each image.
        steps: T, the most tokens of each.
        device: where the numbers are needed.

    Returns:
        (B, C, T) float32 in [0, 1).
    """
    noise = np.empty((len(seeds), captions, steps), np.float32)
    for image, seed in enumerate(seeds):
        for caption in range(captions):
            noise[image, caption] = np.random.default_rng([caption, seed]).random(steps, np.float32)
    return torch.from_numpy(noise).to(device)


def content_seeds(config: GenerationConfig, contents: Iterable[bytes]) -> list[int] | None:
    """Derives for each image, or text, a seed from what it is and ``config.seed``, wherever it stands in a batch.

    Args:
        config: the options.
        contents: the bytes of each; not looked at where nothing is sampled.

    Returns:
        Seeds of 64 bits; None where nothing is sampled.
    """
    if config.way != "sample":
        return None
    key = str(config.seed).encode()
    return [int.from_bytes(blake2b(key + b":" + content, digest_size=8).digest(), "little") for content in contents]
