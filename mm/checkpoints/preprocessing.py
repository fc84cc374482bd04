"""How a public checkpoint wants its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.checkpoints.convert import Settings
from mm.checkpoints.weights import read_json
from mm.data.transforms import Preprocessing
from mm.errors import CheckpointError, OptionError

FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
Numbers = tuple[float, float, float]


def read_preprocessing(folder: Path, image_size: int) -> tuple[Preprocessing, Numbers, Numbers]:
    """Reads ``preprocessor_config.json``, or the image processor in ``processor_config.json``.

    Args:
        folder: the checkpoint.
        image_size: side in pixels of what the vision encoder sees.

    Returns:
        How an image becomes a square, and per-channel mean and standard deviation of its pixels.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for something that mm doesn't do.
    """
    settings = _settings(folder)
    settings.one_of("do_rescale", True, (True,))
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.get("do_normalize", True):
        mean, std = _numbers(settings, "image_mean"), _numbers(settings, "image_std")
    scale = settings.get("rescale_factor", 1 / 255) * 255  # pixels are in [0, 1] here
    if abs(scale - 1) > 1e-3:
        mean, std = (tuple(value / scale for value in values) for values in (mean, std))
    resample = settings.one_of("resample", 3, RESAMPLING)
    try:
        way, scaled, size = _size(settings, image_size)
        return Preprocessing(size, way, RESAMPLING[resample], scaled), mean, std
    except OptionError as error:
        raise CheckpointError(f"{settings.source}: {error}") from error


def _settings(folder: Path) -> Settings:
    for name in FILES:
        path = folder / name
        if path.is_file():
            values = read_json(path)
            nested = values.get("image_processor")
            if isinstance(nested, dict):
                return Settings(nested, f"{path}, image_processor")
            if name == FILES[0]:
                return Settings(values, str(path))
    raise CheckpointError(
        f"{folder / FILES[0]}: can't be read (No such file or directory); it says how images are scaled"
    )


def _numbers(settings: Settings, name: str) -> Numbers:
    values = settings.values.get(name)
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise CheckpointError(f"{settings.source}: {name} is {values!r}, not three numbers, one per channel")
    return float(values[0]), float(values[1]), float(values[2])


def _size(settings: Settings, image_size: int) -> tuple[str, int | None, int]:
    """Gives the way of resizing, the shortest side before the square is cut out, and the side of the square."""
    size, crop = settings.values.get("size"), settings.values.get("crop_size")
    cropped = bool(settings.get("do_center_crop", False))
    if not settings.get("do_resize", True):
        raise CheckpointError(f"{settings.source}: do_resize is false; a model sees squares of {image_size} pixels")
    side = _side(settings, "crop_size", crop) if cropped and crop is not None else image_size
    if side != image_size:
        raise CheckpointError(
            f"{settings.source}: images of {side} pixels, but the model's config.json says {image_size}"
        )
    if (isinstance(size, dict) and "shortest_edge" in size) or (isinstance(size, int) and cropped):
        shortest = size["shortest_edge"] if isinstance(size, dict) else size
        if type(shortest) is not int:
            raise CheckpointError(f"{settings.source}: size is {size!r}, not a number of pixels")
        return "shortest", shortest, side
    whole = _side(settings, "size", size)
    if whole != image_size:
        raise CheckpointError(
            f"{settings.source}: images of {whole} pixels, but the model's config.json says {image_size}"
        )
    return "stretch", None, image_size


def _side(settings: Settings, name: str, value: Any) -> int:
    if isinstance(value, dict) and value.get("height") == value.get("width"):
        value = value.get("height")
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{settings.source}: {name} is {value!r}, not the side of a square in pixels")
    return value
