"""Vision-language models in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm.checkpoints.directory import Loaded
from mm.data.tokenizer import clean_caption
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import OptionError
from mm.generation import GenerationConfig, generate
from mm.pipeline.base import CAPTION, Caption, ImageLike, Pipeline


class VisionLanguagePipeline(Pipeline):
    """A vision-language model of mm, with its tokenizer.

    Args:
        name: what it was loaded as.
        loaded: model, tokenizer and architecture.
        device: where it runs.
    """

    def __init__(self, name: str, loaded: Loaded, device: torch.device) -> None:
        transform, languages = ImageTransform(loaded.transform), list(loaded.tokenizer.languages)
        width = loaded.model.embedding_width
        super().__init__(name, loaded.fingerprint, transform, str(loaded.transform), width, languages, device)
        self.capabilities = loaded.model.capabilities
        self.family = loaded.family
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
                self.model.decoder,
                self.model.about(self.model.image_tokens(to_pixels(pixels))),
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
                context = self.model.encoder.keys_values(image[None]).expand(len(texts))
                rows.append(self.model.match_logits(context, tokens, padding).float().softmax(-1)[:, 1].cpu())
        return torch.stack([*rows]).numpy() if rows else np.empty((0, len(texts)), np.float32)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        limit = self.model.encoder.max_tokens - 1
        tokens, padding = self.tokenizer.pad(self.tokenizer.encode([clean_caption(text) for text in texts], limit))
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(padding).to(self.device)
