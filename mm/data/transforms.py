"""From a decoded image to pixels: the same for training, evaluation and use, augmentation aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mm.errors import OptionError


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the square that a model sees; shift and scale of its pixels are the model's own.

    Args:
        size: side of the square in pixels.
        resize: ``stretch`` the whole image to the square; or scale its ``shortest`` side to ``scaled`` pixels and cut
            the square out of the middle; or ``pad`` it to a square and scale that.
        filter: ``bicubic``, ``bilinear``, ``lanczos`` or ``nearest``.
        scaled: length of the shortest side before the square is cut out; None for ``size``.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    size: int
    resize: str = "stretch"
    filter: str = "bicubic"
    scaled: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or (self.scaled is not None and self.scaled < 1):
            raise OptionError(f"an image can't be scaled to {self.scaled or self.size} pixels")
        if self.resize not in RESIZES:
            raise OptionError(f"resize is {self.resize!r}: {', '.join(RESIZES)}")
        if self.filter not in FILTERS:
            raise OptionError(f"filter is {self.filter!r}: {', '.join(FILTERS)}")

    def __str__(self) -> str:
        whole = f"scaled to {self.size}x{self.size}, {self.filter}"
        if self.resize == "shortest":
            return f"shortest side scaled to {self.scaled or self.size}, {self.size}x{self.size} cut out, {self.filter}"
        return f"whole image {'padded to a square, ' if self.resize == 'pad' else ''}{whole}"


FILTERS = {name: getattr(v2.InterpolationMode, name.upper()) for name in ("bicubic", "bilinear", "lanczos", "nearest")}
RESIZES = ("stretch", "shortest", "pad")


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
        filter = FILTERS[p.filter]
        if p.resize == "shortest":
            steps = [v2.Resize(p.scaled or p.size, filter, antialias=True), v2.CenterCrop(p.size)]
        else:
            steps = [v2.Resize((p.size, p.size), filter, antialias=True)]
        self._whole = v2.Compose([_pad_to_square, *steps] if p.resize == "pad" else steps)
        self._part = v2.RandomResizedCrop(
            (p.size, p.size), scale=(crop, 1.0), ratio=(0.8, 1.25), interpolation=filter, antialias=True
        )
        self._color = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)

    def __call__(self, image: Image.Image) -> Tensor:
        """Makes the square, in one way for every image.

        Args:
            image: RGB.

        Returns:
            (3, size, size) uint8.
        """
        return v2.functional.pil_to_tensor(self._whole(image))

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


def _pad_to_square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
