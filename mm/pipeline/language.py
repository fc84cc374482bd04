"""Language models in use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from mm.checkpoints.directory import Loaded
from mm.errors import CapabilityError, OptionError
from mm.generation import Generated, GenerationConfig, generate
from mm.generation.sampling import content_seeds
from mm.generation.stopping import StopStrings
from mm.models import TextTransformer
from mm.pipeline.base import TRANSLATION, Pipeline


@dataclass(frozen=True)
class Translation:
    """A translation of one text.

    Args:
        text: the translation.
        language: code of its language.
        score: mean log-probability of its tokens: nearer to 0 is surer.
        complete: whether it ended by itself or at a stop string, not at the length limit.
        whole: whether all of the text was read, or only as much as the model can read.
    """

    text: str
    language: str
    score: float
    complete: bool
    whole: bool

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Score:
    """How likely a language model finds a text.

    Args:
        log_probability: natural logarithm of the text's probability, the sum over its tokens.
        tokens: how many tokens were counted.
        whole: whether those are all of the text, or only as much as the model can read.
    """

    log_probability: float
    tokens: int
    whole: bool

    @property
    def perplexity(self) -> float:
        """How many tokens the model hesitates between on average; 1 for a text without tokens."""
        return perplexity(self.log_probability, self.tokens)


@dataclass(frozen=True)
class Filling:
    """A token that may stand where a text has a mask.

    Args:
        token: as text.
        probability: that the model gives it.
    """

    token: str
    probability: float


def perplexity(log_probability: float, tokens: int) -> float:
    """Gives the perplexity of texts with so many tokens in all, whose log-probabilities have this sum."""
    mean = -log_probability / max(1, tokens)
    return math.exp(mean) if mean < 700 else math.inf


class LanguagePipeline(Pipeline):
    """A language model of mm, with its tokenizer.

    Args:
        name: what it was loaded as.
        loaded: model, tokenizer and architecture.
        device: where it runs.
    """

    def __init__(self, name: str, loaded: Loaded, device: torch.device) -> None:
        super().__init__(name, loaded.fingerprint, _blind, "none", 0, list(loaded.tokenizer.languages), device)
        self.capabilities = loaded.model.capabilities
        self.family = loaded.family
        self.model = loaded.model.to(device)
        self.tokenizer = loaded.tokenizer
        self.architecture = loaded.architecture

    @property
    def decoder(self) -> TextTransformer | None:
        return self.model.decoder

    @torch.inference_mode()
    def translate(
        self,
        texts: str | Sequence[str],
        *,
        to: str | None = None,
        source: str | Sequence[str | None] | None = None,
        config: GenerationConfig = TRANSLATION,
        batch_size: int = 16,
    ) -> list[Translation]:
        language = self._language("translate", to)
        self._require_ranking(config)
        self._require_one(config, "translate")
        given = [texts] if isinstance(texts, str) else texts
        rows, whole = self._sources(given, source)
        lead = self.tokenizer.begin(language)
        seeds = content_seeds(config, (text.encode("utf-8", "replace") for text in given))
        found: list[Generated] = []
        for tokens, padding in self._batches_of(rows, batch_size):
            found += generate(
                self.model.decoder,
                self.model.about(tokens, padding),
                [lead] * len(tokens),
                config,
                end=self.tokenizer.end,
                fill=self.tokenizer.padding,
                text=self.tokenizer,
                seeds=None if seeds is None else seeds[len(found) : len(found) + len(tokens)],
                steps=self.steps,
            )
        stops = StopStrings(config.stop, self.tokenizer)
        written = stops.decode([one.tokens[len(lead) - 1 :] for one in found])
        return [
            Translation(text, language, one.score / max(1, one.generated), one.ended or stopped, all_read)
            for (text, stopped), one, all_read in zip(written, found, whole, strict=True)
        ]

    def _sources(
        self, texts: Sequence[str], source: str | Sequence[str | None] | None
    ) -> tuple[list[list[int]], list[bool]]:
        """Turns texts into what the encoder reads; says of each whether that is all of it."""
        languages = [source] * len(texts) if source is None or isinstance(source, str) else list(source)
        if len(languages) != len(texts):
            raise OptionError(f"{len(languages)} source languages for {len(texts)} texts; give one, or one for each")
        if unknown := {code for code in languages if code is not None and code not in self.languages}:
            raise OptionError(
                f"{self.name} doesn't know the language {min(unknown)!r}; languages: {', '.join(self.languages)}"
            )
        words = self.tokenizer.encode(self._clean(texts))
        limit = self.model.encoder.max_tokens
        rows = [
            row
            for ids, language in zip(words, languages, strict=True)
            for row in self.tokenizer.enclose([ids], limit, language)
        ]
        around = sum(map(len, self.tokenizer.frame()))
        return rows, [len(row) == len(ids) + around for row, ids in zip(rows, words, strict=True)]

    @torch.inference_mode()
    def score(self, texts: str | Sequence[str], *, language: str | None = None, batch_size: int = 16) -> list[Score]:
        lead = self.tokenizer.begin(self._language("score", language))
        words = self.tokenizer.encode(self._clean([texts] if isinstance(texts, str) else texts))
        room = self.model.decoder.max_tokens - len(lead) + 1  # the last token of a text is only predicted
        rows = [ids[:room] for ids in words]
        sums: list[float] = []
        for tokens, _ in self._batches_of([[*lead, *row[:-1]] for row in rows], batch_size):
            hidden = self.model.decoder(tokens)  # padding stands behind the text, where none looks at it
            for states, row in zip(hidden, islice(rows, len(sums), None), strict=False):
                sums.append(self._log_probability(states[len(lead) - 1 :], row))
        return [Score(total, len(row), len(row) == len(ids)) for total, row, ids in zip(sums, rows, words, strict=True)]

    def _log_probability(self, hidden: Tensor, row: Sequence[int]) -> float:
        """Gives that of a text's tokens, of (T, D) hidden states that stand in front of each."""
        logits = self.model.decoder.logits(hidden[: len(row)]).float()
        targets = torch.tensor(row, dtype=torch.long, device=self.device)
        return float(logits.log_softmax(-1).gather(1, targets[:, None]).double().sum())

    @torch.inference_mode()
    def fill(self, texts: str | Sequence[str], *, top: int = 5, batch_size: int = 16) -> list[list[list[Filling]]]:
        self.require("fill")
        vocabulary = len(self.model.encoder.embedding.weight)
        if not 1 <= top <= vocabulary:
            raise OptionError(f"top must be between 1 and the {vocabulary} tokens of this model, not {top}")
        rows = self._masked([texts] if isinstance(texts, str) else texts)
        filled: list[list[list[Filling]]] = []
        for tokens, padding in self._batches_of(rows, batch_size):
            hidden = self.model.encoder(tokens, padding=padding)
            for states, masks in zip(hidden, (tokens == self.tokenizer.mask) & padding, strict=True):
                best = self.model.encoder.logits(states[masks]).float().softmax(-1).topk(top)
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                filled.append(
                    [[Filling(self.tokenizer.name(i), p) for i, p in zip(*pair, strict=True)] for pair in pairs]
                )
        return filled

    def _masked(self, texts: Sequence[str]) -> list[list[int]]:
        """Turns texts with masks into what the encoder reads."""
        limit, mask = self.model.encoder.max_tokens, self.tokenizer.mask
        words = self.tokenizer.encode_masked(self._clean(texts))
        rows = self.tokenizer.enclose(words, limit)
        assert mask is not None  # or nothing could be encoded with it
        for number, (ids, row) in enumerate(zip(words, rows, strict=True), 1):
            if mask not in ids:
                raise OptionError(f"text {number} of {len(texts)} has no {self.tokenizer.name(mask)} to fill in")
            if row.count(mask) < ids.count(mask):
                raise OptionError(f"text {number} of {len(texts)} has a mask behind the {limit} tokens that are read")
        return rows

    def _language(self, capability: str, code: str | None) -> str:
        """Gives the language to do something in: the one asked for, or the only one there is."""
        self.require(capability, code)
        if code is not None:
            return code
        if len(self.languages) != 1:
            raise OptionError(f"{self.name} knows several languages; choose one of {', '.join(self.languages)}")
        return self.languages[0]

    def _clean(self, texts: Sequence[str]) -> list[str]:
        """Gives texts as the model has learnt them."""
        return [self.tokenizer.tidy(text) for text in texts]

    def _batches_of(self, rows: Sequence[Sequence[int]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives (B, T) tokens, padded on the right, and (B, T) bool, true at real ones."""
        for start in range(0, len(rows), size):
            tokens, padding = self.tokenizer.pad(rows[start : start + size])
            yield torch.from_numpy(tokens).to(self.device), torch.from_numpy(padding).to(self.device)

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        raise self._lacks("embed")

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        raise self._lacks("embed")


def _blind(image: Image.Image) -> Tensor:
    raise CapabilityError("a language model sees no images")
