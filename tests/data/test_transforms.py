from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding import encode, turned
from PIL import Image
from torchvision.transforms import v2

from mm.data.augmentation import Box
from mm.data.images import EncodedImage, decode_image
from mm.data.transforms import FILTERS, MARGIN, ImageTransform, Preprocessing, decode_part, to_pixels
from mm.errors import ImageError, OptionError

PHOTOS = Path(__file__).parents[2] / "data" / "samples"


def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (8, 11, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((60, 44), Image.Resampling.BICUBIC)


def test_the_whole_image_becomes_a_square() -> None:
    pixels = ImageTransform(32)(photo())
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    left = Image.new("RGB", (64, 16), "white")
    left.paste((255, 0, 0), (0, 0, 32, 16))
    halves = ImageTransform(32)(left)
    assert halves[:, 16, 2].tolist() == [255, 0, 0] and halves[:, 16, 30].tolist() == [255, 255, 255]


def columns(width: int, height: int) -> Image.Image:
    """An image whose value is the number of the column."""
    return Image.fromarray(np.repeat(np.arange(width, dtype=np.uint8)[None, :, None], height, 0).repeat(3, 2))


@pytest.mark.parametrize(("width", "down", "even"), [(11, 3, 4), (12, 4, 4), (13, 4, 4), (14, 5, 5)])
@pytest.mark.parametrize("pillow", [False, True])
def test_the_square_is_cut_out_of_the_middle(pillow: bool, width: int, down: int, even: int) -> None:
    transform = ImageTransform(Preprocessing(4, "shortest", "nearest", scaled=8, pillow=pillow))
    pixels, first = transform(columns(width, 8)), even if pillow else down
    assert pixels[0].tolist() == [list(range(first, first + 4))] * 4
    tall = columns(width, 8).transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(transform(tall), pixels.transpose(1, 2))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(60, 44), (33, 60), (300, 20)])
def test_pillow_scales_as_torchvision_does(size: tuple[int, int], filter: str) -> None:
    image = photo().resize(size)
    whole = v2.Resize((32, 32), FILTERS[filter])(image)
    assert torch.equal(ImageTransform(Preprocessing(32, filter=filter))(image), v2.functional.pil_to_tensor(whole))
    cut = v2.Compose([v2.Resize(17, FILTERS[filter]), v2.CenterCrop(16)])(image)
    transform = ImageTransform(Preprocessing(16, "shortest", filter, 17))
    assert torch.equal(transform(image), v2.functional.pil_to_tensor(cut))


@pytest.mark.parametrize("pillow", [False, True])
def test_the_shortest_side_is_scaled_and_the_proportions_kept(pillow: bool) -> None:
    pixels = ImageTransform(Preprocessing(32, "shortest", "bilinear", pillow=pillow))(columns(128, 64))
    assert pixels[0, 0].tolist() == pytest.approx(list(range(32, 96, 2)), abs=1)


@pytest.mark.parametrize("pillow", [False, True])
def test_a_stretched_image_may_be_cut(pillow: bool) -> None:
    transform = ImageTransform(Preprocessing(16, "stretch", "bilinear", scaled=32, pillow=pillow))
    assert transform(columns(128, 50))[0, 0].tolist() == pytest.approx([4 * c + 1.5 for c in range(8, 24)], abs=1)


@pytest.mark.parametrize("pillow", [False, True])
def test_black_surrounds_what_is_smaller_than_the_square(pillow: bool) -> None:
    white = Image.new("RGB", (8, 4), "white")
    for size, top, left in ((9, 2, 0), (11, 3, 1)):
        pixels = ImageTransform(Preprocessing(size, "shortest", "bicubic", scaled=4, pillow=pillow))(white)
        assert pixels[0, :, 4].tolist() == [0] * top + [255] * 4 + [0] * (size - top - 4)
        assert pixels[0, 4].tolist() == [0] * left + [255] * 8 + [0] * (size - left - 8)


@pytest.mark.parametrize("resize", ["stretch", "shortest"])
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 900_000), (900_000, 1)])
@pytest.mark.parametrize("pillow", [False, True])
def test_a_strip_takes_no_more_memory_than_an_image(
    pillow: bool, size: tuple[int, int], filter: str, resize: str
) -> None:
    transform = ImageTransform(Preprocessing(224, resize, filter, pillow=pillow))
    image = Image.new("RGB", size, (10, 20, 30))
    with torch.profiler.profile(profile_memory=True) as profile:
        pixels = transform(image)
    assert pixels.shape == (3, 224, 224) and pixels.flatten(1).unique(dim=1).tolist() == [[10], [20], [30]]
    assert max(event.cpu_memory_usage for event in profile.events()) < 50_000_000


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        (Preprocessing(224), "whole image scaled to 224x224, bicubic"),
        (Preprocessing(224, "stretch", "bicubic", 256), "whole image scaled to 256x256, 224x224 cut out, bicubic"),
        (Preprocessing(224, "shortest"), "shortest side scaled to 224, 224x224 cut out, bicubic"),
        (Preprocessing(224, filter="bilinear", pillow=False), "whole image scaled to 224x224, bilinear by torch"),
    ],
)
def test_it_says_what_it_does(preprocessing: Preprocessing, words: str) -> None:
    assert str(preprocessing) == words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "can't be scaled to 0 pixels"),
        ({"size": 4, "scaled": -1}, "can't be scaled to -1 pixels"),
        ({"size": 4, "resize": "pad"}, "resize is 'pad': stretch, shortest"),
        ({"size": 4, "filter": "box"}, "filter is 'box': bicubic, bilinear, lanczos, nearest"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 2**31])
