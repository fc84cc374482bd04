"""What a user may ask of decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mm.errors import OptionError


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are decoded: by greedy search or by beam search.

    Args:
        beams: sequences kept at each step; 1 for greedy search.
        min_tokens: tokens a caption has at least before it may end.
        max_tokens: tokens a caption has at most, the prompt not counted.
        length_penalty: beam search ranks captions by log-probability / tokens ** length_penalty; above 0 favours longer
            ones. Greedy search follows a single caption, so there is nothing to rank.
        repetition_penalty: above 1, tokens that are there already, the prompt's too, become less likely (Keskar et al.,
            arXiv:1909.05858). Greedy search divides logits by it, beam search log-probabilities.

    Raises:
        OptionError: an option is out of range, or two contradict each other.
    """

    beams: int = 1
    min_tokens: int = 1
    max_tokens: int = 30
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise OptionError(f"beams must be at least 1, not {self.beams}")
        if self.max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise OptionError(f"min_tokens {self.min_tokens} must be between 0 and max_tokens {self.max_tokens}")
        if not -10 <= self.length_penalty <= 10:
            raise OptionError(f"length_penalty must be between -10 and 10, not {self.length_penalty}")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise OptionError(f"repetition_penalty must be a number above 0, not {self.repetition_penalty}")
