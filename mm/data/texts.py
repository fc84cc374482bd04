"""Captions as texts to learn language from: with words masked, one word after the other, or from another language."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mm.data.dataset import Batch, PlacedSet
from mm.data.order import Place
from mm.data.samples import Need, Sample
from mm.data.shard_data import ShardData, Watch, require, unwatched
from mm.data.shards.reading import IndexedShards
from mm.data.tokenizer import Tokenizer
from mm.errors import OptionError

Learns = Literal["fill", "continue", "translate"]
NOTHING = -100
"""The target at positions where nothing is to be predicted; a cross-entropy ignores it."""
LOOKED_AT, KEPT = 100, 0.5


class Example(NamedTuple):
    """A text and what is to be predicted of it.

    Args:
        text: the caption that was read.
        tokens: ids that encoder or decoder sees.
        targets: for each of them the id to predict, or ``NOTHING``.
        source: ids that the encoder sees, where a decoder writes another text; empty where there is no such encoder.
        references: texts that the decoder may write.
    """

    text: str
    tokens: list[int]
    targets: list[int]
    source: Sequence[int] = ()
    references: Sequence[str] = ()


class Objective(ABC):
    """What is learned from the captions of a sample.

    Args:
        tokenizer: turns captions into tokens.
        languages: of the captions that are read.
        captions: how many captions of each language a sample gives; fewer where it has fewer.
        max_tokens: where texts are cut, their special tokens counted.
    """

    def __init__(self, tokenizer: Tokenizer, languages: Sequence[str], captions: int, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.languages = tuple(languages)
        self.captions = captions
        self.max_tokens = max_tokens

    @abstractmethod
    def examples(self, sample: Sample, random: np.random.Generator) -> list[Example]:
        """Makes examples of a sample's captions; all choices come from ``random``."""

    def texts(self, sample: Sample) -> list[str]:
        """Gives all texts of a sample that examples may be made of."""
        return [text for language in self.languages for text in self._known(sample, language)]

    @property
    def need(self) -> Need:
        """What a sample must have for an example."""
        return Need((self.languages,))

    def _known(self, sample: Sample, language: str) -> list[str]:
        return [self.tokenizer.tidy(text) for text in sample.captions.get(language, [])]

    def _drawn(self, sample: Sample, language: str, random: np.random.Generator) -> list[str]:
        known = self._known(sample, language)
        return [known[number] for number in random.permutation(len(known))[: self.captions]]

    def _written(self, texts: Sequence[str], language: str) -> list[tuple[list[int], list[int]]]:
        """Gives for each text what a decoder sees that writes it, and what it is to predict there."""
        begin = self.tokenizer.begin(language)
        room = self.max_tokens - len(begin)
        unasked = [NOTHING] * (len(begin) - 1)
        rows = []
        for ids in self.tokenizer.encode(texts, room + 1):
            last = NOTHING if len(ids) > room else self.tokenizer.end  # what follows a cut isn't known
            rows.append(([*begin, *ids[:room]], [*unasked, *ids[:room], last]))
        return rows


class Masked(Objective):
    """Masked language modelling as in BERT (Devlin et al., arXiv:1810.04805): hidden tokens are to be filled in.

    Of the hidden tokens, 80 % become the mask, 10 % another token, and 10 % stay as they are.

    Args:
        tokenizer: one that has a mask.
        languages: of the captions that are read.
        captions: how many captions of each language a sample gives.
        max_tokens: where texts are cut, their special tokens counted.
        share: of the tokens of a text that are hidden; at least one token is.
    """

    def __init__(
        self, tokenizer: Tokenizer, languages: Sequence[str], captions: int, max_tokens: int, share: float
    ) -> None:
        super().__init__(tokenizer, languages, captions, max_tokens)
        self.share = share

    def examples(self, sample: Sample, random: np.random.Generator) -> list[Example]:
        """Draws captions, and hides tokens of each."""
        texts = [text for language in self.languages for text in self._drawn(sample, language, random)]
        whole = self.tokenizer.enclose(self.tokenizer.encode(texts), self.max_tokens)
        return [Example(text, *self._hide(ids, random)) for text, ids in zip(texts, whole, strict=True)]

    def _hide(self, ids: list[int], random: np.random.Generator) -> tuple[list[int], list[int]]:
        front, behind = self.tokenizer.frame()
        count = len(ids) - len(front) - len(behind)
        places = len(front) + random.permutation(count)[: max(1, round(self.share * count))]
        tokens, targets = list(ids), [NOTHING] * len(ids)
        assert self.tokenizer.mask is not None
        for place, fate, other in zip(
            places.tolist(),
            random.random(len(places)),
            random.integers(len(self.tokenizer), size=len(places)).tolist(),
            strict=True,
        ):
            targets[place] = ids[place]
            if fate < 0.9:
                tokens[place] = self.tokenizer.mask if fate < 0.8 else other
        return tokens, targets


