from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mm.data.transforms import FILTERS, ImageTransform, Preprocessing, to_pixels
from mm.errors import OptionError


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


@pytest.mark.parametrize(("width", "first"), [(11, 3), (12, 4), (13, 4), (14, 5)])
def test_the_square_is_cut_out_of_the_middle(width: int, first: int) -> None:
    pixels = ImageTransform(Preprocessing(4, "shortest", "nearest", scaled=8))(columns(width, 8))
    assert pixels[0].tolist() == [list(range(first, first + 4))] * 4
    tall = columns(width, 8).transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(ImageTransform(Preprocessing(4, "shortest", "nearest", 8))(tall), pixels.transpose(1, 2))


def test_the_shortest_side_is_scaled_and_the_proportions_kept() -> None:
    pixels = ImageTransform(Preprocessing(32, "shortest", "bilinear"))(columns(128, 64))
    assert pixels[0, 0].tolist() == pytest.approx(list(range(32, 96, 2)), abs=1)


def test_a_stretched_image_may_be_cut() -> None:
    pixels = ImageTransform(Preprocessing(16, "stretch", "bilinear", scaled=32))(columns(128, 50))
    assert pixels[0, 0].tolist() == pytest.approx([4 * column + 1.5 for column in range(8, 24)], abs=1)


def test_black_surrounds_what_is_smaller_than_the_square() -> None:
    white = Image.new("RGB", (8, 4), "white")
    pixels = ImageTransform(Preprocessing(9, "shortest", "bicubic", scaled=4))(white)
    assert pixels[0, :, 4].tolist() == [0] * 2 + [255] * 4 + [0] * 3
    assert pixels[0, 4].tolist() == [255] * 8 + [0]


@pytest.mark.parametrize("resize", ["stretch", "shortest"])
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 900_000), (900_000, 1)])
def test_a_strip_takes_no_more_memory_than_an_image(size: tuple[int, int], filter: str, resize: str) -> None:
    transform, image = ImageTransform(Preprocessing(224, resize, filter)), Image.new("RGB", size, (10, 20, 30))
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
    transform, image = ImageTransform(32), photo()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = transform.view(image, number, (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, ImageTransform(32).view(image, number, (3, 4)))
    other = transform.view(image, number, (3, 5))
    assert torch.equal(first, other) == (number < 2)


def test_views_differ() -> None:
    transform, image = ImageTransform(32), photo()
    views = [transform.view(image, number, (0, 0)) for number in range(8)]
    assert torch.equal(views[0], transform(image)) and torch.equal(views[1], views[0].flip(-1))
    assert len({bytes(view.numpy().tobytes()) for view in views}) == 8


def test_crops_show_at_least_the_share_asked_for() -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    image = Image.merge("RGB", [Image.fromarray(ramp)] * 3)
    transform = ImageTransform(64, crop=0.9)
    for _ in range(14):
        pixels = transform._part(image)
        row = np.asarray(pixels)[32, :, 0]
        assert int(row.max()) - int(row.min()) >= 0.9 * 200 / 1.25 - 8


def test_pixels_are_between_0_and_1() -> None:
    pixels = to_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert pixels.dtype == torch.float32 and pixels.tolist() == pytest.approx([0.0, 0.2, 1.0])
