"""How a public checkpoint wants its images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mm.checkpoints.convert import Settings
from mm.checkpoints.weights import read_json
from mm.data.transforms import Preprocessing
from mm.errors import CheckpointError

ALONE, NESTED = "preprocessor_config.json", "processor_config.json"
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
Numbers = tuple[float, float, float]

_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}
PROCESSORS: dict[str, dict[str, Any]] = {
    "Blip": _CLIP | {"size": 384},
    "CLIP": _CLIP | {"size": 224, "crop_size": 224, "do_center_crop": True, "default_to_square": False},
    "DeiT": _HALF | {"size": 256, "crop_size": 224, "do_center_crop": True},
    "Idefics": _CLIP | {"size": 224},
    "Siglip": _HALF | {"size": {"height": 224, "width": 224}, "default_to_square": False},
    "ViT": _HALF | {"size": 224, "resample": 2},
}
"""Image processors by name, with what each takes where its file is silent.

``default_to_square`` says that a ``size`` which is a single number is the side of a square; else it is the length of
the shortest side.
"""


def read_preprocessing(folder: Path, image_size: int) -> tuple[Preprocessing, Numbers, Numbers]:
    """Reads the image processor in ``processor_config.json``, or else ``preprocessor_config.json``.

    Args:
        folder: the checkpoint.
        image_size: side in pixels of what the vision encoder sees.

    Returns:
        How an image becomes a square, and per-channel mean and standard deviation of its pixels in [0, 1].

    Raises:
        CheckpointError: there is no such file, it is damaged, or it asks for something that mm doesn't do.
    """
    settings = _with_defaults(_settings(folder))
    resample = settings.one_of("resample", None, RESAMPLING)
    resize, scaled = _size(settings, image_size)
    mean, std = _shift_and_scale(settings)
    return Preprocessing(image_size, resize, RESAMPLING[resample], scaled, pillow=False), mean, std


def _settings(folder: Path) -> Settings:
    nested = folder / NESTED
    if nested.is_file():
        values = read_json(nested).get("image_processor")
        if isinstance(values, dict):
            return Settings(values, f"{nested}, image_processor")
    alone = folder / ALONE
    if alone.is_file():
        return Settings(read_json(alone), str(alone))
    raise CheckpointError(
        f"{folder}: has neither {ALONE} nor an image_processor in {NESTED}; one of them says how images are scaled"
    )


def _with_defaults(settings: Settings) -> Settings:
    """Puts the numbers of its image processor where a file has none."""
    kinds = {f"{name}{suffix}": name for name in PROCESSORS for suffix in ("ImageProcessor", "FeatureExtractor")}
    kinds |= {f"{name}ImageProcessorFast": name for name in PROCESSORS}
    called = "image_processor_type" if settings.values.get("image_processor_type") else "feature_extractor_type"
    kind = kinds[settings.one_of(called, None, kinds)]
    given = {name: value for name, value in settings.values.items() if value is not None}
    if kind == "Idefics" and "image_size" in given:
        given["size"] = given["image_size"]
    return Settings(PROCESSORS[kind] | given, settings.source)


def _size(settings: Settings, image_size: int) -> tuple[str, int | None]:
    """Gives the way of resizing, and the side or shortest side before the middle is cut out; None for ``image_size``.

    Raises:
        CheckpointError: the outcome isn't a square of ``image_size``.
    """
    if not settings.get("do_resize", True):
        raise CheckpointError(f"{settings.source}: do_resize is false; a model sees squares of {image_size} pixels")
    size, cropped = settings.values["size"], settings.get("do_center_crop", False)
    shortest = _shortest_side(settings, size)
    resize, target = ("stretch", _side(settings, "size", size)) if shortest is None else ("shortest", shortest)
    if not cropped and resize == "shortest":
        raise CheckpointError(f"{settings.source}: do_center_crop is false, but size {size!r} doesn't give squares")
    side = _side(settings, "crop_size", settings.values.get("crop_size")) if cropped else target
    if side != image_size:
        raise CheckpointError(
            f"{settings.source}: images of {side} pixels, but the model's config.json says {image_size}"
        )
    return resize, None if target == image_size else target


def _shortest_side(settings: Settings, size: Any) -> int | None:
    """Gives the length of the shortest side where ``size`` says one, else None."""
    if isinstance(size, dict) and size.get("shortest_edge") is not None:
        if size.get("longest_edge") is not None:
            raise CheckpointError(f"{settings.source}: size has a longest_edge, which mm doesn't know")
        return _side(settings, "shortest_edge of size", size["shortest_edge"])
    if isinstance(size, int) and not settings.get("default_to_square", True):
        return _side(settings, "size", size)
    return None


def _side(settings: Settings, name: str, value: Any) -> int:
    """Gives a side of a square: of a number, of two equal ones, or of an equal height and width."""
    sides = list(map(value.get, ("height", "width"))) if isinstance(value, dict) else value
    if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
        sides = sides[0]
    if type(sides) is not int or sides < 1:
        raise CheckpointError(f"{settings.source}: {name} is {value!r}, not the side of a square in pixels")
    return sides


def _shift_and_scale(settings: Settings) -> tuple[Numbers, Numbers]:
    """Gives mean and standard deviation for pixels in [0, 1]; a file says them for values that it rescales itself."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.get("do_normalize", True):
        mean, std = _numbers(settings, "image_mean"), _numbers(settings, "image_std")
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not all(value > 0 for value in (factor, *std)):
        raise CheckpointError(f"{settings.source}: rescale_factor {factor} and image_std {list(std)} must be above 0")
    white = factor * 255
    return _divided(mean, white), _divided(std, white)


def _divided(values: Numbers, by: float) -> Numbers:
    return values[0] / by, values[1] / by, values[2] / by


def _numbers(settings: Settings, name: str) -> Numbers:
    values = settings.values[name]
    kinds = [type(value) for value in values] if isinstance(values, list) else []
    if len(kinds) != 3 or not {int, float}.issuperset(kinds) or not all(map(math.isfinite, values)):
        raise CheckpointError(f"{settings.source}: {name} is {values!r}, not three numbers, one per channel")
    return float(values[0]), float(values[1]), float(values[2])