class Continued(Objective):
    """Causal language modelling: each token is to be predicted from those before it."""

    def examples(self, sample: Sample, random: np.random.Generator) -> list[Example]:
        """Draws captions."""
        result = []
        for language in self.languages:
            texts = self._drawn(sample, language, random)
            rows = zip(texts, self._written(texts, language), strict=True)
            result += [Example(text, tokens, targets) for text, (tokens, targets) in rows]
        return result


class Translated(Objective):
    """Translation: a caption in one language is to be written from one of the same photo in another.

    Args:
        tokenizer: turns captions into tokens.
        languages: of the captions that are read.
        captions: how many pairs a sample gives for each of these languages.
        max_tokens: where texts are cut, their special tokens counted.
        target: language of the captions that are written.
        parallel: whether the captions of a photo translate each other, the first the first and so on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        languages: Sequence[str],
        captions: int,
        max_tokens: int,
        target: str,
        parallel: bool,
    ) -> None:
        super().__init__(tokenizer, languages, captions, max_tokens)
        self.target = target
        self.parallel = parallel

    @property
    def need(self) -> Need:
        """What a sample must have: captions to read and to write."""
        return Need((self.languages, (self.target,)))

    def texts(self, sample: Sample) -> list[str]:
        """Gives all texts of a sample that examples may be made of."""
        return super().texts(sample) + self._known(sample, self.target)

    def examples(self, sample: Sample, random: np.random.Generator) -> list[Example]:
        """Draws pairs of captions; the references are all that the first of a pair may become."""
        result = []
        for language in self.languages:
            pairs = self._pairs(sample, language, random)
            read = self.tokenizer.encode([text for text, _ in pairs])
            known = language if language in self.tokenizer.languages else None
            sources = self.tokenizer.enclose(read, self.max_tokens, known)
            written = self._written([text for _, text in pairs], self.target)
            for (text, other), source, (tokens, targets) in zip(pairs, sources, written, strict=True):
                references = [other] if self.parallel else self._known(sample, self.target)
                result.append(Example(text, tokens, targets, source, references))
        return result

    def _pairs(self, sample: Sample, language: str, random: np.random.Generator) -> list[tuple[str, str]]:
        if self.parallel:
            pairs = list(zip(self._known(sample, language), self._known(sample, self.target), strict=False))
            return [pairs[number] for number in random.permutation(len(pairs))[: self.captions]]
        others = self._known(sample, self.target)
        order = random.permutation(len(others))
        drawn = self._drawn(sample, language, random)
        return [(text, others[order[number % len(order)]]) for number, text in enumerate(drawn)]


class TextSet(PlacedSet):
    """Examples made of the captions of samples, all chosen by (seed, epoch, sample).

    Args:
        shards: where samples are read from.
        usable: (n,) sorted indices into ``shards`` of the samples to use.
        objective: makes examples of a sample.
        seed: what the choices depend on.
        never_empty: whether a batch of which nothing can be read takes another sample.
    """

    def __init__(
        self, shards: IndexedShards, usable: np.ndarray, objective: Objective, seed: int, never_empty: bool = True
    ) -> None:
        super().__init__(shards, usable, objective.need, seed, never_empty)
        self.objective = objective

    def __getitem__(self, place: Place) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, place.epoch, place.index])
        return {"examples": self.objective.examples(self.read(place.index), random)}

    def stack(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Stacks the examples of samples.

        Returns:
            For the M examples of all samples ``tokens``, ``padding`` and ``targets`` (M, T), ``texts`` and
            ``references`` as lists, and where they are translated ``source`` and ``source_padding`` (M, S).
        """
        examples: list[Example] = [example for item in items for example in item["examples"]]
        pad = self.objective.tokenizer.pad
        tokens, padding = pad([example.tokens for example in examples])
        targets = np.where(padding, pad([example.targets for example in examples])[0], NOTHING)
        batch: Batch = {
            "tokens": torch.from_numpy(tokens),
            "padding": torch.from_numpy(padding),
            "targets": torch.from_numpy(targets),
            "texts": [example.text for example in examples],
            "references": [example.references for example in examples],
        }
        if isinstance(self.objective, Translated):
            source = pad([example.source for example in examples])
            batch["source"], batch["source_padding"] = (torch.from_numpy(array) for array in source)
        return batch


