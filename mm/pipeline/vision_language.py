"""Vision-language models in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mm.checkpoints.directory import Loaded
from mm.data.labels import TEMPLATE, label_prompts
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import OptionError
from mm.generation import GenerationConfig, generate
from mm.models import Conditioning
from mm.pipeline.base import ANSWER, CAPTION, Answer, Caption, ImageLike, Pipeline


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
        self._labels: tuple[tuple[str, ...], np.ndarray] = ((), np.empty((0, width), np.float32))

    @torch.inference_mode()
    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        language: str = "en",
        prompt: str | Sequence[str] = "",
        shots: Sequence[tuple[ImageLike, str]] = (),
        config: GenerationConfig = CAPTION,
        batch_size: int = 16,
    ) -> list[Caption]:
        self.require("caption", language)
        if shots:
            self.require("shots")
        if blank := [number for number, (_, caption) in enumerate(shots, 1) if not caption.strip()]:
            raise OptionError(f"shot {blank[0]} of {len(shots)} has no caption")
        texts = _one_for_each("prompts", prompt, images)
        lead = self._lead(language, [caption for _, caption in shots])
        prompts = [[*lead, *ids] for ids in self.tokenizer.encode_captions(texts)]
        shown = [self._seen(pixels) for pixels in self._batches([image for image, _ in shots], batch_size)]
        captions: list[Caption] = []
        for pixels in self._batches(images, batch_size):
            about = self._about_shots(torch.cat(shown), pixels, lead) if shown else self._about(pixels)
            begun = prompts[len(captions) : len(captions) + len(pixels)]
            captions += [
                Caption(text, language, score, complete)
                for text, score, complete in self._write(about, begun, config, len(lead))
            ]
        return captions

    def _lead(self, language: str, captions: Sequence[str]) -> list[int]:
        """Gives the tokens in front of a caption's words: before what every caption begins with, those of examples."""
        opening = self.model.opening(torch.tensor([self.tokenizer.languages[language]]))[0].tolist()
        marks = self.model.special.image_marks
        known = self.tokenizer.encode_captions(captions)
        examples = [token for words in known for token in (*marks, *words, self.tokenizer.end)]
        place = len(opening) - len(marks)
        return [*opening[:place], *examples, *opening[place:]]

    def _seen(self, pixels: Tensor) -> Tensor:
        """Maps transformed images to what the text decoder sees of them."""
        return self.model.seen_tokens(self.model.image_tokens(to_pixels(pixels)))

    def _about(self, pixels: Tensor) -> Conditioning:
        return self.model.about(self.model.image_tokens(to_pixels(pixels)))

    def _about_shots(self, shown: Tensor, pixels: Tensor, lead: Sequence[int]) -> Conditioning:
        """Prepares for each transformed image the (S, P, D) ``shown`` of examples and the image itself."""
        seen = self._seen(pixels)
        images = torch.cat([shown.expand(len(seen), *shown.shape), seen[:, None]], 1)
        return self.model.about_interleaved(images, torch.tensor([lead], device=self.device).expand(len(seen), -1))

    @torch.inference_mode()
    def ask(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        *,
        config: GenerationConfig = ANSWER,
        batch_size: int = 16,
    ) -> list[Answer]:
        self.require("ask")
        texts = _one_for_each("questions", questions, images)
        first = self.tokenizer.languages[self.languages[0]]
        answers: list[Answer] = []
        for pixels in self._batches(images, batch_size):
            asked = texts[len(answers) : len(answers) + len(pixels)]
            about = self.model.about_question(self.model.image_tokens(to_pixels(pixels)), *self._tokens(asked))
            written = self._write(about, [[first]] * len(asked), config)
            answers += [
                Answer(text, question, score, complete)
                for question, (text, score, complete) in zip(asked, written, strict=True)
            ]
        return answers

    def _write(
        self, about: Conditioning, prompts: Sequence[Sequence[int]], config: GenerationConfig, lead: int = 1
    ) -> Iterator[tuple[str, float, bool]]:
        """Lets the decoder write; gives each text, its mean log-probability and whether it ended by itself.

        The first ``lead`` tokens of each prompt aren't part of its text.
        """
        end, fill, marks = self.tokenizer.end, self.tokenizer.padding, self.model.special.image_marks
        found = generate(self.model.decoder, about, prompts, config, end=end, fill=fill, never=marks)
        texts = self.tokenizer.decode([one.tokens[lead - 1 :] for one in found])
        for text, one in zip(texts, found, strict=True):
            yield text, one.score / max(1, one.generated), one.ended

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model.image_embedding(self.model.image_tokens(to_pixels(pixels)))

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        return self.model.text_embedding(*self._tokens(texts))

    @torch.inference_mode()
    def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        labels: Sequence[str],
        *,
        template: str = TEMPLATE,
        batch_size: int = 32,
    ) -> np.ndarray:
        self.require("embed")
        prompts = label_prompts(labels, template)
        if self._labels[0] != prompts:
            self._labels = prompts, self.embed_text(prompts)
        similarities = torch.from_numpy(self.embed_images(images, batch_size) @ self._labels[1].T)
        return (similarities * self.model.logit_scale.float().exp().cpu()).softmax(-1).numpy()

    @torch.inference_mode()
    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]) -> np.ndarray:
        self.require("match")
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
        whole = [self.tokenizer.tidy(text) for text in texts]
        tokens, padding = self.tokenizer.pad(self.tokenizer.encode(whole, self.model.text_room))
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(padding).to(self.device)


def _one_for_each(what: str, texts: str | Sequence[str], images: ImageLike | Sequence[ImageLike]) -> list[str]:
    """Gives one text for each image: the same for all, or those given.

    Raises:
        OptionError: their number isn't that of the images.
    """
    count = 1 if isinstance(images, ImageLike) else len(images)
    given = [texts] * count if isinstance(texts, str) else list(texts)
    if len(given) != count:
        raise OptionError(f"{len(given)} {what} for {count} images; give one, or one for each image")
    return given
