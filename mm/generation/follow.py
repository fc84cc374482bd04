"""Greedy search and sampling: rows that grow by one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mm.generation.written import Task, Written, some_done, worth_leaving

Choose = Callable[[Tensor, Tensor | None], Tensor]


def likeliest(scores: Tensor, noise: Tensor | None) -> Tensor:
    """Chooses the token of the highest score: (B, K, V) to (B, K)."""
    return scores.argmax(-1)


class Growing:
    """Rows of captions that grow by one token at a time, of those images that aren't finished.

    Args:
        task: what to do.
        written: gets the tokens, with an end token behind a caption that ended by itself.
    """

    def __init__(self, task: Task, written: Written) -> None:
        images, copies, _ = written.tokens.shape
        self.task, self.written = task, written
        self.step = 0  # tokens written so far
        self.alive = torch.arange(images, device=written.tokens.device)
        self.rows = task.prompts[:, None].expand(-1, copies, -1)  # (B, K, T), prompts included
        self.done = torch.zeros(images, copies, dtype=torch.bool, device=self.rows.device)

    @property
    def noise(self) -> Tensor | None:
        """The (B, K) numbers to draw the next tokens with; None where nothing is drawn."""
        return None if self.task.noise is None else self.task.noise[self.alive, :, self.step]

    def scores(self, logits: Tensor) -> Tensor:
        """Applies the rules to the (B, K, V) logits of the next tokens."""
        return self.task.rules(logits, self.rows, self.step)

    def add(self, tokens: Tensor, logits: Tensor) -> None:
        """Writes the next tokens; what is behind a caption's end isn't written.

        Args:
            tokens: (B, K) int64.
            logits: (B, K, V) that the model gave for them.
        """
        written, step = self.written, self.step
        gained = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        written.tokens[self.alive, :, step] = tokens.masked_fill(self.done, self.task.fill)
        written.log_probabilities[self.alive, :, step] = gained.masked_fill(self.done, 0.0)
        written.lengths[self.alive] += ~self.done
        self.rows = torch.cat([self.rows, tokens[..., None]], -1)
        self.done = self.done | (tokens == self.task.end)
        stopped = self.task.stopped(written.tokens[self.alive, :, : step + 1])
        self.done = self.done if stopped is None else self.done | stopped
        self.step += 1

    def leave(self) -> Tensor | None:
        """Goes on without the images that are finished.

        Returns:
            (R,) those that are left of the ones before, none once everything is written; None where all go on.
        """
        if self.step == self.task.config.max_tokens:
            return self.alive[:0]
        if not some_done(finished := self.done.all(1), self.step - 1):
            return None
        left = worth_leaving(finished)
        if left is not None and len(left):
            self.alive, self.rows, self.done = self.alive[left], self.rows[left], self.done[left]
            self.task.keep(left)
        return left


def follow(task: Task, written: Written, choose: Choose = likeliest) -> Iterator[int]:
    """Writes captions token by token, all of a batch at once.

    Args:
        task: what to do.
        written: gets the tokens, with an end token behind a caption that ended by itself.
        choose: chooses of (B, K, V) scores, given (B, K) numbers drawn from [0, 1), the (B, K) next tokens.

    Yields:
        After each step, how many tokens have been written.
    """
    growing = Growing(task, written)
    copies = written.tokens.shape[1]
    logits = task.decoder.begin(copies)[:, None].expand(-1, copies, -1)
    while True:
        tokens = choose(growing.scores(logits), growing.noise)
        growing.add(tokens, logits)
        yield growing.step
        left = growing.leave()
        if left is not None and not len(left):
            return
        logits = task.decoder.extend(growing.rows[..., -1])
