"""Pictures that cost a decoder what photos cost it, made from noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops

QUALITY = 90
LUMA, DETAIL = 25.0, 7.5
"""Standard deviations of brightness in each octave: what each photo has of its own, and what all share."""
CHROMA = 10.0
COARSE = (4, 8, 16)
"""Numbers of waves across a photo, an octave apart, of what each photo has of its own."""


def make_photos(count: int, width: int, height: int, seed: int = 0) -> Iterator[bytes]:
    """Makes JPEG files that are all different, the same ones for the same arguments.

    As in photos, every octave of spatial frequency holds the same energy (Field, 1987, "Relations between the
    statistics of natural images and the response properties of cortical cells"), and colour has little detail. So the
    files are as large as those of cameras: a little over 2 bits for each pixel.

    Args:
        count: how many.
        width: in pixels.
        height: in pixels.
        seed: what they depend on.
    """
    random = np.random.default_rng(seed)
    fine = [waves for octave in range(5, 13) if (waves := 2**octave) <= width]
    detail = _noise(random, (width, height), fine, DETAIL)
    for _ in range(count):
        moved = ImageChops.offset(detail, int(random.integers(width)), int(random.integers(height)))
        own = [_coarse(random, (width, height), sigma) for sigma in (LUMA, CHROMA, CHROMA)]
        photo = Image.merge("YCbCr", [ImageChops.add(own[0], moved, offset=-128), *own[1:]])
        file = BytesIO()
        photo.save(file, "JPEG", quality=QUALITY)
        yield file.getvalue()


def _coarse(random: np.random.Generator, size: tuple[int, int], sigma: float) -> Image.Image:
    """Makes noise that has no more detail than the finest of the waves in ``COARSE``."""
    small = 4 * COARSE[-1], max(2, round(4 * COARSE[-1] * size[1] / size[0]))
    return _noise(random, small, COARSE, sigma).resize(size, Image.Resampling.BILINEAR)


def _noise(random: np.random.Generator, size: tuple[int, int], octaves: Sequence[int], sigma: float) -> Image.Image:
    """Makes 8-bit noise around 128 with the same energy in each of some octaves."""
    total = np.full(size[::-1], 128, np.float32)
    for waves in octaves:
        rows = max(2, round(2 * waves * size[1] / size[0]))
        values = random.normal(0, sigma, (rows, 2 * waves)).astype(np.float32)
        total += np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))
