"""How a vision-language model writes about images: all at once, again where that went wrong, or piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mm.data.tokenizer import Tokenizer
from mm.errors import OptionError
from mm.generation import Generated, GenerationConfig, generate_all, stream
from mm.generation.compiled import Steps
from mm.generation.degenerate import CUT, degenerate
from mm.generation.forbidding import Stricter, leaks
from mm.generation.sampling import content_seeds
from mm.generation.speculative import Draft
from mm.generation.stopping import StopStrings
from mm.generation.streaming import Pieces
from mm.generation.text import Text
from mm.models import Conditioning, VisionLanguageModel
from mm.pipeline.base import Caption, Token
from mm.pipeline.ranking import rank_by_image

MOST_TRIES = 32


class Shown(NamedTuple):
    """A batch of images as a decoder is to write about them.

    Args:
        pixels: (B, 3, H, W) uint8.
        image_tokens: (B, P, D).
        about: what each text is about.
        prompts: for each image the tokens its text begins with.
        draft: a smaller model that proposes tokens; None for none.
    """

    pixels: Tensor
    image_tokens: Tensor
    about: Conditioning
    prompts: Sequence[Sequence[int]]
    draft: Draft | None = None

    def of(self, rows: Sequence[int]) -> Shown:
        """Gives some of the images, without the draft."""
        chosen = torch.tensor(rows, device=self.pixels.device)
        prompts = [self.prompts[row] for row in rows]
        return Shown(self.pixels[chosen], self.image_tokens[chosen], self.about.of(chosen), prompts)


class Writer:
    """Lets a model's decoder write, and makes captions of what it wrote.

    Args:
        model: with a text decoder.
        tokenizer: its tokenizer.
        language: code of the language that is written.
        lead: tokens of each prompt that aren't part of its text.
        steps: compiled ones to decode in; None for none.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        language: str,
        lead: int = 1,
        steps: Steps | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.language = language
        self.lead = lead
        self.steps = steps

    def captions(self, shown: Shown, config: GenerationConfig, retry: bool) -> list[Caption]:
        """Writes about each image; other captions found are the best one's alternatives.

        Args:
            shown: the images.
            config: how.
            retry: write again, in other ways, where a caption is degenerate; one that is so in all of them stays.
        """
        captions = self._captions(shown, config)
        if retry:
            for other in other_ways(config):
                bad = [number for number, caption in enumerate(captions) if _can_be_better(caption, config)]
                again = self._captions(shown.of(bad), other) if bad else []
                for number, caption in zip(bad, again, strict=True):
                    if caption.problem is None:
                        captions[number] = replace(caption, retried=captions[number].problem)
        return captions

    def _captions(self, shown: Shown, config: GenerationConfig) -> list[Caption]:
        found = self._generate(shown, config, self.tokenizer)
        for number, captions in enumerate(found if config.forbidden else ()):
            found[number] = self._without_leaks(shown, number, captions, config)
        made = iter(self._made([one for some in found for one in some], config))
        captioned = []
        for some in found:
            best, *others = (next(made) for _ in some)
            captioned.append(replace(best, alternatives=tuple(others)))
        return captioned

    def _without_leaks(
        self, shown: Shown, number: int, captions: list[Generated], config: GenerationConfig
    ) -> list[Generated]:
        """Writes about an image again while a forbidden phrase stands there in tokens that are none of its spellings.

        Raises:
            OptionError: there is no end to it.
        """
        further: dict[str, list[list[int]]] = {}
        for _ in range(MOST_TRIES):
            rows = [one.tokens[one.begun :] for one in captions]
            found = leaks(Stricter(self.tokenizer, further), config.forbidden, rows)
            if not found:
                return captions
            further = {phrase: [*further.get(phrase, ()), *found.get(phrase, ())] for phrase in config.forbidden}
            (captions,) = self._generate(shown.of([number]), config, Stricter(self.tokenizer, further))
        raise OptionError(f"forbidden {min(found)!r} can't be kept out: the model writes it in ever other tokens")

    def _generate(self, shown: Shown, config: GenerationConfig, text: Text) -> list[list[Generated]]:
        return generate_all(
            self.model.decoder,
            shown.about,
            shown.prompts,
            config,
            end=self.tokenizer.end,
            fill=self.tokenizer.padding,
            never=self.model.special.image_marks,
            text=text,
            seeds=self._seeds(shown, config),
            rank=rank_by_image(self.model, self.tokenizer, config, shown.image_tokens, self.lead),
            draft=shown.draft,
            steps=self.steps,
        )

    def stream(self, shown: Shown, config: GenerationConfig) -> CaptionStream:
        """Writes about a single image, and gives the text piece by piece."""
        prompt = shown.prompts[0]
        tokens = stream(
            self.model.decoder,
            shown.about,
            prompt,
            config,
            end=self.tokenizer.end,
            fill=self.tokenizer.padding,
            never=self.model.special.image_marks,
            text=self.tokenizer,
            seeds=self._seeds(shown, config),
            steps=self.steps,
        )
        return CaptionStream(self._pieces(tokens, prompt[self.lead :], config))

    def _pieces(
        self, tokens: Iterator[int | Generated], prompt: Sequence[int], config: GenerationConfig
    ) -> Iterator[str | Caption]:
        """Turns a prompt and the tokens behind it into pieces of text, and the caption at last."""
        stops = StopStrings(config.stop, self.tokenizer)
        pieces = Pieces(self.tokenizer, stops, self.tokenizer.decode([prompt])[0])
        yield "".join([pieces.push(token) for token in prompt])
        for token in tokens:
            if isinstance(token, Generated):
                yield pieces.finish()
                yield self._made([token], config)[0]
            else:
                yield pieces.push(token)

    def _seeds(self, shown: Shown, config: GenerationConfig) -> list[int] | None:
        return content_seeds(config, (image.cpu().numpy().tobytes() for image in shown.pixels))

    def _made(self, found: Sequence[Generated], config: GenerationConfig) -> list[Caption]:
        """Makes captions of what was generated."""
        stops = StopStrings(config.stop, self.tokenizer)
        rows = [one.tokens[self.lead - 1 :] for one in found]
        prompts = [one.tokens[self.lead - 1 : one.begun] for one in found]
        captions = []
        for one, (text, stopped) in zip(found, stops.decode(rows, prompts), strict=True):
            complete = one.ended or stopped
            new = one.tokens[one.begun :]
            captions.append(
                Caption(
                    text=text,
                    language=self.language,
                    score=one.score / max(1, one.generated),
                    complete=complete,
                    log_probability=one.score,
                    tokens=self._tokens([*new, *([self.tokenizer.end] * one.ended)], one.log_probabilities),
                    strategy=str(config),
                    problem=degenerate(text, new, complete, self.language),
                )
            )
        return captions

    def _tokens(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> tuple[Token, ...]:
        texts = self.tokenizer.names(tokens)
        return tuple(Token(text, math.exp(log)) for text, log in zip(texts, log_probabilities, strict=True))


class CaptionStream(Iterator[str]):
    """A caption's text in pieces, as it is written.

    Attributes:
        caption: the whole of it, once the last piece was given; None before.
    """

    caption: Caption | None = None

    def __init__(self, pieces: Iterator[str | Caption]) -> None:
        self._pieces = pieces

    def __next__(self) -> str:
        for piece in self._pieces:
            if isinstance(piece, Caption):
                self.caption = piece
            elif piece:
                return piece
        raise StopIteration


def other_ways(config: GenerationConfig) -> list[GenerationConfig]:
    """Gives other ways to write, for where one ends in a loop: what must or mustn't be said stays as it is.

    First a wider beam search in which nothing is said twice; then, as that is likeliest to be stuck again where the
    model is, the likeliest of several draws.
    """
    kept = {name: getattr(config, name) for name in ("captions", "min_tokens", "max_tokens", "forbidden", "stop")}
    penalty, ngram = max(1.2, config.repetition_penalty), min(config.no_repeat_ngram or 2, 2)
    beams = max(5, config.beams, config.captions)
    beam = GenerationConfig(
        **kept, beams=beams, repetition_penalty=penalty, no_repeat_ngram=ngram, required=config.required
    )
    if config.required:
        return [beam]
    draws = GenerationConfig(
        **kept,
        strategy="sample",
        temperature=0.7,
        top_p=0.9,
        best_of=max(8, config.captions),
        repetition_penalty=config.repetition_penalty,
        no_repeat_ngram=ngram,
        seed=config.seed,
    )
    return [beam, draws]


def _can_be_better(caption: Caption, config: GenerationConfig) -> bool:
    """Says whether a caption is degenerate, and not only cut because no caption may end before the limit."""
    forced = config.min_tokens == config.max_tokens
    return caption.problem is not None and not (caption.problem == CUT and forced)
