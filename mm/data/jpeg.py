"""JPEG decoding by libjpeg-turbo: in full or at a fraction of the size, and aware of data that are corrupt."""

from __future__ import annotations

import numpy as np
import simplejpeg

EIGHTHS = (1, 2, 4, 8)
"""The fractions of an image's size, in eighths, that are quick to decode at: other ones have no vector code."""

_CORRUPT = ("Corrupt JPEG data", "Premature end of JPEG")  # how libjpeg's warnings about the data begin


class CorruptError(ValueError):
    """The data of a JPEG are corrupt; what libjpeg says."""


def enough_eighths(sides: tuple[float, float], least: float) -> int:
    """Gives the smallest of ``EIGHTHS`` at which both sides are at least so long; 8 where none is.

    Args:
        sides: two lengths in pixels of the whole image.
        least: pixels that are needed of each.
    """
    return next((eighths for eighths in EIGHTHS if min(sides) * eighths >= 8 * least), 8)


def decode_jpeg(data: bytes, size: tuple[int, int], eighths: int = 8) -> np.ndarray | None:
    """Decodes a colour or grey JPEG to RGB as it is stored, not turned upright.

    Scaling takes place in the discrete cosine transform: of each 8 x 8 block only the low frequencies are computed, so
    a small image costs little more than reading the coefficients. In full, pixels are those that Pillow gives.

    Args:
        data: content of the file.
        size: width and height in pixels, going by its header.
        eighths: the fraction of the size to decode at: one of ``EIGHTHS``.

    Returns:
        (H, W, 3) uint8, writable; None where libjpeg-turbo can't decode this kind of JPEG.

    Raises:
        CorruptError: the data are corrupt or end early, which most decoders pass over.
    """
    width, height = (-(-side * eighths // 8) for side in size)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError as error:
        if str(error).startswith(_CORRUPT):
            raise CorruptError(str(error)) from error
        return None
