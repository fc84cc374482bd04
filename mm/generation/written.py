"""What has been written so far of a batch of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm.generation.compiled import CompiledDecoder
from mm.generation.config import GenerationConfig
from mm.generation.decoder import Decoder
from mm.generation.rules import Rules

Ended = Callable[[Sequence[int]], bool]


class Task:
    """What a strategy is given to do.

    Args:
        decoder: at the beginning.
        rules: which tokens may be chosen.
        config: the options.
        end: id of the token that ends a caption.
        fill: id of the padding token.
        ended: says of generated tokens whether their text holds a stop string; None where there are none.
        noise: (B, C, max_tokens) float32 in [0, 1), what sampling draws with; None for the other strategies.
    """

    def __init__(
        self,
        decoder: Decoder | CompiledDecoder,
        rules: Rules,
        config: GenerationConfig,
        *,
        end: int,
        fill: int,
        ended: Ended | None = None,
        noise: Tensor | None = None,
    ) -> None:
        self.decoder = decoder
        self.rules = rules
        self.config = config
        self.end, self.fill = end, fill
        self.ended = ended
        self.noise = noise
        self.prompts = decoder.prompts

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only: those that aren't finished."""
        self.decoder.keep(images)
        self.rules.keep(images)

    def stopped(self, tokens: Tensor) -> Tensor | None:
        """Says of (..., T) generated tokens whether their text holds a stop string; None where there are none."""
        if self.ended is None:
            return None
        flat = tokens.reshape(-1, tokens.shape[-1]).tolist()
        return torch.tensor([self.ended(row) for row in flat], device=tokens.device).view(tokens.shape[:-1])


class Written:
    """The captions of a whole batch, whichever of its images are still being worked on.

    Args:
        images: B.
        captions: C, captions of each image.
        config: for the most tokens T a caption may have.
        fill: id of the padding token, which stands behind a caption's end.
        device: where they are kept.
    """

    def __init__(self, images: int, captions: int, config: GenerationConfig, fill: int, device: torch.device) -> None:
        shape = (images, captions, config.max_tokens)
        self.tokens = torch.full(shape, fill, device=device)
        self.log_probabilities = torch.zeros(shape, device=device)
        self.lengths = torch.zeros(shape[:2], dtype=torch.int64, device=device)


def some_done(done: Tensor, step: int) -> bool:
    """Asks whether any image is finished; on an accelerator only now and then, since the answer makes the host wait."""
    return (done.device.type == "cpu" or step % 8 == 7) and bool(done.any())


def worth_leaving(done: Tensor) -> Tensor | None:
    """Gives the (R,) images that are left, where so many are finished that going on without them is quicker.

    What is kept of the others is copied then, so it waits for a quarter of them.
    """
    left = (~done).nonzero()[:, 0]
    return left if 4 * len(left) <= 3 * len(done) else None
