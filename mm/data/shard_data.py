"""What all LightningDataModules have in common: shards on one side, batches on the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from mm.data.counting import counter
from mm.data.ledger import Ledger
from mm.data.loading import Loader, OrderedBatches, ResumableLoader
from mm.data.opening import find_manifest, unusable_samples, weighted
from mm.data.order import BLOCK, Place, SampleOrder
from mm.data.ranks import same_on_all_ranks
from mm.data.remote.cache import ShardCache
from mm.data.samples import Need, Tally
from mm.data.shards.inspecting import inspect_shards
from mm.data.shards.inspection import Inspection
from mm.data.shards.known import KnownShards
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import IndexedShards
from mm.data.workers import quiet_worker
from mm.errors import OptionError, UsageError

log = logging.getLogger(__name__)

Watch = Callable[[str, str], AbstractContextManager[Callable[[int, int | None], None]]]


def unwatched(title: str, unit: str) -> AbstractContextManager[Callable[[int, int | None], None]]:
    """Stands for a progress bar where nobody watches."""
    return nullcontext(lambda done, total: None)


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
        train: folder, shard, address or pattern of shards to train on; a list of these; or a mapping from these to how
            often an epoch holds each of their samples, such as ``{"photos/": 1, "few/": 3.5}``.
        val: the same, to validate on.
        test: the same, to test on.
        batch_size: samples in a batch of one process.
        val_batch_size: samples in a batch of validation and test.
        max_tokens: where texts are cut.
        workers: processes that load data.
        seed: what order and choices depend on.
        remainder: whether samples that fill no batch at the end of an epoch are dropped, each time others; or the batch
            is filled up (``pad``) with the epoch's first samples.
        block: how many neighbouring samples of a shard are read together and stay close in the order; 1 for a full
            shuffle, which reads from everywhere.
        max_reject_rate: the largest share of a split's samples that may be rejected, damaged shards allowed; None to
            refuse damaged shards, and to allow any share of single samples that can't be used.
        verify: whether shards are compared with their SHA-256 in the manifest when they are new or changed, and each
            sample with what it was then.
        cache: folder for copies of remote shards; None for the user's cache folder.
        cache_gigabytes: the most space that these copies take.
    """

    unit = "samples"  # what the check of a split counts
    reads_images = True

    def __init__(
        self,
        train: str | list[str] | dict[str, float] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        batch_size: int = 64,
        val_batch_size: int = 50,
        max_tokens: int = 24,
        workers: int = 2,
        seed: int = 0,
        remainder: Literal["drop", "pad"] = "drop",
        block: int = BLOCK,
        max_reject_rate: float | None = None,
        verify: bool = True,
        cache: str | None = None,
        cache_gigabytes: float = 50.0,
    ) -> None:
        super().__init__()
        require(1, batch_size=batch_size, val_batch_size=val_batch_size, max_tokens=max_tokens, block=block)
        require(0, workers=workers, seed=seed)
        if max_reject_rate is not None and not 0 <= max_reject_rate <= 1:
            raise OptionError(f"data.max_reject_rate must be from 0 to 1, not {max_reject_rate}")
        if remainder not in ("drop", "pad"):
            raise OptionError(f"data.remainder is {remainder!r}: drop or pad")
        if not cache_gigabytes > 0:
            raise OptionError(f"data.cache_gigabytes must be above 0, not {cache_gigabytes}")
        self.sources: dict[str, Any] = {"train": train, "val": val, "test": test}
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.max_tokens = max_tokens
        self.workers = workers
        self.seed = seed
        self.remainder = remainder
        self.block = block
        self.max_reject_rate = max_reject_rate
        self.verify = verify
        self.cache = ShardCache(Path(cache) if cache else None, int(cache_gigabytes * 1e9))
        self.ledgers: dict[str, Ledger] = {}
        self._progress: Watch = unwatched
        self._decodes_first = False
        self._train: Any = None
        self._order: SampleOrder
        self._unusable: np.ndarray
        self._position = 0
        self._evaluation: dict[str, Any] = {}
        self._loader: ResumableLoader | None = None

    def setup(self, stage: str) -> None:
        """Looks through the shards that a stage needs.

        Raises:
            UsageError: a stage's shards aren't given or don't exist.
            ShardError: shards are damaged.
            DataError: no usable sample is left, or more are rejected than allowed.
        """
        if stage == "fit":
            self._loader, self._position = None, 0
        if stage == "fit" and self._train is None:
            self._train = self._training_set(*self._open("train"))
            self._say_remainder()
        for split in {"fit": ["val"], "validate": ["val"], "test": ["test"]}.get(stage, []):
            if split not in self._evaluation and (stage != "fit" or self.sources[split] is not None):
                self._evaluation[split] = self._evaluation_set(*self._open(split), split)

    def _training_set(self, shards: IndexedShards, usable: np.ndarray) -> Any:
        """Makes the ``PlacedSet`` of the usable samples."""
        raise NotImplementedError

    def _evaluation_set(self, shards: IndexedShards, usable: np.ndarray, split: str) -> Any:
        """Makes the ``PlacedSet`` of the usable samples of a split for validation or test."""
        raise NotImplementedError

    def _need(self, split: str) -> Need:
        """What a sample must have to be used in a split."""
        raise NotImplementedError

    def _open(self, split: str) -> tuple[IndexedShards, np.ndarray]:
        """Opens the shards of a split; gives the sorted indices of the samples that can be used too."""
        named = self.sources[split]
        if named is None:
            raise UsageError(f"data.{split} isn't set; give the folder, shard or pattern of shards to use")
        ranks = self.trainer.world_size if self.trainer else 1
        ledger = self.ledgers[split] = Ledger(split, self.max_reject_rate, self._report(split), ranks)
        with same_on_all_ranks(f"data.{split}") as share:
            manifests, inspections = self._inspect(split, list(named) if weighted(named) else [named])
            manifest = Manifest([shard for part in manifests for shard in part.shards])
            shards = IndexedShards(
                manifest,
                images=self.reads_images,
                inspections=inspections,
                fetch=self.cache.fetch,
                block=self.block if self.reads_images else 1,
                verify=self.verify,
            )
            tally = Tally()
            unusable = unusable_samples(shards, inspections, self._need(split), tally)
            ledger.begin(tally, ", ".join([named] if isinstance(named, str) else named))
            share(f"{[(shard.url, shard.nsamples, shard.sha256) for shard in manifest.shards]} {unusable.tolist()}")
        if split == "train":
            self._unusable = unusable
            sizes = [[shard.nsamples for shard in part.shards] for part in manifests]
            self._order = SampleOrder(sizes, list(named.values()) if weighted(named) else None, self.seed, self.block)
        return shards, np.delete(np.arange(len(shards)), unusable)

    def _report(self, split: str) -> Path | None:
        """Where rejections of a split are kept by this process: beside the checkpoints."""
        if self.trainer is None:
            return None
        rank = f"-{self.trainer.global_rank}" if self.trainer.global_rank else ""
        return Path(self.trainer.default_root_dir) / f"rejected-{split}{rank}.jsonl"

    def _inspect(self, split: str, sources: Sequence[Any]) -> tuple[list[Manifest], list[Inspection | None]]:
        """Finds the shards of each source, and looks through all that are here; through remote ones once fetched."""
        images = self.reads_images and (self._decodes_first or split != "train")
        options: Any = {"verify": self.verify, "images": images, "captions": bool(self._need(split).groups)}
        inspect: Callable[..., list[Inspection]] = partial(inspect_shards, **options, known=KnownShards())
        with self._progress(f"Check of data.{split}", self.unit) as update:
            unlisted = partial(inspect, progress=counter(update, None))
            manifests = [find_manifest(source, self.cache, unlisted) for source in sources]
            entries = [shard for part in manifests for shard in part.shards]
            local = [shard for shard in entries if shard.remote is None]
            found = iter(inspect(local, progress=counter(update, sum(shard.nsamples for shard in local))))
        return manifests, [next(found) if shard.remote is None else None for shard in entries]

    def _say_remainder(self) -> None:
        batches = self.batches()
        left = batches.remainder
        what = f"data.train: {self._order.total} samples, {len(batches)} steps of {batches.stride} in an epoch"
        if left > 0:
            what += f"; {left} are left over at its end and dropped, others each time"
        elif left < 0:
            what += f"; {-left} of them are taken twice to fill the last one"
        rank_zero_info(what)

    def batches(self) -> OrderedBatches:
        """Makes the batches of training, of this process's share."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return OrderedBatches(self._order, self._unusable, self.batch_size, rank, ranks, pad=self.remainder == "pad")

    def train_dataloader(self) -> ResumableLoader:
        """Gives training batches, of this process's share."""
        position = self.state_dict()["position"]
        self._loader = ResumableLoader(
            self._train,
            self.batches(),
            self.ledgers["train"].add,
            self._unfinished,
            num_workers=self.workers,
            collate_fn=self._train.collate,
            worker_init_fn=quiet_worker,
            persistent_workers=False,
        )
        self._loader.load_state_dict({"position": position})
        return self._loader

    def _unfinished(self) -> int:
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        assert isinstance(progress, _ProcessedTracker)
        return progress.ready - progress.processed

    def state_dict(self) -> dict[str, Any]:
        """Returns what goes into checkpoints.

        Returns:
            Nothing without training. ``position``: how many samples training has accounted for; ``samples`` in an
            epoch, and ``order``, to tell whether it is still the same; ``rejected``: what was found when samples were
            read.
        """
        if self._train is None:
            return {}
        position = self._position if self._loader is None else self._loader.state_dict()["position"]
        found = [asdict(rejection) for rejection in self.ledgers["train"].found]
        order = self._order
        return {"position": position, "samples": order.total, "order": order.fingerprint, "rejected": found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint, with the next training loader; with other data, at the next epoch.

        Lightning restores the loader's own state only in the middle of an epoch.
        """
        if self._train is None:
            return
        position, total, order = state["position"], self._order.total, self._order.fingerprint
        if state["order"] != order:
            log.warning(
                "data.train, or its order (data.seed, data.block, weights), isn't what it was when the checkpoint was "
                "saved: training goes on with the next epoch"
            )
            position = -(-position // state["samples"]) * total
        elif self.batches().left(position) == 0:
            position = (position // total + 1) * total
        self._position = position
        self.ledgers["train"].restore(state["rejected"])

    @property
    def epoch(self) -> int:
        """The epoch that training goes on with, from 0."""
        return self._position // self._order.total

    def batches_done(self, before: int) -> int:
        """How many batches of the current epoch are done, in batches as they are now.

        Args:
            before: how many batches that were when the checkpoint was saved.
        """
        batches = self.batches()
        if self._position % self._order.total == 0:
            return len(batches) if before else 0
        return len(batches) - batches.left(self._position)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Gives validation batches, or none where there is no validation split."""
        return self._evaluate("val") if "val" in self._evaluation else []

    def test_dataloader(self) -> DataLoader:
        """Gives test batches."""
        return self._evaluate("test")

    def _evaluate(self, split: str) -> DataLoader:
        """Gives all samples as the first epoch would, so that figures of several epochs compare."""
        dataset = self._evaluation[split]
        return Loader(
            dataset,
            self.ledgers[split].add,
            batch_size=self.val_batch_size,
            sampler=[Place(0, index) for index in dataset.usable.tolist()],
            num_workers=self.workers,
            collate_fn=dataset.collate,
            worker_init_fn=quiet_worker,
        )
