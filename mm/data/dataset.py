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
from mm.data.samples import Sample
from mm.data.shards import IndexedShards
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import ImageTransform, to_pixels

Batch = dict[str, Any]


class TrainingSet(Dataset[dict[str, Any]]):
    """Training samples: one view of an image and a few of its captions, all chosen by (seed, epoch, sample).

    Args:
        shards: where samples are read from.
        usable: indices into ``shards`` of the samples that have captions.
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
        usable: Sequence[int],
        transform: ImageTransform,
        tokenizer: Tokenizer,
        *,
        captions: Mapping[str, int],
        views: int,
        max_tokens: int,
        seed: int,
        features: FeatureStore | None = None,
    ) -> None:
        self.shards = shards
        self.usable = usable
        self.transform = transform
        self.tokenizer = tokenizer
        self.captions = dict(captions)
        self.views = views
        self.max_tokens = max_tokens
        self.seed = seed
        self.features = features

    def __len__(self) -> int:
        return len(self.usable)

    def pixels(self, index: int, view: int) -> Tensor:
        """Decodes one view of one sample: (3, H, W) uint8.

        Raises:
            DataError: the sample or its image can't be read.
        """
        sample = self.shards[self.usable[index]]
        return self.transform.view(decode_image(sample.image, sample.source), view, (self.seed, index))

    def __getitem__(self, place: Place) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, place.epoch, place.index])
        view = int(random.integers(self.views)) if self.views else 2 + int(random.integers(2**31))
        sample = self.shards[self.usable[place.index]]
        item: dict[str, Any] = {"index": place.index}
        if self.features is not None:
            item["features"] = self.features[place.index, view]
        else:
            image = decode_image(sample.image, sample.source)
            item["pixels"] = self.transform.view(image, view, (self.seed, place.index))
        item["captions"] = []
        for language, count in self.captions.items():
            known = sample.captions.get(language, [])
            texts = [self.tokenizer.tidy(known[i]) for i in random.permutation(len(known))[:count]]
            first = self.tokenizer.languages.get(language, self.tokenizer.padding)  # that of a model that only embeds
            item["captions"] += [(ids, first) for ids in self.tokenizer.encode_captions(texts, self.max_tokens + 1)]
        return item

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Stacks samples, and cuts their captions.

        Captions are sorted by length, so that a few groups of them need little padding.

        Returns:
            ``pixels`` (B, 3, H, W) in [0, 1] or ``features`` (B, ...); ``index`` (B,); ``tokens`` and ``padding``
            (M, T) for the M captions of all images; ``complete`` (M,), false where a caption was cut; ``languages``
            (M,) first tokens; ``rows`` (M,) the image in the batch that each caption belongs to; ``groups``, a list of
            (first caption, last caption + 1, tokens of the longest).
        """
        captions = sorted(
            ((ids, language, row) for row, item in enumerate(items) for ids, language in item["captions"]),
            key=lambda caption: len(caption[0]),
        )
        tokens, padding = self.tokenizer.pad([ids[: self.max_tokens] for ids, _, _ in captions])
        cuts = np.linspace(0, len(captions), 4).round().astype(int).tolist()
        batch: Batch = {
            "index": torch.tensor([item["index"] for item in items]),
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
            batch["pixels"] = to_pixels(torch.stack([item["pixels"] for item in items]))
        return batch


class EvaluationSet(Dataset[dict[str, Any]]):
    """Samples in the order of their shards, with all their captions as text.

    Args:
        shards: where samples are read from.
        usable: indices into ``shards`` of the samples to give.
        transform: scales an image.
    """

    def __init__(self, shards: IndexedShards, usable: Sequence[int], transform: ImageTransform) -> None:
        self.shards = shards
        self.usable = usable
        self.transform = transform

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: Sample = self.shards[self.usable[index]]
        pixels = self.transform(decode_image(sample.image, sample.source))
        return {"index": index, "key": sample.key, "pixels": pixels, "captions": sample.captions}

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> Batch:
        """Stacks samples: ``pixels`` (B, 3, H, W) in [0, 1], ``index`` (B,), ``keys`` and ``captions`` as lists."""
        return {
            "index": torch.tensor([item["index"] for item in items]),
            "pixels": to_pixels(torch.stack([item["pixels"] for item in items])),
            "keys": [item["key"] for item in items],
            "captions": [item["captions"] for item in items],
        }
