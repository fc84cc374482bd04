"""Samples of shards, ready for a model: pixels, tokens, and which caption belongs to which image."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mm.data.features import FeatureStore
from mm.data.images import decode_image
from mm.data.order import Place
from mm.data.samples import Need, Rejection, Sample
from mm.data.shards.layout import MISSING_CAPTION
from mm.data.shards.reading import IndexedShards
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import ImageTransform
from mm.errors import DataError

Batch = dict[str, Any]


class PlacedSet(Dataset[dict[str, Any]]):
    """Samples that are chosen by their places in the order, a batch at a time.

    Args:
        shards: where samples are read from.
        usable: (n,) sorted indices into ``shards`` of the samples to use.
        need: what a sample must have.
        seed: what all choices depend on, with epoch and sample.
        never_empty: whether a batch of which nothing can be read takes another sample, since all ranks need one.
    """

    def __init__(
        self, shards: IndexedShards, usable: np.ndarray, need: Need, seed: int = 0, never_empty: bool = True
    ) -> None:
        self.shards = shards
        self.usable = usable
        self.need = need
        self.seed = seed
        self.never_empty = never_empty

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """Makes a sample ready for a batch.

        Raises:
            DataError: it can't be read.
        """
        raise NotImplementedError

    def stack(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Makes a batch of samples that are ready."""
        raise NotImplementedError

    def read(self, index: int) -> Sample:
        """Reads one sample of the shards.

        Raises:
            DataError: it can't be read, or lacks what it must have.
        """
        sample = self.shards[index]
        if lack := self.need.lack(sample.captions):
            raise DataError(f"{self.shards.name(index)}: {lack}", MISSING_CAPTION)
        return sample

    def __getitems__(self, places: Sequence[Place]) -> list[dict[str, Any] | Rejection]:
        """Makes the samples of a batch ready, read in the order of their shards; what can't be read is rejected."""
        made: list[dict[str, Any] | Rejection] = [{}] * len(places)
        for at in sorted(range(len(places)), key=lambda at: places[at].index):
            made[at] = self._attempt(places[at])
        if self.never_empty and all(isinstance(item, Rejection) for item in made):
            made.append(self._stand_in(places[0]))
        return made

    def collate(self, items: Sequence[dict[str, Any] | Rejection]) -> Batch:
        """Makes a batch of those samples that weren't rejected, as ``stack`` does.

        Returns:
            Further ``index`` (B,), ``keys`` that name the samples, and ``rejected`` with the others' rejections, which
            is all there is where every sample was rejected.
        """
        ready = [item for item in items if not isinstance(item, Rejection)]
        batch: Batch = {"rejected": [item for item in items if isinstance(item, Rejection)]}
        if ready:
            batch["index"] = torch.tensor([item["index"] for item in ready])
            batch["keys"] = [self.shards.name(item["index"]) for item in ready]
            batch |= self.stack(ready)
        return batch

    def _attempt(self, place: Place) -> dict[str, Any] | Rejection:
        try:
            return {"index": place.index} | self[place]
        except DataError as error:
            return Rejection.of(error, self.shards.name(place.index), self.shards.key(place.index))

    def _stand_in(self, place: Place) -> dict[str, Any]:
        """Gives the next sample that can be read, for a batch that all ranks need but that would be empty here."""
        at = int(np.searchsorted(self.usable, place.index))
        others = (Place(place.epoch, int(self.usable[(at + step) % len(self)])) for step in range(1, len(self)))
        found = next((item for item in map(self._attempt, others) if not isinstance(item, Rejection)), None)
        if found is None:
            raise DataError("data.train: none of its samples can be read any more", "no samples")
        return found


