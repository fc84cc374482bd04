"""The sides of the comparison: mm, transformers and open_clip, each captioning ready pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mm.data.transforms import to_pixels
from mm.errors import UsageError
from mm.generation import Generated, GenerationConfig, generate
from mm.models import Conditioning
from mm.pipeline import VisionLanguagePipeline

MISSING = "isn't installed, or too old: 'mm bench caption' compares with it; pip install 'mm[bench]'"


@dataclass(frozen=True)
class Case:
    """What is captioned.

    Args:
        images: how many images together, B.
        beams: sequences kept at each step, K; 1 for greedy search.
        tokens: length that every caption is forced to.
    """

    images: int
    beams: int
    tokens: int

    def __str__(self) -> str:
        return f"batch {self.images}, {'greedy' if self.beams == 1 else f'beam {self.beams}'}"


@dataclass(frozen=True)
class Captioned:
    """Captions, and what they took.

    Args:
        tokens: the ids of each caption, without what all of them begin with.
        vision: seconds for what is done once for each image.
        decoding: seconds for the rest.
    """

    tokens: list[list[int]]
    vision: float
    decoding: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.vision + self.decoding


class Subject(Protocol):
    """One side of the comparison."""

    def caption(self, images: Tensor, case: Case) -> Captioned:
        """Captions (B, 3, H, W) uint8 images."""


class Clock:
    """Reads the time once all work that was given to a device is done.

    Args:
        device: which.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Gives the time in seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class OwnModel:
    """mm, loaded as any user loads it.

    Args:
        pipeline: what ``mm.load`` gave.
        language: code of the language that captions are in.
    """

    def __init__(self, pipeline: VisionLanguagePipeline, language: str = "en") -> None:
        self.pipeline = pipeline
        self.clock = Clock(pipeline.device)
        first = torch.tensor([pipeline.tokenizer.languages[language]])
        self.opening = pipeline.model.opening(first.to(pipeline.device))[0].tolist()

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Makes (B, 3, H, W) uint8 of decoded images, as the model takes them."""
        return torch.stack([self.pipeline.ready(image) for image in images]).to(self.pipeline.device)

    @torch.inference_mode()
    def see(self, images: Tensor) -> Conditioning:
        """Does what is done once for each of (B, 3, H, W) uint8 images, the image keys and values included."""
        return self.pipeline.model.about(self.pipeline.image_tokens(images))

    def write(self, about: Conditioning, config: GenerationConfig) -> list[Generated]:
        """Captions images that were seen; the tokens of captions are without what all of them begin with."""
        model, words = self.pipeline.model, self.pipeline.tokenizer
        begun, never = [self.opening] * about.rows, model.special.image_marks
        found = generate(model.decoder, about, begun, config, end=words.end, fill=words.padding, never=never)
        return [one._replace(tokens=one.tokens[len(self.opening) - 1 :]) for one in found]

    def caption(self, images: Tensor, case: Case) -> Captioned:
        """Captions (B, 3, H, W) uint8 images; the image keys and values count as vision."""
        config = GenerationConfig(beams=case.beams, min_tokens=case.tokens, max_tokens=case.tokens)
        begin = self.clock.now()
        about = self.see(images)
        seen = self.clock.now()
        found = self.write(about, config)
        done = self.clock.now()
        return Captioned([one.tokens for one in found], seen - begin, done - seen)


class _Timed:
    """A part of a peer's model whose forward passes are timed.

    Args:
        part: which.
        clock: reads the time.
    """

    def __init__(self, part: nn.Module, clock: Clock) -> None:
        self.clock = clock
        self.spent = 0.0
        part.register_forward_pre_hook(lambda *call: self._begin())
        part.register_forward_hook(lambda *call: self._end())

    def _begin(self) -> None:
        self.begun = self.clock.now()

    def _end(self) -> None:
        self.spent += self.clock.now() - self.begun

    def run(self, work: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
        """Does some work; gives its result, the seconds spent in the part, and those spent elsewhere."""
        self.spent, begin = 0.0, self.clock.now()
        result = work()
        return result, self.spent, self.clock.now() - begin - self.spent


class TransformersBlip:
    """The BLIP captioner of transformers.

    Args:
        folder: the checkpoint, in the hub's layout.
        device: where it runs.
        dtype: precision of weights and pixels.
        mean: per-channel mean of the pixels that the checkpoint expects.
        std: per-channel standard deviation likewise.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        kind = require_transformers().BlipForConditionalGeneration
        self.model: Any = kind.from_pretrained(folder).to(device, dtype).eval()
        self.dtype, self.mean, self.std = dtype, mean, std
        self.timed = _Timed(self.model.vision_model, Clock(device))

    @torch.inference_mode()
    def caption(self, images: Tensor, case: Case) -> Captioned:
        """Captions (B, 3, H, W) uint8 images; the vision encoder alone counts as vision."""
        given = normalized(images, self.mean, self.std).to(self.dtype)
        lengths = {"min_new_tokens": case.tokens, "max_new_tokens": case.tokens}
        ids, vision, decoding = self.timed.run(
            lambda: self.model.generate(pixel_values=given, num_beams=case.beams, do_sample=False, **lengths)
        )
        return Captioned(ids[:, 1:].tolist(), vision, decoding)


class OpenClipCoca:
    """The CoCa of open_clip, with its own ``generate``.

    It ends every caption at the length limit with the end token, so its captions are a token shorter.

    Args:
        model: of open_clip.
        device: where it runs.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.mean, self.std = (tuple(model.visual.preprocess_cfg[name]) for name in ("mean", "std"))
        self.timed = _Timed(model.visual, Clock(device))

    @torch.inference_mode()
    def caption(self, images: Tensor, case: Case) -> Captioned:
        """Captions (B, 3, H, W) uint8 images; the vision tower alone counts as vision."""
        given, length = normalized(images, self.mean, self.std), case.tokens + 1
        how: dict[str, Any] = {"generation_type": "top_k", "top_k": 1}  # one token to choose from: greedy
        if case.beams > 1:
            how = {"generation_type": "beam_search", "num_beams": case.beams, "num_beam_groups": 1}
        ids, vision, decoding = self.timed.run(
            lambda: self.model.generate(given, seq_len=length, min_seq_len=length - 1, **how)
        )
        return Captioned(ids[:, 1:-1].tolist(), vision, decoding)


def normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Maps (B, 3, H, W) uint8 images to pixels, shifted and scaled per channel."""
    center, spread = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (to_pixels(images) - center) / spread


def open_clip_problem() -> str | None:
    """Says why the ``generate`` of open_clip's CoCa doesn't run here; None where it does.

    Raises:
        UsageError: transformers is missing.
    """
    from open_clip import coca_model

    if coca_model._has_transformers:
        return None
    return (
        f"its generate doesn't run with transformers {require_transformers().__version__}: it needs BeamSearchScorer, "
        "which only older versions have"
    )


def require_transformers() -> Any:
    """Imports transformers.

    Raises:
        UsageError: it is missing.
    """
    try:
        import transformers
        from transformers import BlipForConditionalGeneration
    except ImportError as error:
        raise UsageError(f"transformers {MISSING}") from error
    del BlipForConditionalGeneration
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
