"""What a user holds in hand: a loaded model that captions, embeds and matches images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm.checkpoints.directory import Loaded, first_line
from mm.checkpoints.resolve import BUILT_IN, load_vision_language
from mm.data.images import convert_image, decode_image, read_image
from mm.data.tokenizer import clean_caption
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import CapabilityError, OptionError
from mm.generation import GenerationConfig, generate
from mm.layers import KeyValues
from mm.models import DualEncoder

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


def load(name: str | Path = "mm-tiny", device: str | torch.device | None = None) -> Pipeline:
    """Loads a model.

    Args:
        name: ``mm-tiny``, a model directory, a training checkpoint, ``hf:owner/name``, or
            ``open_clip:architecture/tag`` where the tag may be a local file.
        device: where it runs; None for the GPU if there is one.

    Raises:
        UnknownModelError: the name names nothing.
        CheckpointError: what it names can't be read.
        OptionError: there is no such device.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise OptionError(f"device {str(device)!r} can't be used ({first_line(error)})") from error
    if str(name).startswith("open_clip:"):
        from mm.checkpoints.open_clip import load_open_clip

        encoder, transform, fingerprint = load_open_clip(str(name))
        return DualEncoderPipeline(str(name), encoder, transform, fingerprint, place)
    return VisionLanguagePipeline(str(name), load_vision_language(name), place)


class Pipeline(ABC):
    """A model that can be used: what every kind has in common.

    Args:
        name: what it was loaded as.
        fingerprint: SHA-256 of its weights.
        transform: maps an RGB image to (3, H, W) pixels as the model takes them.
        preprocessing: what it does, in a few words.
        dimension: E of the shared space.
        languages: codes of the languages it captions in.
        device: where it runs.
    """

    capabilities: ClassVar[tuple[str, ...]] = ("embed",)

    def __init__(
        self,
        name: str,
        fingerprint: str,
        transform: Callable[[Image.Image], Tensor],
        preprocessing: str,
        dimension: int,
        languages: Sequence[str],
        device: torch.device,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._transform = transform
        self.preprocessing = preprocessing
        self.dimension = dimension
        self.languages = tuple(languages)
        self.device = device

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


class VisionLanguagePipeline(Pipeline):
    """A vision-language model of mm, with its tokenizer.

    Args:
        name: what it was loaded as.
        loaded: model, tokenizer and architecture.
        device: where it runs.
    """

    capabilities = ("caption", "embed", "match")

    def __init__(self, name: str, loaded: Loaded, device: torch.device) -> None:
        size = loaded.architecture.image_size
        preprocessing = f"whole image scaled to {size}x{size}, bicubic"
        width, languages = loaded.architecture.embedding_width, list(loaded.tokenizer.languages)
        super().__init__(name, loaded.fingerprint, ImageTransform(size), preprocessing, width, languages, device)
        self.model = loaded.model.to(device)
        self.tokenizer = loaded.tokenizer
        self.architecture = loaded.architecture

    @torch.inference_mode()
    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        language: str = "en",
        prompt: str | Sequence[str] = "",
        config: GenerationConfig = CAPTION,
        batch_size: int = 16,
    ) -> list[Caption]:
        self.require("caption", language)
        count = 1 if isinstance(images, ImageLike) else len(images)
        texts = [prompt] * count if isinstance(prompt, str) else list(prompt)
        if len(texts) != count:
            raise OptionError(f"{len(texts)} prompts for {count} images; give one, or one for each image")
        first = self.tokenizer.languages[language]
        prompts = [[first, *ids] for ids in self.tokenizer.encode(texts)]
        captions: list[Caption] = []
        for pixels in self._batches(images, batch_size):
            found = generate(
                self.model.text_decoder,
                self.model.image_tokens(to_pixels(pixels)),
                prompts[len(captions) : len(captions) + len(pixels)],
                config,
                end=self.tokenizer.end,
                fill=self.tokenizer.padding,
            )
            written = self.tokenizer.decode([caption.tokens for caption in found])
            captions += [
                Caption(text, language, caption.score / max(1, caption.generated), caption.ended)
                for text, caption in zip(written, found, strict=True)
            ]
        return captions

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model.image_embedding(self.model.image_tokens(to_pixels(pixels)))

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        return self.model.text_embedding(*self._tokens(texts))

    @torch.inference_mode()
    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]) -> np.ndarray:
        texts = [texts] if isinstance(texts, str) else texts
        if not texts:
            return np.empty((1 if isinstance(images, ImageLike) else len(images), 0), np.float32)
        tokens, padding = self._tokens(texts)
        rows = []
        for pixels in self._batches(images, 16):
            for image in self.model.image_tokens(to_pixels(pixels)):
                context = [
                    KeyValues(layer.keys.expand(len(texts), -1, -1, -1), layer.values.expand(len(texts), -1, -1, -1))
                    for layer in self.model.text_encoder.keys_values(image[None])
                ]
                rows.append(self.model.match_logits(context, tokens, padding).float().softmax(-1)[:, 1].cpu())
        return torch.stack([*rows]).numpy() if rows else np.empty((0, len(texts)), np.float32)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        limit = self.model.text_encoder.max_tokens - 1
        tokens, padding = self.tokenizer.pad(self.tokenizer.encode([clean_caption(text) for text in texts], limit))
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(padding).to(self.device)


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
