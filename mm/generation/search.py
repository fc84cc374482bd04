"""Greedy search and beam search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mm.generation.config import GenerationConfig
from mm.generation.decoder import Decoder, penalize_repetition

NEVER = -torch.inf


class Found(NamedTuple):
    """What a search found: (B, max_tokens) int64 tokens behind the prompt, and the (B,) sum of their log-probabilities.

    A caption goes up to its end token, which is included; what stands behind it is padding.
    """

    tokens: Tensor
    scores: Tensor


def _finished(flags: Tensor, step: int) -> bool:
    """Asks whether all are finished; on an accelerator only now and then, since the answer makes the host wait."""
    return (flags.device.type == "cpu" or step % 8 == 7) and bool(flags.all())


def _grow(padding: Tensor | None) -> Tensor | None:
    return None if padding is None else torch.cat([padding, padding.new_ones(len(padding), 1)], 1)


def greedy_search(
    decoder: Decoder, prompt: Tensor, padding: Tensor | None, config: GenerationConfig, end: int, fill: int
) -> Found:
    """Takes the likeliest token at every step.

    Args:
        decoder: at the beginning, with one row for each image.
        prompt: (B, T) int64 tokens that captions begin with, padded on the left.
        padding: (B, T) bool, true at real tokens; None where all are.
        config: lengths and penalties.
        end: id of the token that ends a caption.
        fill: id of the padding token.
    """
    rows, length = prompt.shape
    tokens = prompt
    done = torch.zeros(rows, dtype=torch.bool, device=prompt.device)
    total = torch.zeros(rows, device=prompt.device)
    for step in range(config.max_tokens):
        logits = decoder.logits(tokens, padding)
        scores = penalize_repetition(logits, tokens, padding, config.repetition_penalty)
        if step < config.min_tokens:
            scores[:, end] = NEVER
        best = scores.argmax(-1)
        gained = logits.log_softmax(-1).gather(1, best[:, None])[:, 0]
        total = torch.where(done, total, total + gained)
        tokens = torch.cat([tokens, torch.where(done, fill, best)[:, None]], 1)
        padding = _grow(padding)
        done = done | (best == end)
        if _finished(done, step):
            break
    return Found(tokens[:, length:], total)


def beam_search(
    decoder: Decoder, prompt: Tensor, padding: Tensor | None, config: GenerationConfig, end: int, fill: int
) -> Found:
    """Keeps the K likeliest beginnings at every step, and returns the caption of the best length-penalized score.

    A row is done once no running beam can beat its K finished captions.

    Args:
        decoder: at the beginning, with one row for each image.
        prompt: (B, T) int64 tokens that captions begin with, padded on the left.
        padding: (B, T) bool, true at real tokens; None where all are.
        config: number of beams, lengths and penalties.
        end: id of the token that ends a caption.
        fill: id of the padding token.
    """
    images, length = prompt.shape
    beams, device = config.beams, prompt.device
    spread = torch.arange(images, device=device).repeat_interleave(beams)
    first_row = torch.arange(images, device=device)[:, None] * beams
    rank = torch.arange(2 * beams, device=device)
    running = torch.full((images, beams), NEVER, device=device)
    running[:, 0] = 0.0
    kept_scores = torch.full((images, beams), NEVER, device=device)
    kept_sums = torch.zeros(images, beams, device=device)
    kept = torch.full((images, beams, config.max_tokens), fill, device=device)
    done = torch.zeros(images, dtype=torch.bool, device=device)

    logits = decoder.logits(prompt, padding)[spread]
    decoder.select(spread)
    tokens = prompt[spread]
    padding = padding[spread] if padding is not None else None
    for step in range(config.max_tokens):
        if step:
            logits = decoder.logits(tokens, padding)
        scores = penalize_repetition(logits.log_softmax(-1), tokens, padding, config.repetition_penalty)
        if step < config.min_tokens:
            scores[:, end] = NEVER
        vocabulary = scores.shape[-1]
        sums = (scores.view(images, beams, -1) + running[..., None]).flatten(1)
        best_sums, best = sums.topk(2 * beams, dim=1)
        source, token = best // vocabulary + first_row, best % vocabulary
        grown = torch.cat([tokens[source], token[..., None]], 2)
        ended = token == end
        last = step + 1 == config.max_tokens

        complete = (ended | last) & (rank < beams) & ~done[:, None]
        ranked = (best_sums / (step + 1) ** config.length_penalty).masked_fill(~complete, NEVER)
        behind = torch.full((images, 2 * beams, config.max_tokens - step - 1), fill, device=device)
        pool_scores = torch.cat([kept_scores, ranked], 1)
        pool = torch.cat([kept, torch.cat([grown[..., length:], behind], 2)], 1)
        pool_sums = torch.cat([kept_sums, best_sums], 1)
        kept_scores, chosen = pool_scores.topk(beams, dim=1)
        kept = pool.gather(1, chosen[..., None].expand(-1, -1, config.max_tokens))
        kept_sums = pool_sums.gather(1, chosen)

        running, chosen = best_sums.masked_fill(ended, NEVER).topk(beams, dim=1)
        reachable = running[:, 0] / (step + 1) ** config.length_penalty
        done = done | (reachable <= kept_scores[:, -1])
        if last or _finished(done, step):
            break
        tokens = grown.gather(1, chosen[..., None].expand(-1, -1, grown.shape[-1])).flatten(0, 1)
        rows = source.gather(1, chosen).flatten()
        decoder.select(rows)
        padding = _grow(padding[rows] if padding is not None else None)
    return Found(kept[:, 0], kept_sums[:, 0])
