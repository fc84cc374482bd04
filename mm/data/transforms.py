"""From a decoded image to pixels: the same for training, evaluation and use, augmentation aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mm.data.augmentation import Augmentation, Box, change_colors
from mm.data.images import DEFAULT_MAX_PIXELS, EncodedImage
from mm.data.jpeg import enough_eighths
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
MARGIN = 1.25
"""How many times as long as a view's sides a crop decoded at a fraction of its size is at least: then the view differs
from one of the full size by less than scaling by another filter does."""
LONGEST = 64  # how many times as long as wide an image may be of which all is scaled before the square is cut out


class ImageTransform:
    """Makes of an image the square that a model sees.

    Args:
        preprocessing: how; or the side of the square in pixels, to which the whole image is scaled.
        crop: the smallest share of the image's area that augmented views show.
        color: by how much brightness, contrast and saturation of augmented views are changed at most; 0 for none.

    Raises:
        OptionError: a value is out of range.
    """

    def __init__(self, preprocessing: Preprocessing | int, crop: float = 0.6, color: float = 0.2) -> None:
        p = Preprocessing(preprocessing) if isinstance(preprocessing, int) else preprocessing
        self.preprocessing = p
        self.size = p.size
        self._filter = FILTERS[p.filter]
        self._view_filter = FILTERS["bicubic"] if p.filter == "lanczos" else self._filter  # torch has no lanczos
        self._augmentation = Augmentation(crop, color)

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

    def view_of(
        self, data: bytes, name: str, number: int, seed: tuple[int, ...], max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> Tensor:
        """Makes one of an image's augmented views; the same number and seed give the same pixels.

        View 0 is the whole image as everywhere else, view 1 its mirror image; from 2 on they are random crops with
        changed colours, every other one mirrored, for which a JPEG is decoded no larger than they need.

        Args:
            data: content of the image file.
            name: the image, for messages.
            number: which view.
            seed: what the random choices depend on.
            max_pixels: the most pixels (width x height) that are decoded.

        Returns:
            (3, size, size) uint8.

        Raises:
            ImageError: it can't be decoded, or its data are corrupt.
        """
        image = EncodedImage(data, name, max_pixels)
        pixels = self(image.decode(strict=True)) if number < 2 else self._random_view(image, number, seed)
        return pixels.flip(-1) if number % 2 else pixels

    def _random_view(self, image: EncodedImage, number: int, seed: tuple[int, ...]) -> Tensor:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([number, *seed])))
        colors, box = self._augmentation.draw_colors(random), self._augmentation.draw_box(image.size, random)
        part = decode_part(image, box, MARGIN * self.size)
        pixels = v2.functional.resize(part, [self.size, self.size], self._view_filter)
        return change_colors(pixels, colors) if self._augmentation.color else pixels.contiguous()


def decode_part(image: EncodedImage, box: Box, least: float) -> Tensor:
    """Decodes a part of an image, a JPEG at the smallest fraction of its size that leaves the part large enough.

    Args:
        image: the image.
        box: which part, in pixels of the upright image; it is rounded to whole pixels of what is decoded.
        least: how long its sides are to be at least, in pixels, unless they are shorter in full.

    Returns:
        (3, height, width) uint8.

    Raises:
        ImageError: it can't be decoded, or its data are corrupt.
    """
    whole = image.pixels(enough_eighths((box.width, box.height), least))
    scale = round(8 * max(whole.shape) / max(image.size)) / 8  # sides are rounded up
    left, right = _whole_range(box.left * scale, box.width * scale, whole.shape[1])
    top, bottom = _whole_range(box.top * scale, box.height * scale, whole.shape[0])
    return torch.from_numpy(whole).permute(2, 0, 1)[:, top:bottom, left:right]


def _whole_range(start: float, length: float, whole: int) -> tuple[int, int]:
    """Rounds a range to whole pixels, at least one, of those that there are."""
    pixels = min(max(1, round(length)), whole)
    first = min(round(start), whole - pixels)
    return first, first + pixels


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
