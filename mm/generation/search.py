"""Greedy search and beam search."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.generation.config import GenerationConfig
from mm.generation.decoder import Decoder, penalize_repetition

NEVER = -torch.inf


class Found(NamedTuple):
    """What a search found for B images.

    Args:
        tokens: (B, T) int64 tokens behind the prompt, T at most ``max_tokens``. A caption goes up to its end token,
            which is included; what stands behind it is padding.
        scores: (B,) sums of their log-probabilities under the model, no penalty applied.
    """

    tokens: Tensor
    scores: Tensor


def _all_done(flags: Tensor, step: int) -> bool:
    """Asks whether all are finished; on an accelerator only now and then, since the answer makes the host wait."""
    return (flags.device.type == "cpu" or step % 8 == 7) and bool(flags.all())


def _grow(padding: Tensor | None) -> Tensor | None:
    return None if padding is None else torch.cat([padding, padding.new_ones(len(padding), 1)], 1)


def greedy_search(
    decoder: Decoder,
    prompt: Tensor,
    padding: Tensor | None,
    config: GenerationConfig,
    end: int,
    fill: int,
    barred: Tensor,
) -> Found:
    """Takes the likeliest token at every step.

    Args:
        decoder: at the beginning, with one row for each image.
        prompt: (B, T) int64 tokens that captions begin with, padded on the left.
        padding: (B, T) bool, true at real tokens; None where all are.
        config: lengths and penalties.
        end: id of the token that ends a caption.
        fill: id of the padding token.
        barred: ids of tokens that are never chosen.
    """
    rows, length = prompt.shape
    tokens = prompt
    done = torch.zeros(rows, dtype=torch.bool, device=prompt.device)
    total = torch.zeros(rows, device=prompt.device)
    ending = torch.tensor([end], device=prompt.device)
    for step in range(config.max_tokens):
        logits = decoder.logits(tokens, padding)
        scores = penalize_repetition(logits, tokens, padding, config.repetition_penalty)
        if len(barred):
            scores = scores.index_fill(1, barred, NEVER)
        if step < config.min_tokens:
            scores = scores.index_fill(1, ending, NEVER)
        best = scores.argmax(-1)
        gained = logits.log_softmax(-1).gather(1, best[:, None])[:, 0]
        total = torch.where(done, total, total + gained)
        tokens = torch.cat([tokens, torch.where(done, fill, best)[:, None]], 1)
        padding = _grow(padding)
        done = done | (best == end)
        if _all_done(done, step):
            break
    return Found(tokens[:, length:], total)


class _Finished:
    """The K best finished captions of every image so far.

    Args:
        images: how many images B.
        beams: K.
        max_tokens: the most tokens of a caption.
        fill: id of the padding token.
        device: where they are kept.
    """

    def __init__(self, images: int, beams: int, max_tokens: int, fill: int, device: torch.device) -> None:
        self.fill = fill
        self.scores = torch.full((images, beams), NEVER, device=device)
        self.totals = torch.zeros(images, beams, device=device)
        self.tokens = torch.full((images, beams, max_tokens), fill, device=device)

    def add(self, scores: Tensor, totals: Tensor, tokens: Tensor) -> None:
        """Keeps the best of those there and of (B, R) new ones with (B, R, T) tokens; a score of ``NEVER`` is none."""
        beams, room = self.tokens.shape[1:]
        padded = F.pad(tokens, (0, room - tokens.shape[2]), value=self.fill)
        self.scores, chosen = torch.cat([self.scores, scores], 1).topk(beams, dim=1)
        self.totals = torch.cat([self.totals, totals], 1).gather(1, chosen)
        self.tokens = _rows(torch.cat([self.tokens, padded], 1), chosen)


def _rows(tokens: Tensor, chosen: Tensor) -> Tensor:
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2]))


def beam_search(
    decoder: Decoder,
    prompt: Tensor,
    padding: Tensor | None,
    config: GenerationConfig,
    end: int,
    fill: int,
    barred: Tensor,
) -> Found:
    """Keeps the K likeliest beginnings at every step, and returns the caption of the best length-penalized score.

    A row is done once its best running beam, at its length so far, scores no better than any of K finished captions.

    Args:
        decoder: at the beginning, with one row for each image.
        prompt: (B, T) int64 tokens that captions begin with, padded on the left.
        padding: (B, T) bool, true at real tokens; None where all are.
        config: number of beams, lengths and penalties.
        end: id of the token that ends a caption.
        fill: id of the padding token.
        barred: ids of tokens that are never chosen.
    """
    images, length = prompt.shape
    beams, device = config.beams, prompt.device
    spread = torch.arange(images, device=device).repeat_interleave(beams)
    first_row = torch.arange(images, device=device)[:, None] * beams
    rank = torch.arange(2 * beams, device=device)
    ending = torch.tensor([end], device=device)
    running = torch.full((images, beams), NEVER, device=device)  # what beams are ranked by: with the repetition penalty
    running[:, 0] = 0.0
    totals = torch.zeros(images, beams, device=device)  # sums of log-probabilities: without it
    finished = _Finished(images, beams, config.max_tokens, fill, device)
    done = torch.zeros(images, dtype=torch.bool, device=device)

    logits = decoder.logits(prompt, padding)[spread]
    decoder.select(spread)
    tokens = prompt[spread]
    padding = padding[spread] if padding is not None else None
    for step in range(config.max_tokens):
        if step:
            logits = decoder.logits(tokens, padding)
        likely = logits.log_softmax(-1)
        scores = penalize_repetition(likely, tokens, padding, config.repetition_penalty)
        if len(barred):
            scores = scores.index_fill(1, barred, NEVER)
        if step < config.min_tokens:
            scores = scores.index_fill(1, ending, NEVER)
        vocabulary = scores.shape[-1]
        sums = (scores.view(images, beams, -1) + running[..., None]).flatten(1)
        best_sums, best = sums.topk(2 * beams, dim=1)
        best_totals = totals.gather(1, best // vocabulary) + likely.view(images, -1).gather(1, best)
        source, token = best // vocabulary + first_row, best % vocabulary
        grown = torch.cat([tokens[source], token[..., None]], 2)
        ended = token == end
        last = step + 1 == config.max_tokens

        complete = (ended | last) & (rank < beams) & ~done[:, None]
        ranked = (best_sums / (step + 1) ** config.length_penalty).masked_fill(~complete, NEVER)
        finished.add(ranked, best_totals, grown[..., length:])

        running, chosen = best_sums.masked_fill(ended, NEVER).topk(beams, dim=1)
        reachable = running[:, 0] / (step + 1) ** config.length_penalty
        done = done | (reachable <= finished.scores[:, -1])
        if last or _all_done(done, step):
            break
        totals = best_totals.gather(1, chosen)
        tokens = _rows(grown, chosen).flatten(0, 1)
        rows = source.gather(1, chosen).flatten()
        decoder.select(rows)
        padding = _grow(padding[rows] if padding is not None else None)
    return Found(finished.tokens[:, 0], finished.totals[:, 0])
