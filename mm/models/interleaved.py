"""Texts with several images in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sees_last_image(tokens: Tensor, images: int, mark: int, end: int | None) -> Tensor:
    """Says which image each token of a text sees: the last one before it in the same part (Flamingo, arXiv:2204.14198).

    Args:
        tokens: (B, T) int64 token ids.
        images: number of images M of each text.
        mark: id of the token that stands for an image; it sees its image itself.
        end: id of the token that ends a part: what follows it sees no image up to the next one. None for no such token.

    Returns:
        (B, T, M) bool, true where a token sees an image; of a token before any image, true nowhere.
    """
    place = torch.arange(tokens.shape[1], device=tokens.device)
    marked = tokens == mark
    begun = torch.where(marked, place, -1).cummax(1).values
    ended = torch.where(tokens == end, place, -1) if end is not None else torch.full_like(tokens, -1)
    ended_before = F.pad(ended.cummax(1).values, (1, -1), value=-1)
    number = torch.arange(images, device=tokens.device)
    return (marked.cumsum(1)[..., None] - 1 == number) & (begun > ended_before)[..., None]
