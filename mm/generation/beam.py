"""Beam search, plain and in diverse groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.generation.config import GenerationConfig
from mm.generation.rules import NEVER
from mm.generation.written import Task, Written, some_done, worth_leaving


class Running:
    """The beams that go on: G groups of K for each of B images.

    Args:
        rows: (B, G * K, T) int64 their tokens, the prompt's included.
        scores: (B, G, K) what they are ranked by: sums of scores, with penalties.
        gained: (B, G, K, T') log-probabilities of the tokens behind the prompt, without penalties.
    """

    def __init__(self, prompts: Tensor, groups: int, beams: int) -> None:
        images = len(prompts)
        self.rows = prompts[:, None].expand(-1, groups * beams, -1)
        self.scores = torch.full((images, groups, beams), NEVER, device=prompts.device)
        self.scores[..., 0] = 0.0  # all are the prompt as yet: one of each group goes on
        self.gained = torch.zeros(images, groups, beams, 0, device=prompts.device)

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only."""
        self.rows, self.scores, self.gained = self.rows[images], self.scores[images], self.gained[images]


class Finished:
    """The K best finished captions of every group so far.

    Args:
        images: how many images B.
        groups: G.
        beams: K.
        config: for the most tokens T of a caption.
        fill: id of the padding token.
        device: where they are kept.
    """

    def __init__(
        self, images: int, groups: int, beams: int, config: GenerationConfig, fill: int, device: torch.device
    ) -> None:
        self.fill = fill
        self.scores = torch.full((images, groups, beams), NEVER, device=device)
        shape = (images, groups, beams, config.max_tokens)
        self.tokens = torch.full(shape, fill, device=device)
        self.gained = torch.zeros(shape, device=device)
        self.lengths = torch.zeros(shape[:3], dtype=torch.int64, device=device)

    def add(self, images: Tensor, scores: Tensor, tokens: Tensor, gained: Tensor) -> None:
        """Keeps the best of those there and of new ones.

        Args:
            images: (R,) which images they are of.
            scores: (R, G, M); ``NEVER`` is none.
            tokens: (R, G, M, T).
            gained: (R, G, M, T).
        """
        beams, room = self.tokens.shape[2:]
        length = tokens.shape[-1]
        best, chosen = torch.cat([self.scores[images], scores], -1).topk(beams, dim=-1)
        padded = F.pad(tokens, (0, room - length), value=self.fill)
        lengths = torch.full_like(scores, length, dtype=torch.int64)
        self.scores[images] = best
        self.tokens[images] = _pick(torch.cat([self.tokens[images], padded], 2), chosen)
        self.gained[images] = _pick(torch.cat([self.gained[images], F.pad(gained, (0, room - length))], 2), chosen)
        self.lengths[images] = torch.cat([self.lengths[images], lengths], 2).gather(2, chosen)

    def give(self, written: Written) -> None:
        """Gives the best of all groups, the best first."""
        count = written.tokens.shape[1]
        best = self.scores.flatten(1).topk(count, dim=-1).indices
        written.tokens[:] = _pick(self.tokens.flatten(1, 2)[:, None], best[:, None])[:, 0]
        written.log_probabilities[:] = _pick(self.gained.flatten(1, 2)[:, None], best[:, None])[:, 0]
        written.lengths[:] = self.lengths.flatten(1).gather(1, best)


def _common(rows: list[list[int]]) -> list[int]:
    first, *others = rows
    for place, token in enumerate(first):
        if any(row[place : place + 1] != [token] for row in others):
            return first[:place]
    return first


def _pick(tokens: Tensor, chosen: Tensor) -> Tensor:
    return tokens.gather(2, chosen[..., None].expand(*chosen.shape, tokens.shape[-1]))


class BeamSearch:
    """Keeps the K likeliest beginnings at every step, and gives the captions of the best length-penalized scores.

    A group is done once its best running beam, at its length so far, scores no better than any of K finished captions.

    Args:
        task: what to do.
        written: gets the captions.
    """

    def __init__(self, task: Task, written: Written) -> None:
        config, device = task.config, task.prompts.device
        images = len(task.prompts)
        self.task, self.written, self.config = task, written, config
        self.groups, self.beams = config.groups, config.beams // config.groups
        self.running = Running(task.prompts, self.groups, self.beams)
        self.finished = Finished(images, self.groups, self.beams, config, task.fill, device)
        self.alive = torch.arange(images, device=device)
        self.done = torch.zeros(images, self.groups, dtype=torch.bool, device=device)

    def run(self) -> None:
        """Searches until every image is done."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[int]:
        """Searches step by step; gives how many tokens the beams have after each."""
        task, config = self.task, self.config
        beams = self.groups * self.beams
        logits = task.decoder.begin(beams)[:, None]
        for step in range(config.max_tokens):
            likely = logits.log_softmax(-1).expand(-1, beams, -1)
            scores = task.rules(likely, self.running.rows, step)
            sums, source, token = self.candidates(scores)
            parents = self._advance(likely, sums, source, token, step)
            yield step + 1
            if step + 1 == config.max_tokens:
                break
            if some_done(finished := self.done.all(1), step):
                left = worth_leaving(finished)
                if left is not None:
                    if not len(left):
                        break
                    self._keep(left)
                    parents = parents[left]
            logits = task.decoder.extend(self.running.rows[..., -1], parents)
        self.finished.give(self.written)

    def candidates(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the 2 K best ways to go on in each group, the best first.

        A group is told to differ from those before it: each of their likeliest K that takes a token makes it cost more.

        Args:
            scores: (B, G * K, V) of each beam's next tokens.

        Returns:
            (B, G, 2 K) each: sums of scores, which beam of the group goes on, and with which token.
        """
        sums, source, token = [], [], []
        vocabulary = scores.shape[-1]
        taken = None
        for group, rows in enumerate(scores.unflatten(1, (self.groups, self.beams)).unbind(1)):
            if taken is not None:
                rows = rows - self.config.diversity * taken[:, None]
            whole = (rows + self.running.scores[:, group, :, None]).flatten(1)
            best, place = whole.topk(2 * self.beams, dim=1)
            sums.append(best)
            source.append(place // vocabulary)
            token.append(place % vocabulary)
            if group + 1 < self.groups:
                taken = torch.zeros_like(scores[:, 0]) if taken is None else taken
                chosen = token[-1][:, : self.beams]
                taken = taken.scatter_add(1, chosen, torch.ones_like(chosen, dtype=taken.dtype))
        return torch.stack(sums, 1), torch.stack(source, 1), torch.stack(token, 1)

    def stop(self, sums: Tensor, stopped: Tensor, rows: Tensor) -> Tensor:
        """Gives the scores of captions once stop strings have ended some.

        Args:
            sums: (B, G, 2 K) what they are ranked by.
            stopped: (B, G, 2 K) bool, those that are ended.
            rows: (B, G, 2 K, T) int64 their tokens, prompts included.

        Returns:
            (B, G, 2 K); minus infinity for one that can't be given.
        """
        return sums

    def _advance(self, likely: Tensor, sums: Tensor, source: Tensor, token: Tensor, step: int) -> Tensor:
        """Finishes captions that end, and lets the best others go on; gives the (B, G * K) rows they come from."""
        running, config = self.running, self.config
        rows = source + torch.arange(self.groups, device=source.device)[:, None] * self.beams
        before = running.rows.gather(1, rows.flatten(1)[..., None].expand(-1, -1, running.rows.shape[-1]))
        grown = torch.cat([before, token.flatten(1)[..., None]], -1).unflatten(1, (self.groups, -1))
        new = likely.unflatten(1, (self.groups, self.beams)).flatten(2)
        new = new.gather(2, source * likely.shape[-1] + token)
        gained = torch.cat([_pick(running.gained, source), new[..., None]], -1)

        written = grown[..., self.task.prompts.shape[1] :]
        ended = token == self.task.end
        stopped = self.task.stopped(written)
        if stopped is not None:
            ended = ended | stopped
            sums = self.stop(sums, stopped, grown)
        last = step + 1 == config.max_tokens
        rank = torch.arange(2 * self.beams, device=token.device)
        complete = (ended | last) & (rank < self.beams) & ~self.done[..., None]
        ranked = (sums / (step + 1) ** config.length_penalty).masked_fill(~complete, NEVER)
        self.finished.add(self.alive, ranked, written, gained)

        chosen = (rank + len(rank) * ended).topk(self.beams, dim=-1, largest=False).indices  # the first that go on
        running.scores = sums.masked_fill(ended, NEVER).gather(-1, chosen)
        running.rows = _pick(grown, chosen).flatten(1, 2)
        running.gained = _pick(gained, chosen)
        reachable = running.scores.amax(-1) / (step + 1) ** config.length_penalty
        self.done = self.done | (reachable <= self.finished.scores[self.alive][..., -1])
        return rows.gather(2, chosen).flatten(1)

    def certain(self) -> list[int]:
        """Gives the tokens that whatever caption the first image may still get begins with."""
        running, finished = self.running, self.finished
        best = finished.scores[0, :, 0] > NEVER
        lengths = finished.lengths[0, best, 0].tolist()
        ended = [row[:length] for row, length in zip(finished.tokens[0, best, 0].tolist(), lengths, strict=True)]
        going = running.rows[0, running.scores[0].flatten() > NEVER, self.task.prompts.shape[1] :].tolist()
        return _common([*ended, *going])

    def _keep(self, images: Tensor) -> None:
        self.alive, self.done = self.alive[images], self.done[images]
        self.running.keep(images)
        self.task.keep(images)
