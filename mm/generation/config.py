"""What a user may ask of decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from mm.errors import OptionError

Strategy = Literal["greedy", "beam", "sample", "contrastive"]
Ranking = Literal["likelihood", "consensus", "match", "similarity"]

# What only some strategies can heed; every other option acts in all of them.
ACTS: dict[str, tuple[Strategy, ...]] = {
    "captions": ("beam", "sample"),
    "beams": ("beam",),
    "length_penalty": ("beam",),
    "required": ("beam",),
    "groups": ("beam",),
    "diversity": ("beam",),
    "temperature": ("sample",),
    "top_k": ("sample", "contrastive"),
    "top_p": ("sample",),
    "min_p": ("sample",),
    "seed": ("sample",),
    "degeneration_penalty": ("contrastive",),
    "best_of": ("beam", "sample"),
    "rank_by": ("beam", "sample"),
    "draft_tokens": ("greedy", "sample"),
}
NEEDS = {"diversity": "groups", "rank_by": "best_of"}
CONTRASTIVE_CANDIDATES = 4
MOST_ROWS = 1024  # of an image at a time


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are decoded: the strategy, and what it is to heed.

    An option that a strategy can't heed is refused by it.

    Args:
        strategy: ``greedy`` takes the likeliest token at each step, ``beam`` keeps the likeliest beginnings, ``sample``
            draws tokens by their probability, ``contrastive`` takes likely tokens that are unlike those before
            (arXiv:2202.06417). None for beam search where there is more than one beam, else greedy search.
        captions: captions given for each image, the best first; sampled ones as they were drawn, unless ``best_of``
            ranks them.
        min_tokens: tokens a caption has at least before it may end.
        max_tokens: tokens a caption has at most, the prompt not counted.
        repetition_penalty: above 1, tokens that are there already, the prompt's too, become less likely (Keskar et al.,
            arXiv:1909.05858). Beam search applies it to log-probabilities, the others to logits.
        no_repeat_ngram: so many tokens in a row never come twice; 0 for no such rule.
        forbidden: words or phrases that never appear; in a stream, in none of the ways the tokenizer writes them.
        stop: a caption ends before the first of these texts, be it shorter than ``min_tokens``.
        beams: sequences kept at each step of beam search.
        length_penalty: beam search ranks captions by log-probability / tokens ** length_penalty; above 0 favours longer
            ones.
        required: words or phrases that must appear, in any order (Post & Vilar, arXiv:1804.06609).
        groups: groups that the beams are divided into, each told to differ from those before it (Vijayakumar et al.,
            arXiv:1610.02424).
        diversity: what a token loses, in log-probability, for each earlier group that takes it at the same step.
        temperature: of sampling: logits are divided by it; below 1 favours likely tokens.
        top_k: sample among the k likeliest tokens only; contrastive search looks at so many, 4 unless told.
        top_p: sample among the likeliest tokens that have this probability together (arXiv:1904.09751).
        min_p: sample among tokens with at least this share of the likeliest one's probability (arXiv:2407.01082).
        seed: of sampling. Each image's draws depend on it and on the image alone.
        degeneration_penalty: contrastive search weighs likeness to what is there by this, probability by the rest.
        best_of: captions found for each image, of which the best are given; 0 for no more than are given.
        rank_by: what the best of these are: ``likelihood`` per token, ``consensus`` with the others, the model's own
            ``match`` of image and text, or the ``similarity`` of image and text in its shared space.
        draft_tokens: tokens that a draft model proposes at a time in speculative decoding.

    Raises:
        OptionError: an option is out of range, two contradict each other, or the strategy can't heed one.
    """

    strategy: Strategy | None = None
    captions: int = 1
    min_tokens: int = 1
    max_tokens: int = 30
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    forbidden: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    beams: int = 1
    length_penalty: float = 1.0
    required: tuple[str, ...] = ()
    groups: int = 1
    diversity: float = 0.5
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    degeneration_penalty: float = 0.6
    best_of: int = 0
    rank_by: Ranking = "likelihood"
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        for name in ("forbidden", "stop", "required"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        self._check_choices()
        self._check_ranges()
        self._check_strategy()
        self._check_pairs()

    @property
    def way(self) -> Strategy:
        """The strategy, also where it wasn't named."""
        return self.strategy or ("beam" if self.beams > 1 else "greedy")

    def __str__(self) -> str:
        """Gives the strategy and the options that aren't as they are by default: ``beam beams=3``."""
        given = (f"{name}={getattr(self, name)}" for name in DEFAULTS if name != "strategy" and self._given(name))
        return " ".join((self.way, *given))

    @property
    def found(self) -> int:
        """Captions found for each image, of which ``captions`` are given."""
        return max(self.best_of, self.captions)

    @property
    def candidates(self) -> int:
        """Tokens that contrastive search looks at in each step."""
        return self.top_k or CONTRASTIVE_CANDIDATES

    def _check_choices(self) -> None:
        for name, known in (("strategy", get_args(Strategy)), ("rank_by", get_args(Ranking))):
            value = getattr(self, name)
            if value not in (*known, None):
                raise OptionError(f"{name} {value!r} is unknown; it is one of {', '.join(known)}")
        for name in ("forbidden", "stop", "required"):
            if any(not isinstance(text, str) or not text.strip() for text in getattr(self, name)):
                raise OptionError(f"{name} has a text without words: {getattr(self, name)!r}")

    def _check_ranges(self) -> None:
        for name in ("captions", "beams", "groups"):
            _check_count(name, getattr(self, name), at_least=1, at_most=MOST_ROWS)
        for name in ("max_tokens", "draft_tokens"):
            _check_count(name, getattr(self, name), at_least=1)
        _check_count("best_of", self.best_of, at_least=0, at_most=MOST_ROWS)
        _check_count("min_tokens", self.min_tokens)
        _check_count("no_repeat_ngram", self.no_repeat_ngram, at_least=0)
        _check_count("seed", self.seed)
        if self.top_k is not None:
            _check_count("top_k", self.top_k, at_least=1)
        _check("length_penalty", self.length_penalty, at_least=-10, at_most=10)
        _check("diversity", self.diversity, at_least=0)
        _check("min_p", self.min_p, at_least=0, at_most=1)
        _check("degeneration_penalty", self.degeneration_penalty, at_least=0, at_most=1)
        for name, most in (("repetition_penalty", math.inf), ("temperature", math.inf), ("top_p", 1.0)):
            value = getattr(self, name)
            if not (0 < value <= most and math.isfinite(value)):
                limit = "" if most == math.inf else f" and at most {most:g}"
                hint = "; strategy greedy always takes the likeliest token" if name == "temperature" else ""
                raise OptionError(f"{name} must be a number above 0{limit}, not {value}{hint}")

    def _check_strategy(self) -> None:
        for name, strategies in ACTS.items():
            if self._given(name) and self.way not in strategies:
                able = " or ".join(strategies)
                raise OptionError(
                    f"{name} {getattr(self, name)} doesn't act in strategy {self.way}; leave it out, or choose {able}"
                )
        for name, other in NEEDS.items():
            if self._given(name) and not self._given(other):
                raise OptionError(f"{name} {getattr(self, name)} acts with {other} alone; give {other} too")

    def _check_pairs(self) -> None:
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise OptionError(f"min_tokens {self.min_tokens} must be between 0 and max_tokens {self.max_tokens}")
        if self.beams % self.groups:
            raise OptionError(f"beams {self.beams} can't be divided into groups {self.groups} of one size")
        if self.groups > 1 and self.required:
            raise OptionError(f"groups {self.groups} and required {self.required} can't be combined; leave one out")
        if 0 < self.best_of < self.captions:
            raise OptionError(f"best_of {self.best_of} finds fewer than captions {self.captions}")
        if self.way == "beam" and self.found > self.beams:
            name = "best_of" if self.best_of > self.captions else "captions"
            raise OptionError(f"{name} {self.found} are more than beams {self.beams} of beam search")
        if both := [text for text in self.required if text in self.forbidden]:
            raise OptionError(f"required and forbidden both have {both[0]!r}")

    def _given(self, name: str) -> bool:
        return bool(getattr(self, name) != DEFAULTS[name])


def _check_count(name: str, value: object, *, at_least: float = -math.inf, at_most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(f"{name} must be a whole number, not {value!r}")
    if at_least > -math.inf:
        _check(name, value, at_least=at_least, at_most=at_most)


def _check(name: str, value: float, *, at_least: float, at_most: float = math.inf) -> None:
    if not (at_least <= value <= at_most and math.isfinite(value)):
        limit = f"at least {at_least:g}" if at_most == math.inf else f"between {at_least:g} and {at_most:g}"
        raise OptionError(f"{name} must be {limit}, not {value}")


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(GenerationConfig)}
