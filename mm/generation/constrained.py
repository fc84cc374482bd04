"""Beam search for captions in which words or phrases must appear."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.errors import OptionError
from mm.generation.beam import BeamSearch
from mm.generation.phrases import Phrases, find_boundaries
from mm.generation.rules import NEVER, Rules
from mm.generation.stopping import StopStrings
from mm.generation.text import Text, contains, words
from mm.generation.written import Task, Written


class ConstrainedBeamSearch(BeamSearch):
    """Beam search in which phrases must appear, with beams shared out dynamically (Post & Vilar, arXiv:1804.06609).

    Beginnings are divided into banks by the tokens of phrases that they still need, and the banks get beams in turn, so
    that those with more of the phrases aren't displaced by likelier ones with fewer. Beginnings that need more tokens
    than there is room for are left out, so that the phrases fit in whatever comes before them.

    Args:
        task: what to do.
        written: gets the captions.
        text: the tokenizer.

    Raises:
        OptionError: there is no room for the phrases, or another option rules one out.
    """

    def __init__(self, task: Task, written: Written, text: Text) -> None:
        super().__init__(task, written)
        config, device = task.config, task.prompts.device
        self.text = text
        self.stops = StopStrings(config.stop, text)
        vocabulary = task.decoder.model.embedding.num_embeddings
        self.required = without_implied(config.required)
        spellings = [self._usable(phrase, vocabulary) for phrase in self.required]
        self.phrases = Phrases(spellings, find_boundaries(cast(Hashable, text), vocabulary), device)
        needed = int(self.phrases.needed_now(task.prompts).amax())
        if needed > config.max_tokens:
            raise OptionError(
                f"required {config.required} takes {needed} tokens, more than max_tokens {config.max_tokens}; "
                "give more max_tokens or require less"
            )

    def _usable(self, phrase: str, vocabulary: int) -> list[list[int]]:
        """Gives the spellings of a phrase that may be written."""
        known = self.text.spellings(phrase)
        marks = {self.task.end, self.task.fill}
        usable = [
            ids
            for ids in known
            if not marks & {*ids}
            and all(self.stops.find(text) is None for text in self.text.decode([ids]))
            and allowed(ids, self.task.rules, vocabulary)
        ]
        if not usable:
            raise OptionError(f"required {phrase!r} can't appear: {self._others()} rule out every way to write it")
        return usable

    def _others(self) -> str:
        """Names the options that can rule out a phrase, as far as they are given."""
        names = ("forbidden", "stop", "no_repeat_ngram")
        given = [f"{name} {value}" for name in names if (value := getattr(self.config, name))]
        return " and ".join(given) or "tokens that are never chosen"

    def steps(self) -> Iterator[int]:
        """Searches step by step; gives how many tokens the beams have after each.

        Raises:
            OptionError: the search ends without as many captions as are asked for.
        """
        yield from super().steps()
        worst = self.finished.scores.flatten(1).topk(self.written.tokens.shape[1]).values[:, -1]
        if bool((worst == NEVER).any()):
            raise OptionError(
                f"required {self.config.required}: no captions were found, or too few, that have all of this and heed "
                f"{self._others()}; loosen one of these, or give more beams or max_tokens"
            )

    def candidates(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finds 2 K ways to go on, the first of every bank first: the likeliest, and the parts of phrases."""
        rows, vocabulary = self.running.rows, scores.shape[-1]
        needed = self.phrases.needed_behind(rows, vocabulary)
        left = self.config.max_tokens - (rows.shape[-1] - self.task.prompts.shape[1]) - 1
        room = torch.full((vocabulary,), left, device=rows.device)
        room[self.task.end] = 0
        sums = (scores + self.running.scores[:, 0, :, None]).masked_fill(needed > room, NEVER)

        parts = self.phrases.parts
        others = sums.index_fill(-1, parts, NEVER).topk(min(2 * self.beams, vocabulary))
        chosen = parts.expand(*sums.shape[:2], -1)
        token = torch.cat([others.indices, chosen], -1)
        values = torch.cat([others.values, sums.gather(-1, chosen)], -1)
        source = torch.arange(self.beams, device=rows.device)[:, None].expand_as(token)
        flat = [one.flatten(1) for one in (values, source, token, needed.gather(-1, token))]
        order = in_turn(flat[0], flat[3], self.phrases.all + 1)[:, : 2 * self.beams]
        values, source, token = (one.gather(1, order)[:, None] for one in flat[:3])
        return values, source, token

    def stop(self, sums: Tensor, stopped: Tensor, rows: Tensor) -> Tensor:
        """Gives up captions that a stop string would end before all phrases are there."""
        prompt = self.task.prompts.shape[1]
        short = [
            not self._whole(row[:prompt], row[prompt:]) if ends else False
            for row, ends in zip(rows.flatten(0, -2).tolist(), stopped.flatten().tolist(), strict=True)
        ]
        return sums.masked_fill(torch.tensor(short, device=sums.device).view_as(sums), NEVER)

    def _whole(self, prompt: Sequence[int], written: Sequence[int]) -> bool:
        """Says whether a caption that is cut at a stop string has all phrases."""
        begun, rest = self.text.decode([prompt, written])
        caption = f"{begun} {self.stops.cut(rest)}"
        return all(contains(caption, phrase) for phrase in self.required)


def without_implied(phrases: Sequence[str]) -> list[str]:
    """Leaves out phrases that are there twice, or that another one contains."""
    different = list({tuple(words(phrase)): phrase for phrase in phrases}.values())
    return [one for one in different if not any(other != one and contains(other, one) for other in different)]


def allowed(ids: Sequence[int], rules: Rules, vocabulary: int) -> bool:
    """Says whether rules allow some tokens one behind the other."""
    rows = torch.tensor([[ids]], device=rules.ending.device)
    real, free = torch.ones_like(rows, dtype=torch.bool), torch.zeros(1, 1, vocabulary, device=rows.device)
    scores = [rules(free, rows[..., :n], rules.min_tokens, real[..., :n])[0, 0, token] for n, token in enumerate(ids)]
    return bool((torch.stack(scores) > NEVER).all())


def in_turn(sums: Tensor, banks: Tensor, count: int) -> Tensor:
    """Orders candidates so that every bank gives its best first, then its second, and so on.

    Args:
        sums: (B, M) what they are ranked by within a bank; minus infinity for what comes last of all.
        banks: (B, M) int64, from 0 to ``count`` - 1; the lower goes first.
        count: how many banks there are.

    Returns:
        (B, M) int64 their places, in that order.
    """
    best, order = sums.sort(descending=True, stable=True)
    banks = banks.gather(1, order)
    before = F.one_hot(banks, count).cumsum(1).gather(2, banks[..., None])[..., 0]
    turn = (before * count + banks).masked_fill(best == NEVER, (sums.shape[1] + 1) * count)
    return order.gather(1, turn.sort(stable=True).indices)