class TextData(ShardData):
    """Captions from WebDataset shards as texts. Images are never decoded.

    Args:
        train: what to train on, as ``ShardData`` has it.
        val: what to validate on.
        test: what to test on.
        captions: how many captions of each language that is read a sample gives in an epoch, drawn anew in each.
        parallel: whether the captions of a sample translate each other, the first the first and so on; otherwise every
            caption is paired with any other one.
        masked: share of the tokens of a caption that an encoder is to fill in.
        max_tokens: where captions are cut, special tokens counted.
        workers: processes that load data.
        options: as ``ShardData`` has them.
    """

    unit = "captions"
    reads_images = False

    def __init__(
        self,
        train: str | list[str] | dict[str, float] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        captions: int = 1,
        parallel: bool = False,
        masked: float = 0.15,
        max_tokens: int = 40,
        workers: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, max_tokens=max_tokens, workers=workers, **options)
        require(1, captions=captions)
        require(8, max_tokens=max_tokens)  # special tokens may take up half of them
        if not 0 < masked <= 1:
            raise OptionError(f"data.masked must be above 0 and at most 1, not {masked}")
        self.captions = captions
        self.parallel = parallel
        self.masked = masked

    def attach(
        self,
        tokenizer: Tokenizer,
        learns: Learns,
        languages: Sequence[str],
        target: str | None = None,
        progress: Watch = unwatched,
    ) -> None:
        """Takes what depends on the model, and on who is watching.

        Args:
            tokenizer: the model's.
            learns: to ``fill`` in masked tokens, to ``continue`` texts, or to ``translate`` them.
            languages: of the captions that are read.
            target: language of the captions that are written, where they are translated.
            progress: shows how far a long check is, as ``mm.progress.progress`` does.
        """
        shared = (tokenizer, languages, self.captions, self.max_tokens)
        if learns == "fill":
            self.objective: Objective = Masked(*shared, self.masked)
        elif learns == "continue":
            self.objective = Continued(*shared)
        else:
            assert target is not None
            self.objective = Translated(*shared, target, self.parallel)
        self._progress = progress

    def _need(self, split: str) -> Need:
        return self.objective.need

    def _training_set(self, shards: IndexedShards, usable: np.ndarray) -> TextSet:
        self._check_words(shards, usable)
        return TextSet(shards, usable, self.objective, self.seed)

    def _evaluation_set(self, shards: IndexedShards, usable: np.ndarray, split: str) -> TextSet:
        return TextSet(shards, usable, self.objective, self.seed, never_empty=False)

    def _check_words(self, shards: IndexedShards, usable: np.ndarray) -> None:
        """Refuses captions of which the tokenizer loses most: the model would learn to write unknown tokens.

        Raises:
            OptionError: less than half of the characters of the first samples come back.
        """
        texts = [text for index in usable[:LOOKED_AT].tolist() for text in self.objective.texts(shards[index])]
        tokenizer = self.objective.tokenizer
        back = tokenizer.decode(tokenizer.encode(texts))
        before, after = (sum(len("".join(text.split())) for text in some) for some in (texts, back))
        if after < KEPT * before:
            raise OptionError(
                f"the model's tokenizer doesn't know the words of data.train: {after / before:.0%} of the characters "
                "come back; start from a model that knows the language"
            )
