"""What every loaded model has in common: what it can do, and what it says where it can't."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm.checkpoints.resolve import BUILT_IN
from mm.checkpoints.weights import Fingerprint
from mm.data.images import convert_image, decode_image, read_image
from mm.data.labels import TEMPLATE
from mm.errors import CapabilityError, OptionError
from mm.generation import GenerationConfig
from mm.generation.compiled import Steps
from mm.models.precision import Precision, prepare
from mm.models.text import TextTransformer

if TYPE_CHECKING:
    from mm.pipeline.language import Filling, Score, Translation
    from mm.pipeline.writing import CaptionStream

ImageLike = Image.Image | str | Path | bytes | Tensor
CAPTION = GenerationConfig(beams=3, repetition_penalty=1.2)
ANSWER = GenerationConfig(beams=3, max_tokens=10)
TRANSLATION = GenerationConfig(beams=3, max_tokens=60)
ABLE = {
    "ask": "hf:Salesforce/blip-vqa-base",
    "shots": "hf:HuggingFaceM4/idefics-9b",
    "translate": "T5, BART and mBART, and those that configs/text/translate.yaml trains",
    "score": "GPT-2, LLaMA and Falcon",
    "fill": "BERT and RoBERTa",
}
RANKED_WITH = {"match": "match", "similarity": "embed"}  # the capability that a way of ranking captions needs
IN_A_LANGUAGE = {"caption": "caption in", "translate": "translate into", "score": "score texts in"}


class Token(NamedTuple):
    """One token that was written.

    Args:
        text: of the token alone, or its name where it isn't text, as that of the one that ends a caption.
        probability: that the model gave it there.
    """

    text: str
    probability: float


@dataclass(frozen=True)
class Caption:
    """A caption of one image.

    Args:
        text: the caption, the prompt included.
        language: code of its language.
        score: mean log-probability of its tokens: nearer to 0 is surer.
        complete: whether it ended by itself or at a stop string, not at the length limit.
        log_probability: the sum over its tokens.
        tokens: those behind the prompt, with their probabilities; the one that ended the caption is the last.
        strategy: how it was found: the strategy and the options that aren't as they are by default.
        problem: what is wrong with it, if it is degenerate: it repeats itself, has no content words, or was cut.
        retried: what was wrong with the caption in whose place this one was found; None for a first try.
        alternatives: other captions of the image, where several were asked for, the next best first.
    """

    text: str
    language: str
    score: float
    complete: bool
    log_probability: float = 0.0
    tokens: tuple[Token, ...] = ()
    strategy: str = ""
    problem: str | None = None
    retried: str | None = None
    alternatives: tuple[Caption, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Answer:
    """An answer to a question about one image.

    Args:
        text: the answer.
        question: what was asked.
        score: mean log-probability of the answer's tokens: nearer to 0 is surer.
        complete: whether it ended by itself, not at the length limit.
    """

    text: str
    question: str
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

    Attributes:
        precision: what its linear maps compute in.
        steps: compiled ones that it decodes in; None for none.
    """

    model: Any
    capabilities: tuple[str, ...] = ("embed",)
    precision: Precision = "float32"
    steps: Steps | None = None

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

    def prepare(self, precision: Precision, compile: bool = False) -> None:
        """Prepares the model's weights for inference, once and for all: it can't be trained or saved then.

        Args:
            precision: of its linear maps.
            compile: whether its decoder is to decode in compiled steps.

        Raises:
            OptionError: the device doesn't compute in the precision, or there is no decoder.
        """
        if compile and self.decoder is None:
            raise OptionError(f"compile is for models that write, and {self.name} doesn't; leave it out")
        if isinstance(self._fingerprint, Fingerprint) and not self._fingerprint.files:
            str(self._fingerprint)  # computed now: it is that of the weights in memory, which change their layout
        prepare(self.model, precision, pack=not compile)
        self.precision = precision
        self.steps = Steps(self.decoder) if compile and self.decoder is not None else None

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
        """Captions images.

        Args:
            images: decoded images, paths, encoded bytes or what ``ready`` gave; or a single one.
            language: code of the language to caption in.
            prompt: words that captions begin with, for all images or one for each.
            shots: images with their captions, whose example captions follow.
            config: how captions are decoded; None for beam search with 3 beams and a repetition penalty of 1.2.
            retry: decode a degenerate caption again in other ways, and give what comes of it, if that is better; None
                for only where there is no ``config``.
            draft: a smaller model that proposes tokens, for greedy search and sampling (arXiv:2211.17192). It changes
                speed, not what greedy search finds nor how probably each caption is sampled.
            batch_size: images captioned together. It changes speed, not captions.

        Returns:
            One caption for each image.

        Raises:
            CapabilityError: this model doesn't caption, can't take shots, or can't rank as the options say.
            OptionError: the model doesn't know the language, or the options don't fit it.
            ImageError: an image can't be decoded.
        """
        raise self._lacks("caption")

    def stream(
        self,
        image: ImageLike,
        *,
        language: str = "en",
        prompt: str = "",
        config: GenerationConfig = CAPTION,
    ) -> CaptionStream:
        """Captions an image, and gives the text piece by piece, as soon as it is certain.

        With beam search that is what all beams have in common.

        Args:
            image: decoded, a path, encoded bytes or what ``ready`` gave.
            language: code of the language to caption in.
            prompt: words that the caption begins with.
            config: how it is decoded.

        Returns:
            The pieces, to iterate over; its ``caption`` is the whole caption afterwards.

        Raises:
            CapabilityError: this model doesn't caption.
            OptionError: the model doesn't know the language, the options don't fit it, or ask for several captions.
            ImageError: the image can't be decoded.
        """
        raise self._lacks("caption")

    def ready(self, image: ImageLike) -> Tensor:
        """Makes an image ready for the model, which may be done ahead, in another thread.

        Args:
            image: decoded, a path or encoded bytes.

        Returns:
            (3, H, W) uint8 pixels, as large as the model takes them.

        Raises:
            ImageError: the image can't be decoded.
        """
        return image if isinstance(image, Tensor) else self._transform(open_image(image))

    def ask(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        *,
        config: GenerationConfig = ANSWER,
        batch_size: int = 16,
    ) -> list[Answer]:
        """Answers questions about images.

        Args:
            images: decoded images, paths or encoded bytes; or a single one.
            questions: one for all images, or one for each.
            config: how answers are decoded; beam search with 3 beams, and at most 10 tokens, unless told otherwise.
            batch_size: questions answered together. It changes speed, not answers.

        Returns:
            One answer for each image.

        Raises:
            CapabilityError: this model doesn't answer questions.
            OptionError: the options don't fit the model, or the number of questions isn't that of the images.
            ImageError: an image can't be decoded.
        """
        raise self._lacks("ask")

    @torch.inference_mode()
    def embed_images(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 32) -> np.ndarray:
        """Embeds images in the shared space.

        Args:
            images: decoded images, paths or encoded bytes; or a single one.
            batch_size: images embedded together.

        Returns:
            (B, E) float32 vectors of length 1.

        Raises:
            CapabilityError: this model doesn't embed.
            ImageError: an image can't be decoded.
        """
        self.require("embed")
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

        Raises:
            CapabilityError: this model doesn't embed.
        """
        self.require("embed")
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

    def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        labels: Sequence[str],
        *,
        template: str = TEMPLATE,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Says which of some labels fits each image best, as CLIP does without training for it (arXiv:2103.00020).

        Args:
            images: B decoded images, paths or encoded bytes; or a single one.
            labels: M labels, all of them different.
            template: a text with ``{}`` where the label stands.
            batch_size: images embedded together.

        Returns:
            (B, M) float32 probabilities, which sum up to 1 for each image: the softmax of the similarities of image and
            text, multiplied with the model's own scale.

        Raises:
            CapabilityError: this model doesn't embed.
            OptionError: there are fewer than two labels, one is there twice, or the template has no ``{}``.
            ImageError: an image can't be decoded.
        """
        raise self._lacks("embed")

    def translate(
        self,
        texts: str | Sequence[str],
        *,
        to: str | None = None,
        source: str | Sequence[str | None] | None = None,
        config: GenerationConfig = TRANSLATION,
        batch_size: int = 16,
    ) -> list[Translation]:
        """Translates texts, or rewrites them as the model has learnt to.

        Args:
            texts: one or several. A text that is longer than the model reads is cut, its special tokens are not.
            to: code of the language to translate into; None where the model writes in only one.
            source: code of the texts' language, for all or for each, where the model is told (mBART); None for the one
                that its tokenizer names.
            config: how translations are decoded; beam search with 3 beams, and at most 60 tokens, unless told
                otherwise.
            batch_size: texts translated together. It changes speed, not translations.

        Returns:
            One translation for each text.

        Raises:
            CapabilityError: this model doesn't translate.
            OptionError: the model doesn't know a language, or the options don't fit it.
        """
        raise self._lacks("translate")

    def score(self, texts: str | Sequence[str], *, language: str | None = None, batch_size: int = 16) -> list[Score]:
        """Says how likely a language model finds texts.

        Every token of a text counts, given the token that texts begin with and those before it. Neither that first
        token counts nor one that would end the text.

        Args:
            texts: one or several. A text that is longer than the model reads is cut.
            language: code of their language; None where the model knows only one.
            batch_size: texts scored together. It changes speed, not scores.

        Returns:
            One score for each text.

        Raises:
            CapabilityError: this model doesn't score texts.
            OptionError: the model doesn't know the language.
        """
        raise self._lacks("score")

    def fill(self, texts: str | Sequence[str], *, top: int = 5, batch_size: int = 16) -> list[list[list[Filling]]]:
        """Finds the likeliest tokens for the masks in texts.

        Args:
            texts: one or several, each with a mask at least, spelled as the model's tokenizer does: ``[MASK]``.
            top: how many tokens to give for each mask.
            batch_size: texts read together. It changes speed, not results.

        Returns:
            For each text and each of its masks the likeliest tokens, the best first.

        Raises:
            CapabilityError: this model doesn't fill in masks.
            OptionError: a text has no mask, or is longer than the model reads; or ``top`` is out of range.
        """
        raise self._lacks("fill")

    def require(self, capability: str, language: str | None = None) -> None:
        """Makes sure of a capability before any work is done.

        Args:
            capability: ``caption``, ``shots``, ``embed``, ``match``, ``ask``, ``translate``, ``score`` or ``fill``.
            language: a language to caption in, to translate into or to score texts in.

        Raises:
            CapabilityError: the model lacks the capability.
            OptionError: the model can't do it in the language.
        """
        if capability not in self.capabilities:
            raise self._lacks(capability)
        doing = IN_A_LANGUAGE.get(capability)
        if doing is not None and language is not None and language not in self.languages:
            raise OptionError(f"{self.name} doesn't {doing} {language!r}; languages: {', '.join(self.languages)}")

    def _require_ranking(self, config: GenerationConfig) -> None:
        """Makes sure that the model can rank what it writes as the options say."""
        if config.rank_by in RANKED_WITH:
            self.require(RANKED_WITH[config.rank_by])

    def _require_one(self, config: GenerationConfig, doing: str) -> None:
        """Makes sure that only one text is asked for.

        Raises:
            OptionError: several are.
        """
        if config.captions > 1:
            raise OptionError(
                f"captions {config.captions} can't be given by {doing}, which gives one text; leave it out"
            )

    def _lacks(self, capability: str) -> CapabilityError:
        has = ", ".join(self.capabilities)
        able = ABLE.get(capability, f"{', '.join(BUILT_IN)} and those that 'mm fit' trains")
        doing = "take shots" if capability == "shots" else capability
        return CapabilityError(f"{self.name} can't {doing} (it can {has}); models that can: {able}")

    @property
    @abstractmethod
    def decoder(self) -> TextTransformer | None:
        """The model's text decoder; None where it has none."""

    @abstractmethod
    def _image_vectors(self, pixels: Tensor) -> Tensor:
        """Maps transformed images to (B, E) vectors of length 1."""

    @abstractmethod
    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Maps texts to (B, E) vectors of length 1."""

    def _batches(self, images: ImageLike | Sequence[ImageLike], size: int) -> Iterator[Tensor]:
        if size < 1:
            raise OptionError(f"batch_size must be at least 1, not {size}")
        items = [images] if isinstance(images, ImageLike) else images
        for start in range(0, len(items), size):
            pixels = torch.stack([self.ready(image) for image in items[start : start + size]])
            if self.device.type == "cuda":
                pixels = pixels.pin_memory()  # so that it is copied while the host goes on
            yield pixels.to(self.device, non_blocking=True)


def open_image(image: Image.Image | str | Path | bytes) -> Image.Image:
    """Opens what a user may give as an image: decoded, as bytes, or as a path.

    Raises:
        ImageError: it can't be decoded within the limits.
    """
    if isinstance(image, Image.Image):
        return convert_image(image)
    return decode_image(image) if isinstance(image, bytes) else read_image(image)
