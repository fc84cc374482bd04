"""What a user holds in hand: a loaded model, for images or for texts alone."""

from __future__ import annotations

from pathlib import Path

import torch

from mm.checkpoints.resolve import load_model
from mm.errors import OptionError, first_line
from mm.generation.compiled import check_compiler
from mm.models import LanguageModel
from mm.models.precision import AUTO, check_precision, choose
from mm.pipeline.base import ANSWER, CAPTION, TRANSLATION, Answer, Caption, ImageLike, Pipeline, open_image
from mm.pipeline.language import Filling, LanguagePipeline, Score, Translation
from mm.pipeline.vision_language import VisionLanguagePipeline

__all__ = [
    "ANSWER",
    "CAPTION",
    "TRANSLATION",
    "Answer",
    "Caption",
    "Filling",
    "ImageLike",
    "LanguagePipeline",
    "Pipeline",
    "Score",
    "Translation",
    "VisionLanguagePipeline",
    "find_device",
    "load",
    "open_image",
]


def load(
    name: str | Path = "mm-tiny",
    device: str | torch.device | None = None,
    precision: str = "auto",
    compile: bool = False,
) -> Pipeline:
    """Loads a model.

    Args:
        name: ``mm-tiny``, a model directory, a training checkpoint, ``hf:owner/name``, or
            ``open_clip:architecture/tag`` where the tag may be a local file.
        device: where it runs; None for the GPU if there is one.
        precision: of its linear maps: ``float32``, ``bfloat16`` or ``int8``; ``auto`` for the one that the device is
            quickest in, of those that the model is known to be good in.
        compile: decode in steps that are compiled when they are first needed, which takes up to minutes: for many
            images on a GPU. On a CPU precision is float32 then, and weights aren't prepared: it is slower.

    Raises:
        UnknownModelError: the name names nothing.
        CheckpointError: what it names can't be read.
        OptionError: there is no such device, it doesn't compute in the precision, or nothing can be compiled for it.
    """
    place = find_device(device)
    check_precision(precision, place)
    if compile:
        check_compiler(place)
    if compile and place.type == "cpu":
        if precision not in (AUTO, "float32"):
            raise OptionError(f"compile and precision {precision!r} can't be combined on a cpu; choose float32")
        precision = "float32"
    loaded = load_model(name, precision if place.type == "cpu" and not compile else None)
    kind = LanguagePipeline if isinstance(loaded.model, LanguageModel) else VisionLanguagePipeline
    pipeline = kind(str(name), loaded, place)
    pipeline.prepare(loaded.precision or choose(precision, loaded.precisions, loaded.model, place), compile)
    return pipeline


def find_device(device: str | torch.device | None = None) -> torch.device:
    """Gives the device that is meant: None for the GPU if there is one.

    Raises:
        OptionError: there is no such device.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise OptionError(f"device {str(device)!r} can't be used ({first_line(error)})") from error
    return place
