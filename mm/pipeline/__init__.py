"""What a user holds in hand: a loaded model that captions, embeds and matches images."""

from __future__ import annotations

from pathlib import Path

import torch

from mm.checkpoints.directory import first_line
from mm.checkpoints.resolve import load_vision_language
from mm.errors import OptionError
from mm.pipeline.base import CAPTION, Caption, ImageLike, Pipeline, open_image
from mm.pipeline.dual_encoder import DualEncoderPipeline
from mm.pipeline.vision_language import VisionLanguagePipeline

__all__ = [
    "CAPTION",
    "Caption",
    "DualEncoderPipeline",
    "ImageLike",
    "Pipeline",
    "VisionLanguagePipeline",
    "load",
    "open_image",
]


def load(name: str | Path = "mm-tiny", device: str | torch.device | None = None) -> Pipeline:
    """Loads a model.

    Args:
        name: ``mm-tiny``, a model directory, a training checkpoint, ``hf:owner/name``, or
            ``open_clip:architecture/tag`` where the tag may be a local file.
        device: where it runs; None for the GPU if there is one.

    Raises:
        UnknownModelError: the name names nothing.
        CheckpointError: what it names can't be read.
        OptionError: there is no such device.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise OptionError(f"device {str(device)!r} can't be used ({first_line(error)})") from error
    if str(name).startswith("open_clip:"):
        from mm.checkpoints.open_clip import load_open_clip

        encoder, transform, fingerprint = load_open_clip(str(name))
        return DualEncoderPipeline(str(name), encoder, transform, fingerprint, place)
    return VisionLanguagePipeline(str(name), load_vision_language(name), place)
