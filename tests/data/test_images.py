from __future__ import annotations

import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoding import encode, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture
from PIL import Image, ImageChops, ImageFile

from mm.data.images import (
    IMAGE_REASONS,
    EncodedImage,
    check_image,
    decode_image,
    decode_small,
    open_image,
    read_image,
    sniff_suffix,
)
from mm.errors import ImageError, UsageError

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
RED_OVER_BLUE = Image.new("RGB", (4, 8), (255, 0, 0))
RED_OVER_BLUE.paste((0, 0, 255), (0, 4, 4, 8))


def close(pixel: tuple[int, ...], expected: tuple[int, ...], within: int = 6) -> bool:
    return all(abs(a - b) <= within for a, b in zip(pixel, expected, strict=True))


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_decodes_to_rgb(image_format: str) -> None:
    data = encode(Image.new("RGB", (20, 10), (200, 30, 90)), image_format)
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert close(image.getpixel((5, 5)), (200, 30, 90))
    assert sniff_suffix(data) == FORMATS[image_format]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, image_format: str) -> None:
    upright = Image.new("RGB", (32, 16))
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    upright.paste((0, 0, 255), (16, 8, 32, 16))
    image = decode_image(turned(upright, orientation, image_format))
    assert image.size == (32, 16)
    assert close(image.getpixel((4, 3)), (255, 0, 0), 30)
    assert close(image.getpixel((28, 13)), (0, 0, 255), 30)
    assert 0x0112 not in image.getexif()


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encode(RED_OVER_BLUE, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    assert decode_image(data).size == (4, 8)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(image_format: str) -> None:
    values = np.array([[0, 257 * 64, 257 * 128, 65535]], dtype=np.uint16)
    pixels = np.asarray(decode_image(encode(Image.fromarray(values), image_format)))
    assert pixels[0, :, 0].tolist() == [0, 64, 128, 255]
    assert (pixels[..., 0] == pixels[..., 1]).all()


def test_dark_16_bit_image_stays_dark() -> None:
    values = np.full((4, 4), 300, dtype=np.uint16)
    assert np.asarray(decode_image(encode(Image.fromarray(values)))).max() <= 1


def test_16_bit_rgb_png_is_scaled() -> None:
    rows = b"\0" + struct.pack(">6H", 0, 257 * 100, 65535, 257 * 7, 257 * 8, 257 * 9)
    pixels = np.asarray(decode_image(png(2, 1, rows, depth=16, colour=2)))
    assert pixels.tolist() == [[[0, 100, 255], [7, 8, 9]]]


def test_floating_point_is_scaled() -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("RGBA", (0, 0, 0, 127))])
def test_transparency_is_composited_on_white(mode: str, colour: tuple[int, ...]) -> None:
    pixel = decode_image(encode(Image.new(mode, (3, 3), colour))).getpixel((1, 1))
    assert close(pixel, (255 - colour[-1],) * 3, 1)


def test_palette_and_keyed_transparency_are_composited_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for data in (encode(palette, transparency=0), encode(palette, "GIF", transparency=0)):
        image = decode_image(data)
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]
    keyed = encode(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))
    assert decode_image(keyed).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encode(Image.new("L", (1, 1), 9), transparency=9)).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_grey_and_bilevel() -> None:
    assert close(
        decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4)), (254, 0, 0)
    )
    assert close(decode_image(encode(Image.new("L", (8, 8), 77), "JPEG")).getpixel((4, 4)), (77, 77, 77))
    assert decode_image(encode(Image.new("1", (8, 8), 1))).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(image_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert close(decode_image(data).getpixel((8, 8)), (255, 0, 0))


def png(width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with any header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "not an image"),
        (b"\0" * 1000, "not an image"),
        (b"Py" + b"thon is a language " * 10, "not an image"),
        (b"BM is how this text begins, and it goes on for quite a while after that", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 100, "not an image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (png(20_000, 20_000), "too many pixels"),
        (png(10_001, 10_000), "too many pixels"),
        (png(2**31 - 1, 2**31 - 1), "too many pixels"),
        (png(0, 5), "damaged"),
        (png(4, 4, b"\0" * 20).replace(b"IDAT", b"IDAX"), "damaged"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data, "photos/x.jpg")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("photos/x.jpg: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_cut_files_are_truncated(image_format: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, image_format)
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(len(data) * kept)])
    assert caught.value.reason in ("truncated", "damaged")
    if image_format != "TIFF":  # its directory is at the end
        assert caught.value.reason == "truncated"


def test_pixel_limit_is_exact_and_comes_from_the_header() -> None:
    data = picture(size=(10, 10))
    assert decode_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10 x 10"):
        decode_image(data, max_pixels=99)
    header_only = data[:60]
    with pytest.raises(ImageError) as caught:
        open_image(header_only, max_pixels=99)
    assert caught.value.reason == "too many pixels"


def test_limit_above_pillows_own_is_honoured_without_a_warning() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    width = Image.MAX_IMAGE_PIXELS // 1000 + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(png(width, 1000)).size == (width, 1000)
        assert open_image(png(3 * width, 1000), max_pixels=10**9).size == (3 * width, 1000)


def test_pillow_is_left_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda number: decode_image(picture(number)), range(40)))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
    assert [image.getpixel((0, 0)) for image in images] == [
        (number * 37 % 256, number * 91 % 256, 50) for number in range(40)
    ]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(FORMATS)), st.data())
def test_any_damage_gives_an_image_or_an_image_error(image_format: str, data: st.DataObject) -> None:
    content = bytearray(picture(3, image_format))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        image = decode_image(bytes(content), max_pixels=10_000)
    except ImageError as error:
        assert error.reason in IMAGE_REASONS
    else:
        assert image.mode == "RGB" and image.width * image.height <= 10_000


