"""Safe image decoding: checked from the header, oriented, and converted to 8-bit RGB properly."""

from __future__ import annotations

import stat
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mm.data.jpeg import CorruptError, decode_jpeg, enough_eighths
from mm.data.rgb import SIDEWAYS, find_turn, to_rgb, turned
from mm.errors import ImageError, UsageError

DEFAULT_MAX_PIXELS = 100_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

EMPTY = "empty file"
NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated"
TOO_MANY_PIXELS = "too many pixels"
DAMAGED = "damaged"
UNREADABLE = "unreadable file"
IMAGE_REASONS = (EMPTY, NOT_AN_IMAGE, TRUNCATED, TOO_MANY_PIXELS, DAMAGED, UNREADABLE)

# Each plugin registers its opener when it is imported.
_PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    GifImagePlugin,
    BmpImagePlugin,
    TiffImagePlugin,
    PpmImagePlugin,
)
_WEAK_SIGNATURES = ("BMP", "PPM")
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
_JPEGS = ("JPEG", "MPO")


def decode_image(
    data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS, strict: bool = False
) -> Image.Image:
    """Decodes an image file to 8-bit RGB, upright.

    The first frame of an animation is used, transparency is composited on white, 16-bit values are scaled.

    Args:
        data: content of a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file.
        name: the image, for messages.
        max_pixels: the most pixels (width x height) that are decoded, checked from the header.
        strict: whether a JPEG with corrupt data is an error; else it is shown as viewers show it, if they can.

    Raises:
        ImageError: it can't be decoded; ``reason`` is one of ``IMAGE_REASONS``.
    """
    return EncodedImage(data, name, max_pixels).decode(strict)


