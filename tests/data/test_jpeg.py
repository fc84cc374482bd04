from __future__ import annotations

import pytest
from encoding import encode
from pictures import picture
from PIL import Image

from mm.data.jpeg import EIGHTHS, CorruptError, decode_jpeg, enough_eighths


@pytest.mark.parametrize(
    ("sides", "least", "eighths"),
    [((800, 800), 100, 1), ((800, 799), 100, 2), ((799, 800), 200, 4), ((4000, 400), 100, 2), ((50, 50), 100, 8)],
)
def test_the_smallest_fraction_that_is_large_enough(sides: tuple[int, int], least: float, eighths: int) -> None:
    assert enough_eighths(sides, least) == eighths


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (1, 9)])
@pytest.mark.parametrize("eighths", EIGHTHS)
def test_the_size_is_the_fraction_rounded_up(size: tuple[int, int], eighths: int) -> None:
    pixels = decode_jpeg(picture(3, "JPEG", size), size, eighths)
    assert pixels is not None and pixels.flags.writeable
    assert pixels.shape == (-(-size[1] * eighths // 8), -(-size[0] * eighths // 8), 3)
    assert abs(pixels.reshape(-1, 3).mean(0) - (111, 17, 50)).max() < 5


@pytest.mark.parametrize("eighths", EIGHTHS)
def test_data_that_end_early_are_corrupt(eighths: int) -> None:
    data = encode(Image.effect_noise((80, 80), 60), "JPEG")
    with pytest.raises(CorruptError, match=r"(?i)premature end"):
        decode_jpeg(data[:-200], (80, 80), eighths)


def test_what_cannot_be_decoded_is_left_to_others() -> None:
    assert decode_jpeg(b"hello", (8, 8)) is None