def test_read_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(1))
    assert read_image(path).size == (8, 6)
    with pytest.raises(UsageError, match="doesn't exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path)
    assert caught.value.reason == "unreadable file"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="isn't a file"):
        read_image(tmp_path / "pipe.jpg")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.reason == "too many pixels"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_check_finds_what_decoding_finds(image_format: str) -> None:
    buffer = BytesIO()
    Image.effect_noise((200, 120), 60).convert("RGB").save(buffer, image_format)
    whole = buffer.getvalue()
    check_image(whole)
    for kept in (0, 3, 40, len(whole) // 2, len(whole) - 40):
        with pytest.raises(ImageError) as checked:
            check_image(whole[:kept], "a.jpg")
        with pytest.raises(ImageError) as decoded:
            decode_image(whole[:kept], "a.jpg")
        assert checked.value.reason == decoded.value.reason
    with pytest.raises(ImageError, match="over the limit"):
        check_image(whole, max_pixels=100)


def photo(size: tuple[int, int] = (67, 45)) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    fine = np.random.default_rng(1).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    return ImageChops.add(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), Image.fromarray(fine))


JPEGS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True, "quality": 30},
    "restarts": {"restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True},
    "a profile": {"icc_profile": bytes(3000)},
    "high quality": {"quality": 100},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("size", [(67, 45), (64, 64), (1, 1), (8, 200)])
def test_a_jpeg_decodes_to_the_pixels_that_pillow_gives(kind: str, size: tuple[int, int]) -> None:
    for image in (photo(size), photo(size).convert("L")):
        if kind == "RGB" and image.mode == "L":
            continue
        data = encode(image, "JPEG", **JPEGS[kind])
        expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
        encoded = EncodedImage(data)
        assert np.array_equal(np.asarray(encoded.decode(strict=True)), expected)
        assert np.array_equal(encoded.pixels(), expected) and encoded.size == size


def test_several_pictures_in_a_jpeg_give_the_first() -> None:
    data = encode(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (67, 45))])
    assert Image.open(BytesIO(data)).format == "MPO"
    assert np.array_equal(EncodedImage(data).pixels(), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_are_those_of_the_whole_image(image_format: str, orientation: int) -> None:
    data = (
        turned(photo(), orientation, image_format)
        if image_format in ("JPEG", "PNG", "WEBP")
        else encode(photo(), image_format)
    )
    encoded = EncodedImage(data)
    assert encoded.size == (67, 45)
    pixels = encoded.pixels()
    assert pixels.flags.writeable and np.array_equal(pixels, np.asarray(decode_image(data)))


@pytest.mark.parametrize("eighths", [1, 2, 4])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_decodes_at_a_fraction_of_its_size(mode: str, eighths: int) -> None:
    image = photo((640, 320)).convert(mode)
    pixels = EncodedImage(turned(image, 6, quality=95)).pixels(eighths)
    assert pixels.shape == (40 * eighths, 80 * eighths, 3)
    expected = image.convert("RGB").resize((80 * eighths, 40 * eighths), Image.Resampling.BOX)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize(("least", "size"), [(20, (40, 20)), (21, (80, 40)), (160, (320, 160)), (999, (320, 160))])
def test_a_small_jpeg_keeps_the_pixels_that_are_asked_for(least: int, size: tuple[int, int]) -> None:
    data = turned(photo((320, 160)), 6, quality=95)
    image = decode_small(data, least)
    assert image.size == size
    drafted = Image.open(BytesIO(data))
    drafted.draft("RGB", (least, least))  # Pillow's own way
    assert np.array_equal(np.asarray(image), np.asarray(drafted.convert("RGB").transpose(Image.Transpose.ROTATE_270)))


def test_what_cannot_be_decoded_small_comes_in_full() -> None:
    damaged = corrupt(encode(photo((320, 240)), "JPEG", quality=95))
    assert np.array_equal(np.asarray(decode_small(damaged, 30)), np.asarray(decode_image(damaged)))
    assert decode_small(encode(photo()), 8).size == photo().size
    with pytest.raises(ImageError, match=r"a\.jpg"):
        decode_small(damaged[:900], 30, "a.jpg")


def test_a_cmyk_jpeg_comes_in_full() -> None:
    data = encode(photo().convert("CMYK"), "JPEG", quality=95)
    pixels = EncodedImage(data).pixels(1)
    assert np.array_equal(pixels, np.asarray(decode_image(data, strict=True)))
    assert np.abs(pixels.astype(int) - np.asarray(photo())).mean() < 4


def corrupt(data: bytes) -> bytes:
    """A JPEG some of whose data are zeros."""
    middle = len(data) // 2
    return data[:middle] + bytes(600) + data[middle + 600 :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 5}])
def test_corrupt_data_are_an_error_where_asked_for(options: dict[str, Any]) -> None:
    data = corrupt(encode(photo((320, 240)), "JPEG", quality=95, **options))
    shown = np.asarray(Image.open(BytesIO(data)).convert("RGB"))  # Pillow sees nothing wrong
    assert np.array_equal(np.asarray(decode_image(data)), shown)
    for look in (lambda: decode_image(data, strict=True), lambda: check_image(data), EncodedImage(data).pixels):
        with pytest.raises(ImageError, match="the JPEG file is damaged: Corrupt JPEG data") as caught:
            look()
        assert caught.value.reason == "damaged"


def test_what_libjpeg_only_finds_unusual_is_no_error() -> None:
    data = encode(photo(), "JPEG")
    at = data.index(b"JFIF\0") + 5
    unusual = data[:at] + b"\x09" + data[at + 1 :]  # a version of JFIF that doesn't exist
    check_image(unusual)
    assert np.array_equal(EncodedImage(unusual).pixels(), np.asarray(decode_image(data)))
