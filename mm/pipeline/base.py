"""What every loaded model has in common: it embeds, and may caption, match or answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm.checkpoints.resolve import BUILT_IN
from mm.data.images import convert_image, decode_image, read_image
from mm.errors import CapabilityError, OptionError
from mm.generation import GenerationConfig

ImageLike = Image.Image | str | Path | bytes
CAPTION = GenerationConfig(beams=3, repetition_penalty=1.2)


@dataclass(frozen=True)
class Caption:
    """A caption of one image.

    Args:
        text: the caption, the prompt included.
        language: code of its language.
        score: mean log-probability of its tokens: nearer to 0 is surer.
        complete: whether it ended by itself, not at the length limit.
    """

    text: str
    language: str
    score: float
    complete: bool

    def __str__(self) -> str:
        return self.text


class Pipeline(ABC):
    """A model that can be used: what every kind has in common.

    Args:
        name: what it was loaded as.
        fingerprint: SHA-256 of its weights, as what ``str`` gives.
        transform: maps an RGB image to (3, H, W) pixels as the model takes them.
        preprocessing: what it does, in a few words.
        dimension: E of the shared space.
        languages: codes of the languages it captions in.
        device: where it runs.
    """

    capabilities: tuple[str, ...] = ("embed",)

    def __init__(
        self,
        name: str,
        fingerprint: object,
        transform: Callable[[Image.Image], Tensor],
        preprocessing: str,
        dimension: int,
        languages: Sequence[str],
        device: torch.device,
    ) -> None:
        self.name = name
        self._fingerprint = fingerprint
        self._transform = transform
        self.preprocessing = preprocessing
        self.dimension = dimension
        self.languages = tuple(languages)
        self.device = device

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, in hexadecimal."""
        return str(self._fingerprint)

    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        language: str = "en",
        prompt: str | Sequence[str] = "",
        config: GenerationConfig = CAPTION,
        batch_size: int = 16,
    ) -> list[Caption]:
        """Captions images.

        Args:
            images: decoded images, paths or encoded bytes; or a single one.
            language: code of the language to caption in.
            prompt: words that captions begin with, for all images or one for each.
            config: how captions are decoded; beam search with 3 beams and a
                repetition penalty of 1.2 unless told otherwise.
            batch_size: images captioned together. It changes speed, not captions.

        Returns:
            One caption for each image.

        Raises:
            CapabilityError: this model doesn't caption.
            OptionError: the model doesn't know the language, or the options don't fit it.
            ImageError: an image can't be decoded.
        """
        raise self._lacks("caption")

    @torch.inference_mode()
    def embed_images(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 32) -> np.ndarray:
        """Embeds images in the shared space.

        Args:
            images: decoded images, paths or encoded bytes; or a single one.
            batch_size: images embedded together.

        Returns:
            (B, E) float32 vectors of length 1.

        Raises:
            ImageError: an image can't be decoded.
        """
        vectors = [self._image_vectors(pixels).float().cpu() for pixels in self._batches(images, batch_size)]
        return torch.cat([torch.empty(0, self.dimension), *vectors]).numpy()

    @torch.inference_mode()
    def embed_text(self, texts: str | Sequence[str], batch_size: int = 128) -> np.ndarray:
        """Embeds texts in the shared space.

        Args:
            texts: one or several.
            batch_size: texts embedded together.

        Returns:
            (B, E) float32 vectors of length 1.
        """
        texts = [texts] if isinstance(texts, str) else texts
        vectors = [
            self._text_vectors(texts[start : start + batch_size]).float().cpu()
            for start in range(0, len(texts), batch_size)
        ]
        return torch.cat([torch.empty(0, self.dimension), *vectors]).numpy()

    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]) -> np.ndarray:
        """Says how probably each text describes each image.

        Args:
            images: B decoded images, paths or encoded bytes; or a single one.
            texts: M texts, or a single one.

        Returns:
            (B, M) float32 probabilities.

        Raises:
            CapabilityError: this model doesn't match.
            ImageError: an image can't be decoded.
        """
        raise self._lacks("match")

    def require(self, capability: str, language: str | None = None) -> None:
        """Makes sure of a capability before any work is done.

        Args:
            capability: ``caption``, ``embed`` or ``match``.
            language: a language to caption in.

        Raises:
            CapabilityError: the model lacks the capability.
            OptionError: the model doesn't caption in the language.
        """
        if capability not in self.capabilities:
            raise self._lacks(capability)
        if capability == "caption" and language is not None and language not in self.languages:
            raise OptionError(f"{self.name} doesn't caption in {language!r}; languages: {', '.join(self.languages)}")

    def _lacks(self, capability: str) -> CapabilityError:
        has = ", ".join(self.capabilities)
        able = f"{', '.join(BUILT_IN)} and those that 'mm fit' trains"
        return CapabilityError(f"{self.name} can't {capability} (it can {has}); models that can: {able}")

    @abstractmethod
    def _image_vectors(self, pixels: Tensor) -> Tensor:
        """Maps transformed images to (B, E) vectors of length 1."""

    @abstractmethod
    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Maps texts to (B, E) vectors of length 1."""

    def _batches(self, images: ImageLike | Sequence[ImageLike], size: int) -> Iterator[Tensor]:
        items = [images] if isinstance(images, ImageLike) else images
        for start in range(0, len(items), size):
            opened = [open_image(image) for image in items[start : start + size]]
            yield torch.stack([self._transform(image) for image in opened]).to(self.device)


def open_image(image: ImageLike) -> Image.Image:
    """Opens what a user may give as an image: decoded, as bytes, or as a path.

    Raises:
        ImageError: it can't be decoded within the limits.
    """
    if isinstance(image, Image.Image):
        return convert_image(image)
    return decode_image(image) if isinstance(image, bytes) else read_image(image)