def decode_small(data: bytes, least: int, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes an image file as ``decode_image`` does, a JPEG at a fraction of its size if it can be: that is quicker.

    Args:
        data: content of the file.
        least: pixels that both sides keep, where they have as many.
        name: the image, for messages.
        max_pixels: the most pixels of the whole image.

    Raises:
        ImageError: it can't be decoded.
    """
    image = EncodedImage(data, name, max_pixels)
    return image.decode(eighths=enough_eighths(image.size, least))


class EncodedImage:
    """An image file whose header has been checked, to be decoded in full or, a JPEG, at a fraction of its size.

    Args:
        data: content of the file.
        name: the image, for messages.
        max_pixels: the most pixels (width x height) that are let through.

    Raises:
        ImageError: the header can't be read, or promises too many pixels.
    """

    def __init__(self, data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self._data, self._name = data, name
        self._file = open_image(data, name, max_pixels)
        self._scales = self._file.format in _JPEGS and self._file.mode in ("RGB", "L")
        self._turn = find_turn(self._file) if self._scales else None  # other formats may have to be decoded to know

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright; known without decoding of a JPEG.

        Raises:
            ImageError: it had to be decoded, and can't be.
        """
        if not self._scales:
            return self._whole.size
        width, height = self._file.size
        return (height, width) if self._turn in SIDEWAYS else (width, height)

    def decode(self, strict: bool = False, eighths: int = 8) -> Image.Image:
        """Decodes the image to RGB, upright.

        Args:
            strict: whether a JPEG with corrupt data is an error; else it is decoded in full, as far as it can be.
            eighths: the fraction of its size that a JPEG is decoded at: one of ``mm.data.jpeg.EIGHTHS``.

        Raises:
            ImageError: it can't be decoded.
        """
        try:
            stored = self._stored(eighths)
        except ImageError:
            if strict:
                raise
            stored = None
        return self._whole if stored is None else turned(Image.fromarray(stored), self._turn)

    def pixels(self, eighths: int = 8) -> np.ndarray:
        """Decodes the image to RGB, upright; a JPEG with corrupt data is an error.

        Args:
            eighths: the fraction of its size that a JPEG is decoded at: one of ``mm.data.jpeg.EIGHTHS``.

        Returns:
            (H, W, 3) uint8, writable; in full where it can't be scaled.

        Raises:
            ImageError: it can't be decoded.
        """
        stored = self._stored(eighths)
        if stored is None:
            return np.array(self._whole)
        return stored if self._turn is None else np.array(turned(Image.fromarray(stored), self._turn))

    def _stored(self, eighths: int = 8) -> np.ndarray | None:
        """Decodes a JPEG as it is stored; gives None where only Pillow can decode."""
        if not self._scales:
            return None
        try:
            return decode_jpeg(self._data, self._file.size, eighths)
        except CorruptError as error:
            raise _failure(error, self._data, self._name, self._file.format) from error

    @cached_property
    def _whole(self) -> Image.Image:
        """What Pillow decodes, upright."""
        try:
            self._file.load()
            return to_rgb(turned(self._file, find_turn(self._file)))
        except Exception as error:  # decoders raise a dozen kinds of exceptions
            raise _failure(error, self._data, self._name, self._file.format) from error


def convert_image(image: Image.Image) -> Image.Image:
    """Converts an image that someone else opened to 8-bit RGB, upright, as ``decode_image`` does.

    Raises:
        ImageError: its pixels can't be decoded.
    """
    try:
        image.load()
        return to_rgb(turned(image, find_turn(image)))
    except Exception as error:  # decoders raise a dozen kinds of exceptions
        name = getattr(image, "filename", "") or "image"
        raise ImageError(f"{name}: can't be decoded: {_one_line(error)}", DAMAGED) from error


def open_image(data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageFile.ImageFile:
    """Reads and checks the header of an image file, without decoding its pixels.

    Args:
        data: content of the file, or its beginning.
        name: the image, for messages.
        max_pixels: the most pixels (width x height) that are let through.

    Raises:
        ImageError: the header can't be read, or promises too many pixels.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty", EMPTY)
    image_format = sniff_format(data)
    if image_format is None:
        raise ImageError(f"{name}: isn't an image that can be read ({', '.join(IMAGE_FORMATS)})", NOT_AN_IMAGE)
    try:
        image: ImageFile.ImageFile = Image.OPEN[image_format][0](BytesIO(data), name)
    except Exception as error:
        if image_format in _WEAK_SIGNATURES and len(data) > 64:
            raise ImageError(f"{name}: isn't an image that can be read", NOT_AN_IMAGE) from error
        raise _failure(error, data, name, image_format) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is over the limit of {max_pixels:,} pixels; make it smaller", TOO_MANY_PIXELS
        )
    return image


def check_image(data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Makes sure that an image file can be decoded, to its end, and that the data of a JPEG aren't corrupt.

    A JPEG is decoded at an eighth of its size, which is quicker.

    Args:
        data: content of the file.
        name: the image, for messages.
        max_pixels: the most pixels that are let through.

    Raises:
        ImageError: it can't be decoded.
    """
    EncodedImage(data, name, max_pixels).pixels(1)


def read_image(path: str | Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Reads an image file and decodes it as ``decode_image`` does.

    Raises:
        UsageError: there is no such file.
        ImageError: it can't be read or decoded.
    """
    return decode_image(read_image_bytes(path, max_pixels), str(path), max_pixels)


def read_image_bytes(path: str | Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """Reads an image file without decoding it, unless it is too large to be an image within the limit.

    Raises:
        UsageError: there is no such file.
        ImageError: it can't be read, or is larger than any image of ``max_pixels`` needs to be.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: isn't a file", UNREADABLE)
        size = status.st_size
        if size > 16 * max_pixels + (1 << 26):
            raise ImageError(f"{path}: {size:,} bytes are more than {max_pixels:,} pixels take", TOO_MANY_PIXELS)
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: doesn't exist") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: can't be read: {error}", UNREADABLE) from error


def sniff_format(data: bytes) -> str | None:
    """The format of an image file going by its first bytes: one of ``IMAGE_FORMATS``, or None."""
    prefix = data[:16]
    for image_format in IMAGE_FORMATS:
        accept = Image.OPEN[image_format][1]
        if accept is not None and accept(prefix) is True:
            return image_format
    return None


def sniff_suffix(data: bytes) -> str | None:
    """The file name suffix that fits an image file's content, without a dot, or None if it isn't an image."""
    return _SUFFIXES.get(sniff_format(data) or "")


def _failure(error: Exception, data: bytes, name: str, image_format: str | None) -> ImageError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(f"{name}: too many pixels; make it smaller", TOO_MANY_PIXELS)
    if _is_cut(error, data, image_format):
        return ImageError(f"{name}: the {image_format} file is truncated", TRUNCATED)
    return ImageError(f"{name}: the {image_format} file is damaged: {_one_line(error)}", DAMAGED)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_cut(error: Exception, data: bytes, image_format: str | None) -> bool:
    """Whether a file that can't be decoded ends too early, going by the marks that end its format."""
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return True
    if image_format in _JPEGS:
        return b"\xff\xd9" not in data[-64:]
    if image_format == "PNG":
        return b"IEND" not in data[-64:]
    if image_format == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if image_format == "WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if image_format == "BMP":
        return len(data) < int.from_bytes(data[2:6], "little")
    return False
