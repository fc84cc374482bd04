"""The LightningDataModule: shards on one side, batches on the other."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data.dataset import EvaluationSet, TrainingSet
from mm.data.features import FeatureStore
from mm.data.images import check_image
from mm.data.manifest import Manifest
from mm.data.order import OrderedBatches, ResumableLoader
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards import IndexedShards
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import ImageTransform, Preprocessing
from mm.errors import DataError, OptionError, ShardError, UsageError

log = logging.getLogger(__name__)

Watch = Callable[[str, str], AbstractContextManager[Callable[[int, int | None], None]]]


def unwatched(title: str, unit: str) -> AbstractContextManager[Callable[[int, int | None], None]]:
    """Stands for a progress bar where nobody watches."""
    return nullcontext(lambda done, total: None)


def expand(sources: str | Sequence[str]) -> list[str]:
    """Expands shell patterns in paths of shards, in sorted order. A path that exists is no pattern.

    Raises:
        UsageError: a pattern matches nothing.
    """
    paths: list[str] = []
    for source in [sources] if isinstance(sources, str) else sources:
        pattern = glob.has_magic(source) and not Path(source).exists()
        found = sorted(glob.glob(source)) if pattern else [source]  # noqa: PTH207
        if not found:
            raise UsageError(f"{source}: matches no shard")
        paths += found
    return paths


def require(least: int, **numbers: int) -> None:
    """Makes sure that numbers of the data's options are at least so much.

    Raises:
        OptionError: one isn't.
    """
    for name, value in numbers.items():
        if value < least:
            raise OptionError(f"data.{name} must be at least {least}, not {value}")


class ShardData(L.LightningDataModule):
    """Samples of WebDataset shards by split, for training in an order that resuming goes on with.

    Args:
        train: folder, shard or pattern of shards to train on; or a list of these.
        val: the same, to validate on.
        test: the same, to test on.
        batch_size: samples in a batch of one process.
        val_batch_size: samples in a batch of validation and test.
        max_tokens: where texts are cut.
        workers: processes that load data.
        seed: what order and choices depend on.
    """

    unit = "samples"  # what the check of a split counts
    reads_images = True

    def __init__(
        self,
        train: str | list[str] | None,
        val: str | list[str] | None,
        test: str | list[str] | None,
        *,
        batch_size: int,
        val_batch_size: int,
        max_tokens: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        require(1, batch_size=batch_size, val_batch_size=val_batch_size, max_tokens=max_tokens)
        require(0, workers=workers, seed=seed)
        self.sources = {"train": train, "val": val, "test": test}
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.max_tokens = max_tokens
        self.workers = workers
        self.seed = seed
        self.tallies: dict[str, Tally] = {}
        self._progress: Watch = unwatched
        self._train: Any = None
        self._evaluation: dict[str, Any] = {}
        self._loader: ResumableLoader | None = None
        self._position = 0

    def setup(self, stage: str) -> None:
        """Indexes the shards that a stage needs.

        Raises:
            UsageError: a stage's shards aren't given or don't exist.
            DataError: no usable sample is left.
        """
        if stage == "fit":
            self._loader, self._position = None, 0
        if stage == "fit" and self._train is None:
            self._train = self._training_set(*self._open("train"))
        for split in {"fit": ["val"], "validate": ["val"], "test": ["test"]}.get(stage, []):
            if split not in self._evaluation and (stage != "fit" or self.sources[split] is not None):
                self._evaluation[split] = self._evaluation_set(*self._open(split))

    def _training_set(self, shards: IndexedShards, usable: list[int]) -> Any:
        """Makes the data set that maps a ``Place`` among the usable samples to an item, and collates items."""
        raise NotImplementedError

    def _evaluation_set(self, shards: IndexedShards, usable: list[int]) -> Any:
        """Makes the data set that maps a number to an item, and collates items."""
        raise NotImplementedError

    def _examine(self, sample: Sample, split: str) -> None:
        """Makes sure that a sample can be used in a split.

        Raises:
            DataError: it can't.
        """
        raise NotImplementedError

    def _open(self, split: str) -> tuple[IndexedShards, list[int]]:
        sources = self.sources[split]
        if sources is None:
            raise UsageError(f"data.{split} isn't set; give the folder, shard or pattern of shards to use")
        shards = IndexedShards(Manifest.of(expand(sources)), images=self.reads_images)
        tally, usable = Tally(), []
        for damage in shards.problems:
            tally.reject(damage)
        for index, problem in self._examined(split, shards):
            if problem is None:
                usable.append(index)
            elif not isinstance(problem, ShardError):  # those are counted among the shards' problems
                tally.reject(Rejection.of(problem, split, shards.keys[index]))
        tally.use(len(usable))
        self.tallies[split] = tally
        for rejection in tally.rejections:
            log.warning("data.%s: rejected: %s: %s", split, rejection.reason, rejection.detail)
        if not usable:
            reasons = ", ".join(tally.by_reason()) or "there are none"
            where = sources if isinstance(sources, str) else ", ".join(sources)
            raise DataError(
                f"data.{split}: none of the {len(shards)} samples in {where} can be used: {reasons}", reasons
            )
        return shards, usable

    def _examined(self, split: str, shards: IndexedShards) -> Iterator[tuple[int, DataError | None]]:
        """Examines every sample, several at a time; gives each index with what is wrong with it, if anything."""

        def examine(index: int) -> DataError | None:
            try:
                self._examine(shards[index], split)
            except DataError as error:
                return error
            return None

        count, step = len(shards), 256
        with self._progress(f"Check of data.{split}", self.unit) as update, ThreadPoolExecutor() as pool:
            for start in range(0, count, step):
                update(start, count)
                some = range(start, min(start + step, count))
                yield from zip(some, pool.map(examine, some), strict=True)

    def train_dataloader(self) -> ResumableLoader:
        """Gives training batches, of this process's share."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = OrderedBatches(len(self._train), self.batch_size, self.seed, rank, ranks)
        position = self.state_dict()
        self._loader = ResumableLoader(
            self._train,
            batches,
            unfinished=self._unfinished,
            num_workers=self.workers,
            collate_fn=self._train.collate,
            persistent_workers=False,
        )
        self._loader.load_state_dict(position)
        return self._loader

    def _unfinished(self) -> int:
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        assert isinstance(progress, _ProcessedTracker)
        return progress.ready - progress.processed

    def state_dict(self) -> dict[str, int]:
        """Returns how many samples training has consumed, which goes into checkpoints."""
        return {"position": self._position} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a checkpoint, with the next training loader.

        Lightning restores the loader's own state only in the middle of an epoch.
        """
        self._position = state["position"]

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Gives validation batches, or none where there is no validation split."""
        return self._evaluate("val") if "val" in self._evaluation else []

    def test_dataloader(self) -> DataLoader:
        """Gives test batches."""
        return self._evaluate("test")

    def _evaluate(self, split: str) -> DataLoader:
        dataset = self._evaluation[split]
        return DataLoader(dataset, self.val_batch_size, num_workers=self.workers, collate_fn=dataset.collate)


