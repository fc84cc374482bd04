"""One step of decoding: the next token's logits, from both caches or from scratch."""

from __future__ import annotations

import torch
from torch import Tensor

from mm.layers import KeyValues
from mm.models.text import TextTransformer


class Decoder:
    """A text decoder in the middle of decoding: it has seen some tokens of every row.

    The image keys and values are projected once per image and shared by its beams; the keys and values of tokens are
    kept in a preallocated cache.

    Args:
        model: the text decoder.
        image_tokens: (B, P, D) of the images that rows are about.
        capacity: the most tokens a row may reach.
        cached: keep keys and values between steps; without, every step reads the whole row again, which is slow and
            gives the same logits.
    """

    def __init__(self, model: TextTransformer, image_tokens: Tensor, capacity: int, cached: bool = True) -> None:
        self.model = model
        self.context: list[KeyValues] = model.keys_values(image_tokens)
        self.cache = model.cache(len(image_tokens), capacity) if cached else None

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows (R,), in that order; the rows of one image stay side by side."""
        if self.cache is not None:
            self.cache.select(rows)

    def logits(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Predicts the token that follows each row.

        Args:
            tokens: (R, T) int64, the rows from their beginning.
            padding: (R, T) bool, true at real tokens; None where all are.

        Returns:
            (R, V) float32 logits.
        """
        new = tokens[:, self.cache.length :] if self.cache is not None else tokens
        hidden = self.model(new, padding=padding, context=self.context, cache=self.cache)
        return self.model.logits(hidden[:, -1]).float()


def penalize_repetition(scores: Tensor, tokens: Tensor, real: Tensor | None, penalty: float) -> Tensor:
    """Makes tokens that are there already less likely: positive scores are divided, negative ones multiplied.

    Args:
        scores: (R, V) logits or log-probabilities.
        tokens: (R, T) the rows so far.
        real: (R, T) bool, true where a token counts.
        penalty: above 1 discourages, below 1 encourages repetition.

    Returns:
        (R, V).
    """
    if penalty == 1.0:
        return scores
    counts = torch.ones_like(tokens, dtype=scores.dtype) if real is None else real.to(scores.dtype)
    there = torch.zeros_like(scores).scatter_add_(1, tokens, counts) > 0
    return torch.where(there, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