class TrainingSet(PlacedSet):
    """Training samples: one view of an image and a few of its captions, all chosen by (seed, epoch, sample).

    Args:
        shards: where samples are read from.
        usable: (n,) sorted indices into ``shards`` of the samples that have captions.
        need: what a sample must have.
        transform: makes an image's views.
        tokenizer: turns captions into tokens.
        captions: how many captions of each language a sample gives; fewer where an image has fewer.
        views: how many different views an image has; 0 for a new one in every epoch.
        max_tokens: where captions are cut.
        seed: what the choices depend on.
        features: features kept from earlier, read instead of pixels.
    """

    def __init__(
        self,
        shards: IndexedShards,
        usable: np.ndarray,
        need: Need,
        transform: ImageTransform,
        tokenizer: Tokenizer,
        *,
        captions: Mapping[str, int],
        views: int,
        max_tokens: int,
        seed: int,
        features: FeatureStore | None = None,
    ) -> None:
        super().__init__(shards, usable, need, seed)
        self.transform = transform
        self.tokenizer = tokenizer
        self.captions = dict(captions)
        self.views = views
        self.max_tokens = max_tokens
        self.features = features

    def pixels(self, row: int, view: int) -> Tensor:
        """Makes one view of one of the usable samples: (3, H, W) uint8.

        Raises:
            DataError: the sample or its image can't be read.
        """
        index = int(self.usable[row])
        return self._view(self.read(index), index, view)

    def _view(self, sample: Sample, index: int, view: int) -> Tensor:
        return self.transform.view_of(sample.image, sample.source, view, (self.seed, index))

    def __getitem__(self, place: Place) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, place.epoch, place.index])
        view = int(random.integers(self.views)) if self.views else 2 + int(random.integers(2**31))
        sample = self.read(place.index)
        item: dict[str, Any] = {"captions": []}
        if self.features is not None:
            item["features"] = self.features[int(np.searchsorted(self.usable, place.index)), view]
        else:
            item["pixels"] = self._view(sample, place.index, view)
        for language, count in self.captions.items():
            known = sample.captions.get(language, [])
            texts = [self.tokenizer.tidy(known[i]) for i in random.permutation(len(known))[:count]]
            first = self.tokenizer.languages.get(language, self.tokenizer.padding)  # that of a model that only embeds
            item["captions"] += [(ids, first) for ids in self.tokenizer.encode_captions(texts, self.max_tokens + 1)]
        return item

    def stack(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Stacks samples, and cuts their captions.

        Captions are sorted by length, so that a few groups of them need little padding.

        Returns:
            ``pixels`` (B, 3, H, W) uint8 or ``features`` (B, ...); ``tokens`` and ``padding`` (M, T) for the M captions
            of all images; ``complete`` (M,), false where a caption was cut; ``languages`` (M,) first tokens; ``rows``
            (M,) the image in the batch that each caption belongs to; ``groups``, a list of (first caption, last
            caption + 1, tokens of the longest).
        """
        captions = sorted(
            ((ids, language, row) for row, item in enumerate(items) for ids, language in item["captions"]),
            key=lambda caption: len(caption[0]),
        )
        tokens, padding = self.tokenizer.pad([ids[: self.max_tokens] for ids, _, _ in captions])
        cuts = np.linspace(0, len(captions), 4).round().astype(int).tolist()
        batch: Batch = {
            "tokens": torch.from_numpy(tokens),
            "padding": torch.from_numpy(padding),
            "complete": torch.tensor([len(ids) <= self.max_tokens for ids, _, _ in captions]),
            "languages": torch.tensor([language for _, language, _ in captions]),
            "rows": torch.tensor([row for _, _, row in captions]),
            "groups": [(i, j, max(1, int(padding[i:j].sum(1).max()))) for i, j in itertools.pairwise(cuts) if i < j],
        }
        if "features" in items[0]:
            batch["features"] = torch.stack([item["features"] for item in items]).float()
        else:
            batch["pixels"] = torch.stack([item["pixels"] for item in items])
        return batch


class EvaluationSet(PlacedSet):
    """Samples with all their captions as text.

    Args:
        shards: where samples are read from.
        usable: (n,) sorted indices into ``shards`` of the samples to give.
        need: what a sample must have.
        transform: scales an image.
    """

    def __init__(self, shards: IndexedShards, usable: np.ndarray, need: Need, transform: ImageTransform) -> None:
        super().__init__(shards, usable, need, never_empty=False)
        self.transform = transform

    def __getitem__(self, place: Place) -> dict[str, Any]:
        sample = self.read(place.index)
        pixels = self.transform(decode_image(sample.image, sample.source))
        return {"pixels": pixels, "captions": sample.captions}

    def stack(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Stacks samples: ``pixels`` (B, 3, H, W) uint8, and ``captions`` as a list."""
        return {
            "pixels": torch.stack([item["pixels"] for item in items]),
            "captions": [item["captions"] for item in items],
        }
