from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

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
