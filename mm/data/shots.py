"""Examples for few-shot captioning: a file of images with their captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from mm.data.images import DEFAULT_MAX_PIXELS, read_image
from mm.errors import MMError, UsageError


def read_shots(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> list[tuple[Image.Image, str]]:
    """Reads a file of JSON lines ``{"image": path, "caption": text}``; other keys are passed over.

    Args:
        path: the file. Images are looked for from its folder.
        max_pixels: the most pixels an image may have.

    Returns:
        The images, decoded, with their captions, in the order of the file.

    Raises:
        UsageError: the file can't be read or has no example, or a line is wrong; the message names line and key.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: isn't UTF-8") from error
    numbered = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f'{path}: has no example; a line is {{"image": "photo.jpg", "caption": "a dog runs"}}')
    return [_shot(line, place, path.parent, max_pixels) for place, line in numbered]


def _shot(line: str, place: str, folder: Path, max_pixels: int) -> tuple[Image.Image, str]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not JSON ({error})") from error
    image, caption = (_text(values, key, place) for key in ("image", "caption"))
    try:
        return read_image(folder / image, max_pixels), caption
    except MMError as error:
        raise UsageError(f"{place}: image: {error}") from error


def _text(values: Any, key: str, place: str) -> str:
    if not isinstance(values, dict) or key not in values:
        raise UsageError(f"{place}: has no {key}")
    value = values[key]
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{place}: {key} is {value!r}, not a text")
    return value