def test_a_view_is_a_function_of_its_number_and_seed(number: int) -> None:
    transform, data = ImageTransform(32), encode(photo())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = transform.view_of(data, "a", number, (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, ImageTransform(32).view_of(data, "b", number, (3, 4)))
    other = transform.view_of(data, "a", number, (3, 5))
    assert torch.equal(first, other) == (number < 2)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_views_differ(image_format: str) -> None:
    transform, data = ImageTransform(32), encode(photo(), image_format)
    views = [transform.view_of(data, "a", number, (0, 0)) for number in range(8)]
    assert torch.equal(views[0], transform(decode_image(data))) and torch.equal(views[1], views[0].flip(-1))
    assert len({view.numpy().tobytes() for view in views}) == 8
    assert all(view.shape == (3, 32, 32) and view.dtype == torch.uint8 for view in views)


def ramp(width: int, height: int) -> Image.Image:
    """An image whose red is 250 times the share of the width, and whose green is that of the height."""
    red = np.broadcast_to((250 * (np.arange(width) + 0.5) / width)[None], (height, width))
    green = np.broadcast_to((250 * (np.arange(height) + 0.5) / height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], 2).round().astype(np.uint8))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize(("crop", "size"), [(0.9, (200, 200)), (0.3, (640, 480)), (1.0, (320, 320))])
def test_crops_show_at_least_the_share_asked_for(crop: float, size: tuple[int, int], image_format: str) -> None:
    transform, data = ImageTransform(64, crop=crop, color=0), encode(ramp(*size), image_format)
    for number in range(2, 16):
        view = transform.view_of(data, "a", number, (1,)).float()
        wide, high = (float(side.max() - side.min()) / 250 for side in (view[0, 32], view[1, :, 32]))
        assert 0.8 - 0.05 <= wide * size[0] / (high * size[1]) <= 1.25 + 0.07
        assert wide * high >= crop * 0.93
        assert (view[0, 32, 0] > view[0, 32, -1]) == (number % 2 == 1)


def test_a_jpeg_is_decoded_no_larger_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = EncodedImage.pixels
    monkeypatch.setattr(EncodedImage, "pixels", lambda self, eighths: asked.append(eighths) or whole(self, eighths))
    data = encode(ramp(800, 800), "JPEG")
    for size, eighths in ((64, 1), (100, 2), (200, 4), (400, 8), (900, 8)):
        ImageTransform(size, 0.9).view_of(data, "a", 2, (1,))
        assert asked.pop() == eighths


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_part_lies_in_the_upright_image(orientation: int) -> None:
    data = turned(ramp(640, 480), orientation)
    for eighths in (1, 2, 8):
        part = decode_part(EncodedImage(data), Box(160, 240, 320, 200), 25 * eighths).float()
        assert part.shape == (3, 25 * eighths, 40 * eighths)
        assert part[0, 2, [0, -1]].tolist() == pytest.approx([250 * 0.25, 250 * 0.75], abs=8)
        assert part[1, [0, -1], 2].tolist() == pytest.approx([250 * 0.5, 250 * 440 / 480], abs=8)


@pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg", "officer.jpg"])
def test_a_view_of_a_scaled_jpeg_is_as_close_to_one_of_the_whole_as_another_filter_is(name: str) -> None:
    image, box = EncodedImage((PHOTOS / name).read_bytes()), Box(16, 32, 256, 256)
    whole = decode_part(image, box, 256)
    assert whole.shape == (3, 256, 256)
    bicubic, bilinear = (v2.functional.resize(whole, [51, 51], FILTERS[one]).float() for one in ("bicubic", "bilinear"))
    part = decode_part(image, box, MARGIN * 51)
    assert part.shape == (3, 64, 64)
    view = v2.functional.resize(part, [51, 51], FILTERS["bicubic"]).float()
    assert 0 < (view - bicubic).abs().mean() < 1.2 * (bilinear - bicubic).abs().mean()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 2)])
def test_any_image_gives_a_view(size: tuple[int, int]) -> None:
    data = encode(Image.new("RGB", size, (10, 20, 30)))
    for number in range(2, 6):
        view = ImageTransform(16, color=0).view_of(data, "a", number, (1,))
        assert view.flatten(1).unique(dim=1).tolist() == [[10], [20], [30]]


@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_gives_views(filter: str) -> None:
    view = ImageTransform(Preprocessing(16, filter=filter), color=0).view_of(encode(ramp(64, 64)), "a", 2, (1,))
    assert view[0, 8, 15] > view[0, 8, 0] + 150


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_view_of_a_damaged_jpeg_is_refused(number: int) -> None:
    data = bytearray(encode(Image.effect_noise((256, 256), 60), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 2048] = bytes(2048)
    with pytest.raises(ImageError, match=r"^a/b\.jpg: the JPEG file is damaged") as caught:
        ImageTransform(32).view_of(bytes(data), "a/b.jpg", number, (1,))
    assert caught.value.reason == "damaged"


def test_a_view_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="over the limit of 100 pixels"):
        ImageTransform(8).view_of(encode(ramp(20, 20)), "a", 2, (1,), max_pixels=100)


def test_pixels_are_between_0_and_1() -> None:
    pixels = to_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert pixels.dtype == torch.float32 and pixels.tolist() == pytest.approx([0.0, 0.2, 1.0])
