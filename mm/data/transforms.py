"""From a decoded image to pixels: the same for training, evaluation and use, augmentation aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mm.data.images import DEFAULT_MAX_PIXELS
from mm.errors import OptionError


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the square that a model sees; shift and scale of its pixels are the model's own.

    Args:
        size: side of the square in pixels.
        resize: ``stretch`` the whole image to a square, or scale its ``shortest`` side. The middle of the outcome is
            what is seen, with black around it where it is smaller than ``size``.
        filter: ``bicubic``, ``bilinear``, ``lanczos`` or ``nearest``.
        scaled: side of the square that the image is stretched to, or length of the shortest side; None for ``size``.
        pillow: whether Pillow scales and half of an odd margin is rounded to even, as open_clip has it; else torch
            scales and it is rounded down, as transformers has it. A few of their pixels differ by one or two 255ths.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    size: int
    resize: str = "stretch"
    filter: str = "bicubic"
    scaled: int | None = None
    pillow: bool = True

    def __post_init__(self) -> None:
        if self.size < 1 or (self.scaled is not None and self.scaled < 1):
            raise OptionError(f"an image can't be scaled to {self.size if self.size < 1 else self.scaled} pixels")
        if self.resize not in RESIZES:
            raise OptionError(f"resize is {self.resize!r}: {', '.join(RESIZES)}")
        if self.filter not in FILTERS:
            raise OptionError(f"filter is {self.filter!r}: {', '.join(FILTERS)}")

    @property
    def target(self) -> int:
        """Side of the square that the image is stretched to, or length of its shortest side, in pixels."""
        return self.scaled or self.size

    def __str__(self) -> str:
        filter = self.filter if self.pillow else f"{self.filter} by torch"
        if self.resize == "shortest":
            return f"shortest side scaled to {self.target}, {self.size}x{self.size} cut out, {filter}"
        cut = "" if self.target == self.size else f" {self.size}x{self.size} cut out,"
        return f"whole image scaled to {self.target}x{self.target},{cut} {filter}"


FILTERS = {
    "bicubic": v2.InterpolationMode.BICUBIC,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "lanczos": v2.InterpolationMode.LANCZOS,
    "nearest": v2.InterpolationMode.NEAREST_EXACT,
}
Pixels = Image.Image | Tensor
"""An RGB image, or as (3, H, W) uint8."""

RESIZES = ("stretch", "shortest")
LONGEST = 64  # how many times as long as wide an image may be of which all is scaled before the square is cut out


class ImageTransform:
    """Makes of an image the square that a model sees.

    Args:
        preprocessing: how; or the side of the square in pixels, to which the whole image is scaled.
        crop: the smallest share of the image's area that augmented views show.
    """

    def __init__(self, preprocessing: Preprocessing | int, crop: float = 0.6) -> None:
        p = Preprocessing(preprocessing) if isinstance(preprocessing, int) else preprocessing
        self.preprocessing = p
        self.size = p.size
        self._filter = FILTERS[p.filter]
        self._part = v2.RandomResizedCrop(
            (p.size, p.size), scale=(crop, 1.0), ratio=(0.8, 1.25), interpolation=self._filter, antialias=True
        )
        self._color = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)

    def __call__(self, image: Image.Image) -> Tensor:
        """Makes the square, in one way for every image.

        Args:
            image: RGB.

        Returns:
            (3, size, size) uint8.
        """
        pillow, target = self.preprocessing.pillow, self.preprocessing.target
        pixels: Pixels = image if pillow else v2.functional.pil_to_tensor(image)
        height, width = v2.functional.get_size(pixels)
        sides = [target, target]
        if self.preprocessing.resize == "shortest":
            shortest = min(height, width)
            if max(height, width) > LONGEST * shortest:
                height, width = min(height, LONGEST * shortest), min(width, LONGEST * shortest)
                pixels = _middle(pixels, height, width)
            sides = [target if side == shortest else target * side // shortest for side in (height, width)]
        pixels = _middle(self._scale(pixels, *sides), self.size, self.size, round if pillow else int)
        return v2.functional.pil_to_tensor(pixels) if isinstance(pixels, Image.Image) else pixels

    def _scale(self, pixels: Pixels, height: int, width: int) -> Pixels:
        """Scales an image to the given size, in steps that are never much larger than before or after."""
        tall, wide = v2.functional.get_size(pixels)
        if tall * width > DEFAULT_MAX_PIXELS:  # a strip, which is wider before it is lower otherwise
            pixels = v2.functional.resize(pixels, [height, wide], self._filter)
        return v2.functional.resize(pixels, [height, width], self._filter)

    def view(self, image: Image.Image, number: int, seed: tuple[int, ...]) -> Tensor:
        """Makes one of an image's augmented views; the same number and seed give the same pixels.

        View 0 is the whole image, view 1 its mirror image; from 2 on they are random crops with changed colours, every
        other one mirrored.

        Args:
            image: RGB.
            number: which view.
            seed: what the random choices depend on.

        Returns:
            (3, size, size) uint8.
        """
        if number < 2:
            pixels = self(image)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence([number, *seed]).generate_state(1)[0]))
                pixels = v2.functional.pil_to_tensor(self._color(self._part(image)))
        return pixels.flip(-1) if number % 2 else pixels


def to_pixels(images: Tensor) -> Tensor:
    """Maps (..., 3, H, W) uint8 to float32 in [0, 1]."""
    return images.float().div_(255)


def _middle(pixels: Pixels, height: int, width: int, half: Callable[[float], int] = int) -> Pixels:
    """Cuts the middle out of an image; where that is smaller, black is put around it.

    Of an odd margin the smaller half comes first, unless ``half`` makes another whole number of one that is cut off.
    """
    margins = [given - wanted for given, wanted in zip(v2.functional.get_size(pixels), (height, width), strict=True)]
    top, left = (half(margin / 2) if margin > 0 else int(margin / 2) for margin in margins)
    return v2.functional.crop(pixels, top, left, height, width)
