"""CLIP models of open_clip in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from mm.models import DualEncoder
from mm.pipeline.base import Pipeline


class DualEncoderPipeline(Pipeline):
    """A CLIP model of open_clip: it embeds.

    Args:
        name: what it was loaded as.
        encoder: the two towers.
        transform: maps an RGB image to (3, H, W) normalized pixels.
        fingerprint: SHA-256 of its weights.
        device: where it runs.
    """

    def __init__(
        self,
        name: str,
        encoder: DualEncoder,
        transform: Callable[[Image.Image], Tensor],
        fingerprint: str,
        device: torch.device,
    ) -> None:
        super().__init__(name, fingerprint, transform, "open_clip's own", encoder.embedding_width, (), device)
        self.encoder = encoder.to(device)

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        return self.encoder.image_embedding(pixels)

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.text_embedding(texts)
