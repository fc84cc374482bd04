"""One step of decoding: the next token's logits, from both caches or from scratch."""

from __future__ import annotations

import torch
from torch import Tensor

from mm.models.text import Conditioning, TextTransformer


class Decoder:
    """A text decoder in the middle of decoding: it has seen some tokens of every row.

    The image keys and values were projected once per image and are shared by its beams; the keys and values of tokens
    are kept in a preallocated cache.

    Args:
        model: the text decoder.
        about: what each of B rows is about.
        capacity: the most tokens a row may reach.
        cached: keep keys and values between steps; without, every step reads the whole row again, which is slow and
            gives the same logits.
    """

    def __init__(self, model: TextTransformer, about: Conditioning, capacity: int, cached: bool = True) -> None:
        self.model = model
        self.about = about
        self.ahead = 0 if about.prefix is None else about.prefix.shape[1]
        self.cache = model.cache(about.rows, self.ahead + capacity) if cached else None

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
        prefix, seen = self.about.prefix, 0
        if self.cache is not None and self.cache.length:
            seen = self.cache.length - self.ahead
        elif prefix is not None and len(prefix) != len(tokens):
            prefix = prefix.repeat_interleave(len(tokens) // len(prefix), 0)
        hidden = self.model(
            tokens[:, seen:], padding=padding, context=self.about.context, prefix=prefix, cache=self.cache
        )
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
