from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from encoding import encode, turned
from pictures import picture
from PIL import Image

from mm.data.images import decode_image
from mm.data.making.items import Item, LeftOut
from mm.data.making.reworking import Preparation, Prepared, Rework
from mm.data.making.selection import AddedCaptions, Selection
from mm.data.samples import Rejection, Sample
from mm.errors import ImageError, OptionError


def scene(width: int, height: int) -> Image.Image:
    """A smooth picture, brighter to the right and bluer to the bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, 255 - x, y], axis=2).astype(np.uint8))


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 600), (128, 77)), ((300, 601), (64, 128)), ((129, 60), (128, 60))]
)
def test_larger_images_are_scaled_down(image_format: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = scene(*size)
    result = opened(Rework(max_side=128, quality=95).apply(encode(image, image_format), "a"))
    assert (result.format, result.mode, result.size) == ("JPEG", "RGB", expected)
    reference = np.asarray(image.resize(expected, Image.Resampling.LANCZOS), dtype=int)
    assert np.abs(np.asarray(result, dtype=int) - reference).mean() < 3


def test_the_filter_is_lanczos() -> None:
    image = Image.effect_noise((640, 480), 100).convert("RGB")
    result = decode_image(Rework(max_side=160, quality=100).apply(encode(image), "a"))
    means = {}
    for name in ("LANCZOS", "BICUBIC", "BILINEAR", "BOX", "NEAREST"):
        reference = image.resize((160, 120), Image.Resampling[name])
        means[name] = np.abs(np.asarray(result, dtype=int) - np.asarray(reference, dtype=int)).mean()
    assert min(means, key=lambda name: means[name]) == "LANCZOS" and means["LANCZOS"] < 2


def test_a_large_jpeg_looks_as_if_it_had_been_decoded_in_full() -> None:
    data = encode(Image.effect_noise((1280, 960), 80).convert("RGB"), "JPEG", quality=98)
    result = decode_image(Rework(max_side=160, quality=100).apply(data, "a"))
    reference = decode_image(data).resize((160, 120), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(result, dtype=int) - np.asarray(reference, dtype=int)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_images_are_upright(orientation: int) -> None:
    image = scene(400, 200)
    data = turned(image, orientation, quality=95)
    result = Rework(max_side=100).apply(data, "a")
    assert opened(result).size == (100, 50) and not opened(result).getexif()
    reference = np.asarray(image.resize((100, 50)), dtype=int)
    assert np.abs(np.asarray(opened(result), dtype=int) - reference).mean() < 4
    assert Rework(max_side=400).apply(data, "a") == data


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_other_images_keep_their_bytes(image_format: str) -> None:
    data = encode(scene(90, 128), image_format)
    assert Rework().apply(data, "a") == Rework(max_side=128).apply(data, "a") == data
    smaller = Rework(quality=20).apply(data, "a")
    assert opened(smaller).format == "JPEG" and opened(smaller).size == (90, 128)
    assert len(smaller) < len(Rework(quality=95).apply(data, "a"))
    assert len(Rework(max_side=100).apply(data, "a")) == len(Rework(max_side=100, quality=90).apply(data, "a"))


def test_transparent_becomes_white() -> None:
    data = encode(Image.new("RGBA", (300, 300), (255, 0, 0, 0)))
    assert np.asarray(opened(Rework(max_side=30).apply(data, "a"))).min() > 250


@pytest.mark.parametrize("rework", [Rework(), Rework(quality=90), Rework(max_side=20)])
def test_damaged_images_are_found_in_any_case(rework: Rework) -> None:
    for data, reason in (
        (encode(scene(300, 200), "JPEG")[:-100], "truncated"),
        (encode(scene(300, 200))[:-100], "truncated"),
        (b"text", "not an image"),
        (b"", "empty file"),
    ):
        with pytest.raises(ImageError, match="photos/a") as caught:
            rework.apply(data, "photos/a")
        assert caught.value.reason == reason
    with pytest.raises(ImageError, match="limit of 59,999 pixels"):
        rework.apply(encode(scene(300, 200)), "photos/a", max_pixels=59_999)


@pytest.mark.parametrize("rework", [Rework(), Rework(quality=90), Rework(max_side=20)])
def test_corrupt_data_that_viewers_pass_over_are_found_too(rework: Rework) -> None:
    data = bytearray(encode(Image.effect_noise((300, 200), 80), "JPEG"))
    data[5000:5040] = b"\xff\xd9" * 20
    assert decode_image(bytes(data)).size == (300, 200)
    with pytest.raises(ImageError, match=r"photos/a: .* damaged") as caught:
        rework.apply(bytes(data), "photos/a")
    assert caught.value.reason == "damaged"


def prepared(sample: Sample, **options: object) -> Prepared | LeftOut | Rejection:
    item = Item(sample.key, lambda: sample)
    return Preparation(Selection(**options), Rework(), AddedCaptions())(item)  # type: ignore[arg-type]


def test_sizes_leave_images_out() -> None:
    sample = Sample("a", "a", picture(size=(40, 30)))
    assert isinstance(prepared(sample, min_side=30, max_pixels=1200), Prepared)
    assert prepared(sample, min_side=31) == LeftOut("a side under 31 pixels")
    assert prepared(sample, max_pixels=1199) == LeftOut("more than 1199 pixels")


def test_images_over_the_usual_limit_are_rejected_unless_asked_for() -> None:
    bomb = encode(Image.new("L", (12_000, 9_000)), "JPEG")
    sample = Sample("a", "a", bomb)
    rejection = prepared(sample)
    assert isinstance(rejection, Rejection) and rejection.reason == "too many pixels"
    assert isinstance(prepared(sample, max_pixels=108_000_000), Prepared)


def test_what_is_left_out_going_by_its_captions_is_not_read() -> None:
    def load() -> Sample:
        raise AssertionError("read")

    told = Sample("a", "a", b"", {"en": ["x"]})
    prepare = Preparation(Selection(languages=["zh"]), Rework(), AddedCaptions())
    assert prepare(Item("a", load, told)) == LeftOut("no caption in zh")


@pytest.mark.parametrize("options", [{"max_side": 0}, {"quality": 0}, {"quality": 101}])
def test_wrong_options(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Rework(**options)
