"""Safe image decoding: checked from the header, oriented, and converted to 8-bit RGB properly."""

from __future__ import annotations

import stat
from io import BytesIO
from pathlib import Path

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
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes an image file to 8-bit RGB, upright.

    The first frame of an animation is used, transparency is composited on white, 16-bit values are scaled.

    Args:
        data: content of a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file.
        name: the image, for messages.
        max_pixels: the most pixels (width x height) that are decoded, checked from the header.

    Raises:
        ImageError: it can't be decoded; ``reason`` is one of ``IMAGE_REASONS``.
    """
    image = open_image(data, name, max_pixels)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # decoders raise a dozen kinds of exceptions
        raise _failure(error, data, name, image.format) from error


def convert_image(image: Image.Image) -> Image.Image:
    """Converts an image that someone else opened to 8-bit RGB, upright, as ``decode_image`` does.

    Raises:
        ImageError: its pixels can't be decoded.
    """
    try:
        image.load()
        return _to_rgb(_upright(image))
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
    """Makes sure that an image file can be decoded, to its end; a JPEG at an eighth of its size, which is quicker.

    Args:
        data: content of the file.
        name: the image, for messages.
        max_pixels: the most pixels that are let through.

    Raises:
        ImageError: it can't be decoded.
    """
    image = open_image(data, name, max_pixels)
    try:
        image.draft("RGB", (1, 1))
        image.load()
    except Exception as error:  # decoders raise a dozen kinds of exceptions
        raise _failure(error, data, name, image.format) from error


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


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata says nothing about the pixels
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, layer).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info = {}  # the orientation in it has been applied
    return rgb


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales greyscale of 16 bits, 32 bits or floating point to 8 bits."""
    wide = image if image.mode == "F" else image.convert("I")
    extrema = wide.getextrema()
    largest = float(extrema[1]) if isinstance(extrema[1], int | float) else 255.0
    if image.mode == "F":
        full = next((full for full in (1.0, 255.0, 65535.0) if largest <= full), largest)
    else:
        full = 65535.0 if largest <= 65535 else float(2**31 - 1)
    scale = 255.0 / full
    grey = wide.point(lambda value: value * scale + 0.5).convert("L")
    grey.info.pop("transparency", None)  # a 16-bit value, which no longer fits
    return grey


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
    if image_format in ("JPEG", "MPO"):
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
