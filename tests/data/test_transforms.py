from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mm.data.transforms import ImageTransform, to_pixels


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
