"""Vision-language models in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mm.checkpoints.directory import Loaded
from mm.data.labels import TEMPLATE, label_prompts
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import OptionError
from mm.generation import GenerationConfig
from mm.generation.speculative import Draft
from mm.models import Conditioning, TextTransformer
from mm.pipeline.base import ANSWER, CAPTION, Answer, Caption, ImageLike, Pipeline
from mm.pipeline.ranking import encode_texts, match_texts
from mm.pipeline.writing import CaptionStream, Shown, Writer

CACHED_NUMBERS = 1 << 19  # in the image tokens that are computed at a time: more fall out of a processor's caches


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

    @property
    def decoder(self) -> TextTransformer | None:
        return self.model.text_decoder

    @torch.inference_mode()
    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        language: str = "en",
        prompt: str | Sequence[str] = "",
        shots: Sequence[tuple[ImageLike, str]] = (),
        config: GenerationConfig | None = None,
        retry: bool | None = None,
        draft: Pipeline | None = None,
        batch_size: int = 16,
    ) -> list[Caption]:
        self.require("caption", language)
        retry = config is None if retry is None else retry
        config = CAPTION if config is None else config
        self._require_ranking(config)
        guesser = None if draft is None else self._guesser(draft, language)
        if shots:
            self.require("shots")
            if draft is not None:
                raise OptionError("shots and draft can't be combined: a draft doesn't see the examples; leave one out")
        if blank := [number for number, (_, caption) in enumerate(shots, 1) if not caption.strip()]:
            raise OptionError(f"shot {blank[0]} of {len(shots)} has no caption")
        texts = _one_for_each("prompts", prompt, images)
        lead = self._lead(language, [caption for _, caption in shots])
        prompts = [[*lead, *ids] for ids in self.tokenizer.encode_captions(texts)]
        shown = [self._seen(pixels) for pixels in self._batches([image for image, _ in shots], batch_size)]
        writer = Writer(self.model, self.tokenizer, language, len(lead), self.steps)
        captions: list[Caption] = []
        for pixels in self._batches(images, batch_size):
            seen = self.image_tokens(pixels)
            about = self._about_shots(torch.cat(shown), seen, lead) if shown else self.model.about(seen)
            begun = prompts[len(captions) : len(captions) + len(pixels)]
            guess = None if guesser is None else guesser(pixels)
            captions += writer.captions(Shown(pixels, seen, about, begun, guess), config, retry)
        return captions

    @torch.inference_mode()
    def stream(
        self,
        image: ImageLike,
        *,
        language: str = "en",
        prompt: str = "",
        config: GenerationConfig = CAPTION,
    ) -> CaptionStream:
        self.require("caption", language)
        self._require_ranking(config)
        lead = self._lead(language, [])
        pixels = next(self._batches(image, 1))
        seen = self.image_tokens(pixels)
        begun = [*lead, *self.tokenizer.encode_captions([prompt])[0]]
        writer = Writer(self.model, self.tokenizer, language, len(lead), self.steps)
        return writer.stream(Shown(pixels, seen, self.model.about(seen), [begun]), config)

    def _guesser(self, draft: Pipeline, language: str) -> Callable[[Tensor], Draft]:
        """Gives what makes, of transformed images, a draft of another model that proposes tokens for this one.

        Raises:
            OptionError: it writes other tokens, or sees images otherwise.
        """
        draft.require("caption", language)
        if (
            not isinstance(draft, VisionLanguagePipeline)
            or draft.tokenizer.to_json() != self.tokenizer.to_json()
            or draft.tokenizer.special != self.tokenizer.special
        ):
            raise OptionError(f"draft {draft.name} has another tokenizer than {self.name}; they must be the same")
        if draft.preprocessing != self.preprocessing:
            raise OptionError(
                f"draft {draft.name} sees images as {draft.preprocessing}, {self.name} as {self.preprocessing}; "
                "they must be the same"
            )
        other = draft
        return lambda pixels: Draft(other.model.decoder, other.model.about(other.image_tokens(pixels)))

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
        return self.model.seen_tokens(self.image_tokens(pixels))

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Maps transformed images to (B, P, D) image tokens, on a CPU as many at a time as stay within its caches.

        In reduced precision that is one: the last bits of what a network gives depend on how many images it sees, and
        rounding to few bits may make much of them.
        """
        if self.device.type != "cpu":
            return self.model.image_tokens(to_pixels(pixels).to(next(self.model.vision.parameters()).dtype))
        first = self.model.image_tokens(to_pixels(pixels[:1]))
        size = max(1, CACHED_NUMBERS // first.numel()) if self.precision == "float32" else 1
        others = [self.model.image_tokens(to_pixels(part)) for part in pixels[1:].split(size) if len(part)]
        return torch.cat([first, *others])

    def _about_shots(self, shown: Tensor, image_tokens: Tensor, lead: Sequence[int]) -> Conditioning:
        """Prepares for each image the (S, P, D) ``shown`` of examples and the image itself."""
        seen = self.model.seen_tokens(image_tokens)
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
        self._require_ranking(config)
        self._require_one(config, "ask")
        texts = _one_for_each("questions", questions, images)
        first = self.tokenizer.languages[self.languages[0]]
        writer = Writer(self.model, self.tokenizer, self.languages[0], steps=self.steps)
        answers: list[Answer] = []
        for pixels in self._batches(images, batch_size):
            asked = texts[len(answers) : len(answers) + len(pixels)]
            seen = self.image_tokens(pixels)
            about = self.model.about_question(seen, *encode_texts(self.model, self.tokenizer, asked))
            written = writer.captions(Shown(pixels, seen, about, [[first]] * len(asked)), config, retry=False)
            answers += [
                Answer(one.text, question, one.score, one.complete)
                for question, one in zip(asked, written, strict=True)
            ]
        return answers

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model.image_embedding(self.image_tokens(pixels))

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        return self.model.text_embedding(*encode_texts(self.model, self.tokenizer, texts))

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
        tokens, padding = encode_texts(self.model, self.tokenizer, texts)
        rows = []
        for pixels in self._batches(images, 16):
            for image in self.image_tokens(pixels):
                rows.append(match_texts(self.model, image, tokens, padding).cpu())
        return torch.stack([*rows]).numpy() if rows else np.empty((0, len(texts)), np.float32)


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
