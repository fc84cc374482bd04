"""Which of several captions of an image are given: the likeliest, or those that the others agree with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mm.generation.config import GenerationConfig

if TYPE_CHECKING:
    from mm.generation.generate import Generated

Rank = Callable[[Sequence[Sequence["Generated"]]], Sequence[Sequence[float]]]
"""Scores the captions of each image; the highest is the best."""
LONGEST = 4  # tokens of an n-gram


def by_likelihood(found: Sequence[Sequence[Generated]]) -> list[list[float]]:
    """Scores captions by the mean log-probability of their tokens, the end token's included."""
    return [[caption.score / max(1, caption.generated) for caption in captions] for captions in found]


def by_consensus(found: Sequence[Sequence[Generated]]) -> list[list[float]]:
    """Scores captions by their mean similarity with the other captions of the image.

    Minimum Bayes risk decoding (Kumar and Byrne, NAACL 2004; Eikema and Aziz, arXiv:2108.04718): the candidates stand
    for the model's distribution, and the best is the one most like them all. One that is there several times counts as
    often.
    """
    return [_agreement([_ngrams(caption.tokens[caption.begun :]) for caption in captions]) for captions in found]


RANKS: dict[str, Rank] = {"likelihood": by_likelihood, "consensus": by_consensus}


def rank_of(config: GenerationConfig, rank: Rank | None) -> Rank | None:
    """Gives what the captions of each image are ordered by.

    Args:
        config: the options.
        rank: what to order by in place of what can be told from tokens; None for that.

    Returns:
        None where they stay as they were found.

    Raises:
        ValueError: it is up to the vision-language model, and isn't given.
    """
    if not config.best_of:
        return None
    rank = rank or RANKS.get(config.rank_by)
    if rank is None:
        raise ValueError(f"rank_by {config.rank_by} needs the images: VisionLanguagePipeline ranks by it; give rank")
    return rank


def best(found: Sequence[Sequence[Generated]], rank: Rank | None, count: int) -> list[list[Generated]]:
    """Orders captions, and gives the best of each image.

    Args:
        found: captions of each image.
        rank: what they are ordered by; of equals the one found first comes first. None leaves them as they are.
        count: how many of each image are given.
    """
    if rank is None:
        return [list(captions[:count]) for captions in found]
    ordered = []
    for captions, scores in zip(found, rank(found), strict=True):
        order = sorted(range(len(captions)), key=lambda place: -scores[place])
        ordered.append([captions[place] for place in order[:count]])
    return ordered


def _ngrams(tokens: Sequence[int]) -> list[Counter[tuple[int, ...]]]:
    """Counts the n-grams of each length."""
    return [
        Counter(zip(*(tokens[start:] for start in range(length)), strict=False)) for length in range(1, LONGEST + 1)
    ]


def _agreement(counted: Sequence[list[Counter[tuple[int, ...]]]]) -> list[float]:
    """Gives the mean similarity of each with the others; 0 for one alone."""
    sums = [0.0] * len(counted)
    for place, one in enumerate(counted):
        for other in range(place):
            likeness = _likeness(one, counted[other])
            sums[place] += likeness
            sums[other] += likeness
    return [total / max(1, len(counted) - 1) for total in sums]


def _likeness(one: Sequence[Counter[tuple[int, ...]]], other: Sequence[Counter[tuple[int, ...]]]) -> float:
    """Compares two captions: the mean, over n-grams of 1 to 4 tokens, of the F1 measure of those they share.

    It is chrF (Popović, WMT 2015) with tokens in place of characters, and precision and recall of one weight. Lengths
    of which neither has an n-gram don't count.

    Args:
        one: counts of its n-grams, by their length.
        other: the same.

    Returns:
        From 0, nothing in common, to 1, the same; two empty captions are the same.
    """
    measures = []
    for ours, theirs in zip(one, other, strict=True):
        if total := ours.total() + theirs.total():
            measures.append(2 * (ours & theirs).total() / total)
    return sum(measures) / len(measures) if measures else 1.0
