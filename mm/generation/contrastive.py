"""Contrastive search: likely tokens that aren't like what is there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.generation.follow import Growing
from mm.generation.rules import NEVER
from mm.generation.written import Task, Written


class States:
    """The directions of the hidden states of each row so far.

    Args:
        hidden: (B, T, D) hidden states of the prompts.
        real: (B, T) bool, true at real tokens; None where all are.
    """

    def __init__(self, hidden: Tensor, real: Tensor | None) -> None:
        self.directions = F.normalize(hidden.float(), dim=-1)
        self.real = torch.ones_like(hidden[..., 0], dtype=torch.bool) if real is None else real

    def likeness(self, directions: Tensor) -> Tensor:
        """Gives the greatest cosine similarity of each with those of the row: (B, K, D) to (B, K)."""
        cosines = directions @ self.directions.transpose(1, 2)
        return cosines.masked_fill(~self.real[:, None], -1.0).amax(-1)

    def add(self, directions: Tensor) -> None:
        """Puts the (B, D) direction of the next token behind each row."""
        self.directions = torch.cat([self.directions, directions[:, None]], 1)
        self.real = F.pad(self.real, (0, 1), value=True)

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only."""
        self.directions, self.real = self.directions[images], self.real[images]


def contrast(task: Task, written: Written) -> Iterator[int]:
    """Writes captions by contrastive search (Su et al., arXiv:2202.06417).

    The likeliest tokens are candidates. The one is taken whose ``(1 - penalty) * probability - penalty * likeness`` is
    the highest: likeness is the greatest cosine similarity of its hidden state with those of the tokens before it, the
    prompt's too, but not of an image in front of the text. Probabilities are those under the rules, so that without a
    penalty this is greedy search. All candidates are read in one pass; the next go on from the row of the chosen one.

    Args:
        task: what to do; its decoder reads ``config.candidates`` tokens at each step.
        written: gets the tokens, one caption for each image.

    Yields:
        After each step, how many tokens have been written.
    """
    decoder, penalty = task.decoder, task.config.degeneration_penalty
    growing = Growing(task, written)
    logits = decoder.begin()
    states = States(decoder.hidden, decoder.padding)
    count = min(task.config.candidates, logits.shape[-1])
    chosen = torch.zeros_like(growing.rows[..., 0])  # (B, 1) the row that goes on
    while True:
        scores = growing.scores(logits[:, None])[:, 0]
        best, candidates = scores.topk(count)
        following = decoder.extend(candidates, chosen.expand(-1, count))
        directions = F.normalize(decoder.hidden.float(), dim=-1)
        probabilities = scores.softmax(-1).gather(1, candidates)
        weighed = (1 - penalty) * probabilities - penalty * states.likeness(directions)
        chosen = weighed.masked_fill(best == NEVER, NEVER).argmax(-1, keepdim=True)
        growing.add(candidates.gather(1, chosen), logits[:, None])
        logits = following.take_along_dim(chosen[..., None], 1)[:, 0]
        states.add(directions.take_along_dim(chosen[..., None], 1)[:, 0])
        yield growing.step
        left = growing.leave()
        if left is not None:
            if not len(left):
                return
            logits, chosen = logits[left], chosen[left]
            states.keep(left)
