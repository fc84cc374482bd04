"""From a decoded image to pixels: the same for training, evaluation and use, augmentation aside."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2


class ImageTransform:
    """Scales an image to the square that a model sees.

    Args:
        size: side of the square in pixels.
        crop: the smallest share of the image's area that augmented views show.
    """

    def __init__(self, size: int, crop: float = 0.6) -> None:
        self.size = size
        self._whole = v2.Resize((size, size), v2.InterpolationMode.BICUBIC, antialias=True)
        self._part = v2.RandomResizedCrop(
            (size, size),
            scale=(crop, 1.0),
            ratio=(0.8, 1.25),
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        self._color = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)

    def __call__(self, image: Image.Image) -> Tensor:
        """Scales the whole image, without regard to its aspect ratio.

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
