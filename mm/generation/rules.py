"""What decoding may choose: penalties and prohibitions, the same for every strategy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.generation.config import GenerationConfig

NEVER = -torch.inf


class Rules:
    """Changes the scores of next tokens by the options that act in every strategy.

    Args:
        config: lengths, penalties and prohibitions.
        end: id of the token that ends a caption.
        never: ids of tokens that are never chosen.
        forbidden: token ids of the phrases that never appear, each of them in every spelling.
        real: (B, P) bool, true at the real tokens of the prompts; None where all are.
        device: where scores are.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        end: int,
        never: Sequence[int] = (),
        forbidden: Sequence[Sequence[int]] = (),
        real: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.min_tokens = config.min_tokens
        self.repetition_penalty = config.repetition_penalty
        self.no_repeat_ngram = config.no_repeat_ngram
        self.real = real
        alone = [ids[0] for ids in forbidden if len(ids) == 1]
        self.barred = torch.tensor([*never, *alone], dtype=torch.int64, device=device)
        self.ending = torch.tensor([end], device=device)
        by_length: dict[int, list[list[int]]] = defaultdict(list)
        for ids in forbidden:
            if len(ids) > 1:
                by_length[len(ids)].append(list(ids))
        self.phrases = [torch.tensor(same, device=device) for same in by_length.values()]

    def __call__(self, scores: Tensor, rows: Tensor, step: int | Tensor, real: Tensor | None = None) -> Tensor:
        """Applies them.

        Args:
            scores: (B, K, V) logits or log-probabilities of the tokens that follow.
            rows: (B, K, T) int64, the rows so far, prompts included.
            step: tokens generated so far; (B, K) where rows differ.
            real: (B, K, T) bool, true at their real tokens; None for all but the padding of the prompts.

        Returns:
            (B, K, V); what mustn't come next has minus infinity.
        """
        real = self._real(rows) if real is None else real
        if self.repetition_penalty != 1.0:
            scores = penalize_repetition(scores, rows, real, self.repetition_penalty)
        if len(self.barred):
            scores = scores.index_fill(-1, self.barred, NEVER)
        if isinstance(step, Tensor):
            early = torch.where(step < self.min_tokens, NEVER, 0.0)[..., None]
            scores = scores.index_add(-1, self.ending, early.to(scores.dtype))
        elif step < self.min_tokens:
            scores = scores.index_fill(-1, self.ending, NEVER)
        banned = [self._repeats(rows, real)] if 0 < self.no_repeat_ngram <= rows.shape[-1] else []
        banned += [_completes(rows, same) for same in self.phrases if rows.shape[-1] >= same.shape[1] - 1]
        for tokens, hit in banned:
            there = torch.zeros_like(scores).scatter_add_(-1, tokens, hit.to(scores.dtype)) > 0
            scores = scores.masked_fill(there, NEVER)
        return scores

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only."""
        self.real = None if self.real is None else self.real[images]

    def _real(self, rows: Tensor) -> Tensor | None:
        """Gives (B, 1, T) which tokens of the rows are real; None where all are."""
        if self.real is None:
            return None
        return F.pad(self.real, (0, rows.shape[-1] - self.real.shape[1]), value=True)[:, None]

    def _repeats(self, rows: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gives (B, K, M) tokens that followed earlier, and whether the same tokens stand before them as at the end."""
        size = self.no_repeat_ngram
        windows = rows.unfold(-1, size, 1)
        hit = (windows[..., :-1] == rows[..., None, rows.shape[-1] - size + 1 :]).all(-1)
        if real is not None:
            hit = hit & real.unfold(-1, size, 1).all(-1)
        return windows[..., -1], hit


def _completes(rows: Tensor, phrases: Tensor) -> tuple[Tensor, Tensor]:
    """Gives (B, K, M) the last tokens of (M, L) phrases, and whether rows end with what comes before them."""
    before = phrases.shape[1] - 1
    tail = rows[..., rows.shape[-1] - before :]
    hit = (tail[..., None, :] == phrases[:, :-1]).all(-1)
    return phrases[:, -1].expand(*rows.shape[:2], -1), hit


def penalize_repetition(scores: Tensor, rows: Tensor, real: Tensor | None, penalty: float) -> Tensor:
    """Makes tokens that are there already less likely: positive scores are divided, negative ones multiplied.

    Args:
        scores: (..., V) logits or log-probabilities.
        rows: (..., T) the rows so far.
        real: bool, broadcastable to (..., T), true where a token counts; None where all do.
        penalty: above 1 discourages, below 1 encourages repetition.

    Returns:
        (..., V).
    """
    counts = torch.ones_like(rows, dtype=scores.dtype)
    if real is not None:
        counts = counts * real
    there = torch.zeros_like(scores).scatter_add_(-1, rows, counts) > 0
    return torch.where(there, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
