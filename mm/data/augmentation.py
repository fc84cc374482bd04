"""Random views of an image: what is drawn for one, and what that does to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mm.errors import OptionError

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""

_ASPECTS = (0.8, 1.25)
_TRIES = 10


class Box(NamedTuple):
    """A part of an image, in its pixels, which need not be whole numbers."""

    left: float
    top: float
    width: float
    height: float


class Colors(NamedTuple):
    """What brightness, contrast and saturation are multiplied by."""

    brightness: float
    contrast: float
    saturation: float


@dataclass(frozen=True)
class Augmentation:
    """How much random views may differ from their image.

    Args:
        crop: the smallest share of the image's area that a view shows.
        color: by how much brightness, contrast and saturation are raised or lowered at most: 0.2 for a fifth; 0 for
            not at all.

    Raises:
        OptionError: a value is out of range.
    """

    crop: float = 0.6
    color: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise OptionError(f"crop must be above 0 and at most 1, not {self.crop}")
        if not 0 <= self.color <= 1:
            raise OptionError(f"color must be at least 0 and at most 1, not {self.color}")

    def draw_colors(self, random: np.random.Generator) -> Colors:
        """Draws what colours are changed by."""
        return Colors(*(1 + self.color * random.uniform(-1, 1, 3)).tolist())

    def draw_box(self, size: tuple[int, int], random: np.random.Generator) -> Box:
        """Draws the part of an image that a view shows.

        Area and, on a logarithmic scale, aspect ratio are uniform among those that fit (Szegedy et al., 2015, "Going
        deeper with convolutions"); an image that is too long for them gives the largest part of its middle.

        Args:
            size: width and height of the image in pixels.
            random: what chooses.
        """
        width, height = size
        least, most = map(math.log, _ASPECTS)
        for area, aspect, x, y in random.uniform((self.crop, least, 0, 0), (1, most, 1, 1), (_TRIES, 4)).tolist():
            wide = math.sqrt(area * width * height * math.exp(aspect))
            high = math.sqrt(area * width * height / math.exp(aspect))
            if wide <= width and high <= height:
                return Box(x * (width - wide), y * (height - high), wide, high)
        wide, high = min(width, height * _ASPECTS[1]), min(height, width / _ASPECTS[0])
        return Box((width - wide) / 2, (height - high) / 2, wide, high)


def change_colors(pixels: Tensor, colors: Colors) -> Tensor:
    """Changes brightness, contrast and saturation in one step, so that nothing is rounded or cut off in between.

    Saturation moves each pixel away from its grey, contrast away from the mean grey of the image.

    Args:
        pixels: (3, H, W) uint8.
        colors: what they are multiplied by.

    Returns:
        (3, H, W) uint8.
    """
    brightness, contrast, saturation = colors
    luma = torch.tensor(LUMA)
    values = pixels.reshape(3, -1).float()
    weights = brightness * contrast * (saturation * torch.eye(3) + (1 - saturation) * luma)
    offset = brightness * (1 - contrast) * (luma @ values.mean(1)) + 0.5  # half a step more, as whole numbers are cut
    changed = torch.addmm(offset.expand(3, 1), weights, values)
    return changed.clamp_(0, 255).to(torch.uint8).view(pixels.shape)
