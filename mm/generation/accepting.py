"""Which of the tokens that a draft model proposes are accepted."""

from __future__ import annotations

import torch
from torch import Tensor

from mm.generation.sampling import Sampler, invert

STREAMS = 3  # numbers drawn for each token: one to propose it, one to accept it, one for what replaces it


class Likeliest:
    """Accepts the tokens that greedy search takes."""

    def propose(self, scores: Tensor, places: Tensor) -> Tensor:
        """Gives for (B, 1, V) scores of the draft its (B, 1) tokens."""
        return scores.argmax(-1)

    def verify(self, scores: Tensor, proposed: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Compares proposals with what the model would take, as ``Drawn.verify`` does."""
        choice = scores.argmax(-1)
        return choice, choice[:, :-1] == proposed

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only."""


class Drawn:
    """Accepts proposals so that tokens have exactly the model's distribution (arXiv:2211.17192, arXiv:2302.01318).

    A token proposed with probability q is accepted with probability min(1, p / q), where the model gives it p. What
    replaces a refused one is drawn by max(0, p - q).

    Args:
        sampler: gives the probabilities that tokens are drawn by.
        noise: (B, 3, T) float32 in [0, 1), numbers for each place of a caption.
    """

    def __init__(self, sampler: Sampler, noise: Tensor) -> None:
        self.sampler = sampler
        self.noise = noise
        self.proposed_by: list[Tensor] = []  # (B, 1, V) probabilities of each token proposed in this round

    def _numbers(self, stream: int, places: Tensor) -> Tensor:
        return self.noise[:, stream].gather(1, places.clamp_max(self.noise.shape[2] - 1))

    def propose(self, scores: Tensor, places: Tensor) -> Tensor:
        """Draws for (B, 1, V) scores of the draft its (B, 1) tokens, which stand at ``places`` of the captions."""
        self.proposed_by.append(self.sampler.probabilities(scores))
        return invert(self.proposed_by[-1], self._numbers(0, places))

    def verify(self, scores: Tensor, proposed: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Accepts proposals or replaces them.

        Args:
            scores: (B, M + 1, V) of the model, for each proposed token and the one behind them.
            proposed: (B, M) int64.
            places: (B, M + 1) where these tokens stand in the captions.

        Returns:
            (B, M + 1) tokens: a proposal where it is accepted, else its replacement; they hold as far as all before
            them are accepted. (B, M) bool, which are accepted.
        """
        wanted = self.sampler.probabilities(scores)
        first = wanted[:, :-1]
        offered = torch.cat([first[:, :0], *self.proposed_by], 1)
        self.proposed_by = []
        chances = [one.gather(2, proposed[..., None])[..., 0] for one in (first, offered)]
        accepted = self._numbers(1, places[:, :-1]) * chances[1] < chances[0]
        rest = (first - offered).clamp_min(0)
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, first)  # the two are alike but for rounding
        drawn = invert(torch.cat([rest, wanted[:, -1:]], 1), self._numbers(2, places))
        return torch.cat([torch.where(accepted, proposed, drawn[:, :-1]), drawn[:, -1:]], 1), accepted

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only."""
        self.noise = self.noise[images]
