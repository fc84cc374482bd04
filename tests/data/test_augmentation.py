from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from mm.data.augmentation import Augmentation, Colors, change_colors
from mm.errors import OptionError


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.mark.parametrize("size", [(100, 100), (400, 300), (300, 400)])
def test_boxes_have_the_areas_and_shapes_asked_for(size: tuple[int, int]) -> None:
    random, augmentation = chance(), Augmentation(0.4)
    boxes = [augmentation.draw_box(size, random) for _ in range(500)]
    for left, top, width, height in boxes:
        assert 0 <= left <= left + width <= size[0] + 1e-9 and 0 <= top <= top + height <= size[1] + 1e-9
        assert 0.8 - 1e-9 <= width / height <= 1.25 + 1e-9
    shares = np.array([box.width * box.height / (size[0] * size[1]) for box in boxes])
    assert 0.4 <= shares.min() < 0.42 and 0.9 < shares.max() <= 1
    assert np.mean([box.left > size[0] - box.left - box.width for box in boxes]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (493.75, 0, 12.5, 10)), ((8, 80), (0, 35, 8, 10))])
def test_the_middle_of_what_is_too_long(size: tuple[int, int], box: tuple[float, ...]) -> None:
    assert Augmentation(0.9).draw_box(size, chance()) == pytest.approx(box)


def test_colors_are_between_the_limits() -> None:
    random = chance()
    drawn = np.array([Augmentation(color=0.3).draw_colors(random) for _ in range(300)])
    assert (drawn.min(0) >= 0.7).all() and (drawn.min(0) < 0.72).all()
    assert (drawn.max(0) <= 1.3).all() and (drawn.max(0) > 1.28).all()
    assert Augmentation(color=0).draw_colors(random) == (1, 1, 1)


@pytest.mark.parametrize(
    ("colors", "function"),
    [
        (Colors(1.2, 1, 1), functional.adjust_brightness),
        (Colors(1, 1.2, 1), functional.adjust_contrast),
        (Colors(1, 0.7, 1), functional.adjust_contrast),
        (Colors(1, 1, 1.2), functional.adjust_saturation),
        (Colors(1, 1, 0.0), functional.adjust_saturation),
    ],
)
def test_each_change_is_that_of_torchvision(colors: Colors, function: Any) -> None:
    pixels = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    factor = next((value for value in colors if value != 1), 1.0)
    changed = change_colors(pixels, colors)
    assert changed.dtype == torch.uint8 and changed.shape == pixels.shape
    assert (changed.int() - function(pixels, factor).int()).abs().max() <= 1
    assert torch.equal(change_colors(pixels, Colors(1, 1, 1)), pixels)


def test_nothing_is_cut_off_in_between() -> None:
    pixels = torch.full((3, 4, 4), 250, dtype=torch.uint8)
    pixels[:, 2:] = 100
    contrast = change_colors(pixels, Colors(1.2, 0.5, 1))
    assert contrast[0, :, 0].tolist() == [255, 255, 165, 165]  # 1.2 * (175 + half of what is more or less than that)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0}, "crop must be above 0 and at most 1, not 0"),
        ({"crop": 1.1}, "crop must be above 0"),
        ({"color": -0.1}, "color must be at least 0 and at most 1, not -0.1"),
        ({"color": 2}, "color must be at least 0"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Augmentation(**options)