class CaptionData(ShardData):
    """Captioned images from WebDataset shards, for training and evaluation.

    Args:
        train: folder, shard or pattern of shards to train on; or a list of these.
        val: the same, to validate on.
        test: the same, to test on.
        batch_size: images in a batch of one process.
        captions: how many captions of each language an image gives per step, such as ``{"en": 2, "zh": 1}``.
        views: how many different augmented views an image has; 0 for a new one in every epoch.
        max_tokens: where training captions are cut.
        crop: the smallest share of an image's area that augmented views show.
        workers: processes that load data.
        seed: what order, views and choice of captions depend on.
        val_batch_size: images in a batch of validation and test.
    """

    unit = "images"

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        batch_size: int = 64,
        captions: dict[str, int] | None = None,
        views: int = 0,
        max_tokens: int = 24,
        crop: float = 0.6,
        workers: int = 2,
        seed: int = 0,
        val_batch_size: int = 50,
    ) -> None:
        super().__init__(
            train,
            val,
            test,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            max_tokens=max_tokens,
            workers=workers,
            seed=seed,
        )
        require(1, **{f"captions.{language}": count for language, count in (captions or {}).items()})
        require(0, views=views)
        if not 0 < crop <= 1:
            raise OptionError(f"data.crop must be above 0 and at most 1, not {crop}")
        self.captions: Mapping[str, int] = captions or {"en": 1}
        self.views = views
        self.crop = crop

    def attach(
        self,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing | int,
        language: str | None = None,
        progress: Watch = unwatched,
    ) -> None:
        """Takes what depends on the model, and on who is watching.

        Args:
            tokenizer: the model's.
            preprocessing: how images become the model's pixels; or the side of the square that they are scaled to.
            language: of the captions that images of validation and test need; None for none.
            progress: shows how far a long check is, as ``mm.progress.progress`` does.

        Raises:
            OptionError: captions of a language that the tokenizer lacks.
        """
        for code in self.captions:
            if tokenizer.languages and code not in tokenizer.languages:  # a model that only embeds has none
                known = ", ".join(tokenizer.languages)
                raise OptionError(f"data.captions has language {code!r}; the tokenizer knows {known}")
        self.tokenizer = tokenizer
        self.transform = ImageTransform(preprocessing, self.crop)
        self._progress = progress
        self._evaluated = None if language is None else [language]

    def _training_set(self, shards: IndexedShards, usable: list[int]) -> TrainingSet:
        return TrainingSet(
            shards,
            usable,
            self.transform,
            self.tokenizer,
            captions=self.captions,
            views=self.views,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )

    def _evaluation_set(self, shards: IndexedShards, usable: list[int]) -> EvaluationSet:
        return EvaluationSet(shards, usable, self.transform)

    def _examine(self, sample: Sample, split: str) -> None:
        check_image(sample.image, sample.source)
        languages = self.captions if split == "train" else self._evaluated
        lack = None if languages is None else sample.lacks(languages)
        if lack:
            raise DataError(f"{sample.source}: {lack}", "missing caption")

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
        images = hashlib.sha256(f"{train.shards.manifest.digest} {list(train.usable)}".encode()).hexdigest()
        chance = f"{self.seed} {self.crop}" if self.views > 2 else ""  # the first two views leave nothing to chance
        whole = f"{identity} {images} {self.transform.preprocessing} {chance}"
        train.features = FeatureStore(folder, whole, len(train), self.views, shape)
        train.features.fill(train.pixels, encode, progress)
