"""From what a decoder gives to upright 8-bit RGB."""

from __future__ import annotations

from PIL import Image

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
SIDEWAYS = tuple(turn for orientation, turn in _TURNS.items() if orientation >= 5)
"""What exchanges width and height."""


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright, going by its EXIF data."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata says nothing about the pixels
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once an image is upright, without decoding it."""
    width, height = image.size
    return (height, width) if find_turn(image) in SIDEWAYS else (width, height)


def turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """Turns or mirrors an image as ``find_turn`` says."""
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts to 8-bit RGB: wider values are scaled, and transparency is composited on white."""
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
