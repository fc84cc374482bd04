"""Images that are meant to exhaust memory, and images of unusual kinds."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from encoding import encode, turned
from PIL import Image

from mm.data.images import decode_image
from mm.data.transforms import ImageTransform

MOST = 200 << 20
"""Bytes that refusing an image may take at most."""

CHILD = """
import json, pathlib, sys
from mm.bench.measure import own_peak
from mm.data.images import check_image, decode_image, open_image
from mm.data.transforms import ImageTransform
from mm.errors import ImageError
import torch
found, transform = {}, ImageTransform(8)
for path in map(pathlib.Path, sys.argv[1:]):
    data, before = path.read_bytes(), own_peak(torch.device("cpu"))
    for look in (open_image, decode_image, check_image, lambda data: transform.view_of(data, "a", 2, (1,))):
        try:
            look(data)
        except ImageError as error:
            found.setdefault(path.name, []).append(error.reason)
    found[path.name].append(own_peak(torch.device("cpu")) - before)
print(json.dumps(found))
"""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def zeros(size: int) -> bytes:
    """So many zeros, compressed a thousand times."""
    compressor, block = zlib.compressobj(9), bytes(1 << 20)
    return b"".join(compressor.compress(block) for _ in range(-(-size >> 20))) + compressor.flush()


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def huge_webp() -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", 16_383 | 16_383 << 14)
    return bytes(data)


def huge_tiff() -> bytes:
    tags = [(256, 4, 200_000), (257, 4, 200_000), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


BOMBS: dict[str, Callable[[], bytes]] = {
    "whole.png": lambda: png(50_000, 50_000, 1, 0, chunk(b"IDAT", zeros(6251 * 50_000))),
    "header.png": lambda: png(50_000, 50_000, 16, 6, chunk(b"IDAT", zeros(1000))),
    "text.png": lambda: png(
        2, 2, 8, 0, chunk(b"zTXt", b"a\0\0" + zeros(1 << 28)), chunk(b"IDAT", zlib.compress(bytes(6)))
    ),
    "profile.png": lambda: png(
        2, 2, 8, 0, chunk(b"iCCP", b"a\0\0" + zeros(1 << 28)), chunk(b"IDAT", zlib.compress(b""))
    ),
    "huge.jpg": huge_jpeg,
    "huge.webp": huge_webp,
    "huge.tif": huge_tiff,
    "screen.gif": lambda: gif((65_535, 65_535), (1, 1)),
    "frame.gif": lambda: gif((1, 1), (65_535, 65_535)),
    "huge.bmp": lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 100_000, 100_000, 1, 24, *[0] * 6),
    "huge.ppm": lambda: b"P6 100000 100000 255\n" + bytes(100),
}


@pytest.mark.slow
def test_decompression_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 600_000
    paths = [str(tmp_path / name) for name in BOMBS]
    done = subprocess.run([sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {name: reasons[:-1] for name, reasons in found.items()} == {
        name: ["damaged" if name in ("text.png", "profile.png") else "too many pixels"] * 4 for name in BOMBS
    }
    assert sum(reasons[-1] for reasons in found.values()) < MOST


def reference() -> Image.Image:
    """A photo of nothing: smooth colours, and each corner different."""
    corners = np.array([[[230, 40, 30], [40, 200, 60]], [[30, 60, 220], [240, 230, 90]]], np.uint8)
    return Image.fromarray(corners).resize((96, 64), Image.Resampling.BILINEAR)


def grey() -> Image.Image:
    return reference().convert("L").convert("RGB")


def wide_grey(image_format: str) -> bytes:
    """16 bits for each pixel."""
    values = np.asarray(reference().convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(values), image_format)


def wide_png(colour: int) -> bytes:
    """A PNG of 16 bits for red, green, blue and, for colour type 6, alpha."""
    values = np.asarray(reference().convert("RGB" if colour == 2 else "RGBA")).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return png(96, 64, 16, colour, chunk(b"IDAT", zlib.compress(rows)))


def over_white(alpha: int) -> Image.Image:
    return Image.blend(Image.new("RGB", (96, 64), "white"), reference(), alpha / 255)


def see_through(mode: str, image_format: str, alpha: int) -> bytes:
    layer = reference().convert(mode)
    layer.putalpha(alpha)
    return encode(layer, image_format, **({"lossless": True} if image_format == "WEBP" else {}))


def palette(image_format: str, **options: int) -> bytes:
    return encode(reference().quantize(256), image_format, **options)


def animated(image_format: str) -> bytes:
    frames = [reference(), Image.new("RGB", (96, 64), "white"), Image.new("RGB", (96, 64), "black")]
    return encode(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50)


def four_channels(transform: int) -> bytes:
    """A JPEG in CMYK or, for transform 2, one whose first three are luma and chroma: YCCK."""
    inks = Image.merge("CMYK", [*Image.eval(reference(), lambda value: 255 - value).split(), Image.new("L", (96, 64))])
    if transform == 2:
        ycc = Image.merge("RGB", inks.split()[:3]).convert("YCbCr")
        inks = Image.merge("CMYK", [*Image.eval(ycc, lambda value: 255 - value).split(), inks.split()[3]])
    data = bytearray(encode(inks, "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = transform
    return bytes(data)


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[], Image.Image], float]] = {
    "16-bit grey PNG": (lambda: wide_grey("PNG"), grey, 1),
    "16-bit grey TIFF": (lambda: wide_grey("TIFF"), grey, 1),
    "16-bit RGB PNG": (lambda: wide_png(2), reference, 1),
    "16-bit RGBA PNG": (lambda: wide_png(6), reference, 1),
    "grey JPEG": (lambda: encode(reference().convert("L"), "JPEG", quality=95), grey, 3),
    "CMYK JPEG": (lambda: four_channels(0), reference, 3),
    "YCCK JPEG": (lambda: four_channels(2), reference, 3),
    "CMYK TIFF": (lambda: encode(reference().convert("CMYK"), "TIFF"), reference, 1),
    "palette PNG": (lambda: palette("PNG"), reference, 4),
    "palette GIF": (lambda: palette("GIF"), reference, 4),
    "RGBA PNG": (lambda: see_through("RGBA", "PNG", 100), lambda: over_white(100), 1),
    "RGBA WebP": (lambda: see_through("RGBA", "WEBP", 100), lambda: over_white(100), 1),
    "animated GIF": (lambda: animated("GIF"), reference, 6),
    "animated WebP": (lambda: animated("WEBP"), reference, 6),
    "animated PNG": (lambda: animated("PNG"), reference, 1),
    "TIFF of several pages": (lambda: animated("TIFF"), reference, 1),
    **{
        f"orientation {number} in {image_format}": (
            lambda number=number, image_format=image_format: turned(reference(), number, image_format),
            reference,
            5,
        )
        for number in range(1, 9)
        for image_format in ("JPEG", "PNG", "WEBP", "TIFF")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_unusual_images_are_seen_right(kind: str) -> None:
    make, wanted, within = KINDS[kind]
    data, plain = make(), encode(wanted())
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (96, 64))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(wanted())).mean() < within
    transform = ImageTransform(12)  # a JPEG is decoded at a fraction of its size for it
    for number in (0, 1, 2, 3):
        views = [transform.view_of(content, kind, number, (7,)).float() for content in (data, plain)]
        assert (views[0] - views[1]).abs().mean() < within + 3
        assert not torch.equal(views[1], views[1].flip(-1))
