"""The LightningDataModule: shards on one side, batches on the other."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data.dataset import EvaluationSet, TrainingSet
from mm.data.features import FeatureStore
from mm.data.images import check_image
from mm.data.manifest import Manifest
from mm.data.order import OrderedBatches, ResumableLoader
from mm.data.samples import Rejection, Tally
from mm.data.shards import IndexedShards
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import ImageTransform, Preprocessing
from mm.errors import DataError, OptionError, ShardError, UsageError

log = logging.getLogger(__name__)

Watch = Callable[[str, str], AbstractContextManager[Callable[[int, int | None], None]]]


def _unwatched(title: str, unit: str) -> AbstractContextManager[Callable[[int, int | None], None]]:
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


class CaptionData(L.LightningDataModule):
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
        super().__init__()
        numbers = {"batch_size": batch_size, "val_batch_size": val_batch_size, "max_tokens": max_tokens}
        numbers |= {f"captions.{language}": count for language, count in (captions or {}).items()}
        for name, value in numbers.items():
            if value < 1:
                raise OptionError(f"data.{name} must be at least 1, not {value}")
        for name, value in {"views": views, "workers": workers, "seed": seed}.items():
            if value < 0:
                raise OptionError(f"data.{name} must be at least 0, not {value}")
        if not 0 < crop <= 1:
            raise OptionError(f"data.crop must be above 0 and at most 1, not {crop}")
        self.sources = {"train": train, "val": val, "test": test}
        self.batch_size = batch_size
        self.captions: Mapping[str, int] = captions or {"en": 1}
        self.views = views
        self.max_tokens = max_tokens
        self.crop = crop
        self.workers = workers
        self.seed = seed
        self.val_batch_size = val_batch_size
        self.tallies: dict[str, Tally] = {}
        self._train: TrainingSet | None = None
        self._evaluation: dict[str, EvaluationSet] = {}
        self._loader: ResumableLoader | None = None
        self._position = 0

    def attach(
        self,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing | int,
        language: str | None = None,
        progress: Watch = _unwatched,
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
        for language in self.captions:
            if language not in tokenizer.languages:
                known = ", ".join(tokenizer.languages)
                raise OptionError(f"data.captions has language {language!r}; the tokenizer knows {known}")
        self.tokenizer = tokenizer
        self.transform = ImageTransform(preprocessing, self.crop)
        self._progress = progress
        self._evaluated = None if language is None else [language]

    def setup(self, stage: str) -> None:
        """Indexes the shards that a stage needs.

        Raises:
            UsageError: a stage's shards aren't given or don't exist.
            DataError: no usable sample is left.
        """
        if stage == "fit":
            self._loader, self._position = None, 0
        if stage == "fit" and self._train is None:
            shards, usable = self._open("train", self.captions)
            self._train = TrainingSet(
                shards,
                usable,
                self.transform,
                self.tokenizer,
                captions=self.captions,
                views=self.views,
                max_tokens=self.max_tokens,
                seed=self.seed,
            )
        for split in {"fit": ["val"], "validate": ["val"], "test": ["test"]}.get(stage, []):
            if split not in self._evaluation and (stage != "fit" or self.sources[split] is not None):
                self._evaluation[split] = EvaluationSet(*self._open(split, self._evaluated), self.transform)

    def _open(self, split: str, languages: Collection[str] | None) -> tuple[IndexedShards, list[int]]:
        sources = self.sources[split]
        if sources is None:
            raise UsageError(f"data.{split} isn't set; give the folder, shard or pattern of shards to use")
        shards = IndexedShards(Manifest.of(expand(sources)))
        tally, usable = Tally(), []
        for damage in shards.problems:
            tally.reject(damage)
        for index, problem in self._examined(split, shards, languages):
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

    def _examined(
        self, split: str, shards: IndexedShards, languages: Collection[str] | None
    ) -> Iterator[tuple[int, DataError | None]]:
        """Decodes every image, several at a time; gives each index with what is wrong with its sample, if anything."""

        def examine(index: int) -> DataError | None:
            try:
                sample = shards[index]
                check_image(sample.image, sample.source)
            except DataError as error:
                return error
            lack = None if languages is None else sample.lacks(languages)
            return DataError(f"{sample.source}: {lack}", "missing caption") if lack else None

        count, step = len(shards), 256
        with self._progress(f"Check of data.{split}", "images") as update, ThreadPoolExecutor() as pool:
            for start in range(0, count, step):
                update(start, count)
                some = range(start, min(start + step, count))
                yield from zip(some, pool.map(examine, some), strict=True)

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
        train = self._train
        assert train is not None
        if not self.views:
            raise OptionError("features can only be kept of a fixed number of views: set data.views to 1 or more")
        shape = tuple(encode(train.pixels(0, 0)[None]).shape[1:])
        images = hashlib.sha256(f"{train.shards.manifest.digest} {list(train.usable)}".encode()).hexdigest()
        chance = f"{self.seed} {self.crop}" if self.views > 2 else ""  # the first two views leave nothing to chance
        whole = f"{identity} {images} {self.transform.preprocessing} {chance}"
        train.features = FeatureStore(folder, whole, len(train), self.views, shape)
        train.features.fill(train.pixels, encode, progress)

    def train_dataloader(self) -> ResumableLoader:
        """Gives training batches, of this process's share."""
        assert self._train is not None
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
