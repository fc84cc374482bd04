"""What is kept of training: which checkpoints, how they are written, and averaged weights."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mm.errors import OptionError
from mm.files import whole_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, syncs it and renames it: there is a good one at every moment.

    Lightning's own writer begins in the system's temporary folder, from where a rename is no single step if that is
    on another device.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint to a local path.

        Raises:
            OSError: it can't be written; the old one is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(checkpoint, file)


def checkpoint_folder(root: str | Path) -> Path:
    """Where a run under ``default_root_dir`` keeps its checkpoints."""
    return Path(root).absolute() / "checkpoints"


class _InRootDir(ModelCheckpoint):
    """Keeps checkpoints in ``checkpoints/`` under the trainer's ``default_root_dir``, where the next run finds them."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settles the folder."""
        self._settle(trainer)
        super().setup(trainer, pl_module, stage)

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        # Lightning resolves ``ckpt_path="last"`` before ``setup``, and would look in the folder of the logger.
        self._settle(trainer)
        return super()._find_last_checkpoints(trainer)

    def _settle(self, trainer: L.Trainer) -> None:
        self.dirpath = str(checkpoint_folder(trainer.default_root_dir))


class LastCheckpoint(_InRootDir):
    """Keeps the latest state as ``last.ckpt``, which ``--ckpt_path last`` resumes from.

    Args:
        minutes: how often it is saved; it is saved after the last step too.
    """

    def __init__(self, minutes: float = 10.0) -> None:
        super().__init__(
            filename="last",
            train_time_interval=timedelta(minutes=minutes),
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
            save_on_exception=True,
        )
        self._training = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._training = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Saves where training was stopped; what fails before it begins leaves the file as it is."""
        if self._training:
            super().on_exception(trainer, pl_module, exception)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the end of training."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Saves now, unless this step is saved already."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class BestCheckpoint(_InRootDir):
    """Keeps the state with the best validation figure as ``best.ckpt``.

    Args:
        monitor: the figure, the higher the better; None for that which the module calls its ``best_figure``.
    """

    def __init__(self, monitor: str | None = None) -> None:
        super().__init__(filename="best", monitor=monitor, mode="max", save_top_k=1, enable_version_counter=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settles figure and folder."""
        if self.monitor is None:
            self.monitor = str(pl_module.best_figure)
        super().setup(trainer, pl_module, stage)


class AveragedWeights(EMAWeightAveraging):
    """Exponential moving average of the weights: validation, checkpoints and the final model use it.

    Args:
        decay: share of the average that a step keeps.
        start: step that the average begins at.

    Raises:
        OptionError: the share isn't between 0 and 1.
    """

    def __init__(self, decay: float = 0.999, start: int = 0) -> None:
        if not 0 <= decay < 1:
            raise OptionError(f"AveragedWeights.decay must be at least 0 and below 1, not {decay}")
        super().__init__(decay=decay, update_starting_at_step=start, use_buffers=True)
        self._swapped = False

    def _swap_models(self, pl_module: L.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Takes the averaged weights out of the model where validation was interrupted, before the state is saved."""
        if self._swapped:
            self._swap_models(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average into the model, after the last checkpoint with both is saved."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer)
        super().on_train_end(trainer, pl_module)
