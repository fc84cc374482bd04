"""Two towers and one shared space: any CLIP model of open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class DualEncoder(nn.Module):
    """A CLIP model (Radford et al., arXiv:2103.00020): it embeds images and texts and does nothing else.

    Args:
        model: a model of open_clip, with ``encode_image`` and ``encode_text``.
        tokenize: maps texts to (B, T) int64 tokens.
        embedding_width: E of the shared space.
    """

    def __init__(self, model: nn.Module, tokenize: Callable[[Sequence[str]], Tensor], embedding_width: int) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenize = tokenize
        self.embedding_width = embedding_width

    def image_embedding(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels, normalized as the model expects, to (B, E) vectors of length 1."""
        return F.normalize(self.model.encode_image(pixels), dim=-1)

    def text_embedding(self, texts: Sequence[str]) -> Tensor:
        """Maps texts to (B, E) vectors of length 1."""
        device = next(self.model.parameters()).device
        return F.normalize(self.model.encode_text(self.tokenize(list(texts)).to(device)), dim=-1)
