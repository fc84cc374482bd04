"""The LightningDataModule of captioned images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mm.data.dataset import EvaluationSet, TrainingSet
from mm.data.features import FeatureStore
from mm.data.samples import Need
from mm.data.shard_data import ShardData, Watch, require, unwatched
from mm.data.shards.reading import IndexedShards
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import ImageTransform, Preprocessing
from mm.errors import OptionError


class CaptionData(ShardData):
    """Captioned images from WebDataset shards, for training and evaluation.

    Args:
        train: what to train on, as ``ShardData`` has it.
        val: what to validate on.
        test: what to test on.
        captions: how many captions of each language an image gives per step, such as ``{"en": 2, "zh": 1}``.
        views: how many different augmented views an image has; 0 for a new one in every epoch.
        crop: the smallest share of an image's area that augmented views show.
        color: how much brightness, contrast and saturation of augmented views change; 0 for not at all.
        check_images: whether every image is decoded before the first step, so that damaged ones are known by then;
            otherwise they are found when they are reached. Those of validation and test are in any case.
        options: as ``ShardData`` has them.
    """

    unit = "images"

    def __init__(
        self,
        train: str | list[str] | dict[str, float] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        captions: dict[str, int] | None = None,
        views: int = 0,
        crop: float = 0.6,
        color: float = 0.2,
        check_images: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, **options)
        require(1, **{f"captions.{language}": count for language, count in (captions or {}).items()})
        require(0, views=views)
        if not 0 < crop <= 1:
            raise OptionError(f"data.crop must be above 0 and at most 1, not {crop}")
        if not 0 <= color <= 1:
            raise OptionError(f"data.color must be from 0 to 1, not {color}")
        self.captions: Mapping[str, int] = captions or {"en": 1}
        self.views = views
        self.crop = crop
        self.color = color
        self._decodes_first = check_images

    def attach(
        self,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing | int,
        language: str | None = None,
        progress: Watch = unwatched,
        keeps_features: bool = False,
    ) -> None:
        """Takes what depends on the model, and on who is watching.

        Args:
            tokenizer: the model's.
            preprocessing: how images become the model's pixels; or the side of the square that they are scaled to.
            language: of the captions that images of validation and test need; None for none.
            progress: shows how far a long check is, as ``mm.progress.progress`` does.
            keeps_features: whether ``keep_features`` will be called, which decodes all images before the first step.

        Raises:
            OptionError: captions of a language that the tokenizer lacks.
        """
        for code in self.captions:
            if tokenizer.languages and code not in tokenizer.languages:  # a model that only embeds has none
                known = ", ".join(tokenizer.languages)
                raise OptionError(f"data.captions has language {code!r}; the tokenizer knows {known}")
        self.tokenizer = tokenizer
        self.transform = ImageTransform(preprocessing, self.crop, self.color)
        self._progress = progress
        self._decodes_first |= keeps_features
        self._evaluated = Need() if language is None else Need(((language,),))

    def _training_set(self, shards: IndexedShards, usable: np.ndarray) -> TrainingSet:
        return TrainingSet(
            shards,
            usable,
            self._need("train"),
            self.transform,
            self.tokenizer,
            captions=self.captions,
            views=self.views,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )

    def _evaluation_set(self, shards: IndexedShards, usable: np.ndarray, split: str) -> EvaluationSet:
        return EvaluationSet(shards, usable, self._need(split), self.transform)

    def _need(self, split: str) -> Need:
        return Need((tuple(self.captions),)) if split == "train" else self._evaluated

    def keep_features(
        self,
        folder: Path,
        identity: str,
        encode: Callable[[Tensor], Tensor],
        progress: Callable[[int, int], None],
    ) -> None:
        """Computes features of all training views once; from then on training batches hold them instead of pixels.

        Args:
            folder: where the features are kept.
            identity: what the features depend on, but for the images and their views.
            encode: maps (B, 3, H, W) uint8 to (B, ...) features.
            progress: called with how many are done and how many there are.

        Raises:
            OptionError: images have a new view in every epoch, so there is nothing to keep.
            OutputError: the folder can't be written.
            DataError: an image can't be decoded.
        """
        train: TrainingSet = self._train
        if not self.views:
            raise OptionError("features can only be kept of a fixed number of views: set data.views to 1 or more")
        shape = tuple(encode(train.pixels(0, 0)[None]).shape[1:])
        images = hashlib.sha256(f"{train.shards.manifest.digest} {train.usable.tolist()}".encode()).hexdigest()
        drawn = f"{self.seed} {self.crop} {self.color}" if self.views > 2 else ""  # the first two views aren't
        whole = f"{identity} {images} {self.transform.preprocessing} {drawn}"
        train.features = FeatureStore(folder, whole, len(train), self.views, shape)
        train.features.fill(train.pixels, encode, progress)
