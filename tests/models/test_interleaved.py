from __future__ import annotations

import torch

from mm.models.interleaved import sees_last_image

MARK, END = 7, 2


def seen(tokens: list[int], images: int = 3, end: int | None = END) -> list[int | None]:
    """The number of the image that each token sees, or None."""
    mask = sees_last_image(torch.tensor([tokens, tokens]), images, MARK, end)
    assert mask.shape == (2, len(tokens), images) and torch.equal(mask[0], mask[1])
    assert int(mask[0].sum(-1).max()) <= 1
    return [row.index(True) if True in row else None for row in mask[0].tolist()]


def test_a_token_sees_the_last_image_before_it() -> None:
    assert seen([1, 7, 5, 5, 7, 7, 4]) == [None, 0, 0, 0, 1, 2, 2]


def test_what_follows_an_end_sees_nothing_up_to_the_next_image() -> None:
    assert seen([7, 5, 2, 5, 2, 7, 4]) == [0, 0, 0, None, None, 1, 1]
    assert seen([2, 7, 2, 7]) == [None, 0, 0, 1]
    assert seen([7, 5, 2, 5], end=None) == [0, 0, 0, 0]


def test_a_text_without_images_sees_nothing() -> None:
    assert seen([1, 5, 2, 4], images=1) == [None] * 4
