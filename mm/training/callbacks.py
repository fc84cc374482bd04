"""What is kept of training: which checkpoints, and averaged weights."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from mm.errors import OptionError, OutputError, TrainingError
from mm.files import remove_leftovers
from mm.training.saving import checkpoint_file, checkpoint_folder
from mm.training.stopping import StoppedAtOnce

log = logging.getLogger(__name__)


class _InRootDir(ModelCheckpoint):
    """Keeps checkpoints in ``checkpoints/`` under the trainer's ``default_root_dir``, where the next run finds them."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settles the folder, and removes what is left there of a save that was killed."""
        self._settle(trainer)
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(checkpoint_file(trainer.default_root_dir, str(self.filename)))

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        # Lightning resolves ``ckpt_path="last"`` before ``setup``, and would look in the folder of the logger.
        self._settle(trainer)
        return super()._find_last_checkpoints(trainer)

    def _settle(self, trainer: L.Trainer) -> None:
        self.dirpath = str(checkpoint_folder(trainer.default_root_dir))


class LastCheckpoint(_InRootDir):
    """Keeps the latest state as ``last.ckpt``, which ``--ckpt_path last`` resumes from.

    Args:
        minutes: how often it is saved; it is saved after the last step too, and where training was stopped.
    """

    def __init__(self, minutes: float = 10.0) -> None:
        super().__init__(
            filename="last",
            train_time_interval=timedelta(minutes=minutes),
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self.saved: Path | None = None  # the file, if this run has written it
        self._training = False
        self._between_steps = True
        self._resumable = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Takes note of a checkpoint that is there already, before another rank can save one."""
        super().setup(trainer, pl_module, stage)
        self._resumable = checkpoint_file(trainer.default_root_dir, "last").exists()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._training = True

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Takes note that there are gradients, which no checkpoint holds."""
        self._between_steps = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """Saves if it is time to, and no further batch belongs to the step; before validation, only once it is over."""
        if not trainer.fit_loop._should_accumulate():
            self._between_steps = True
            if not _validates_next(trainer):
                super().on_train_batch_end(trainer, pl_module, *arguments)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves if it was time to before validation: who goes on from there mustn't miss it."""
        super().on_train_epoch_end(trainer, pl_module)
        super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Saves where training was stopped, if that is a state to go on from.

        What fails before training begins leaves the file as it is.

        Raises:
            OutputError: training was told to stop, and the checkpoint can't be saved.
        """
        if not self._worth_saving(trainer, exception):
            return
        if trainer.validating:
            _repeat_validation(trainer)
        elif not trainer.sanity_checking and self._last_global_step_saved == trainer.global_step:
            return
        try:
            self._save(trainer)
        except (OutputError, TrainingError) as error:
            if isinstance(exception, SIGTERMException):
                raise
            log.warning("%s", error)  # the exception says more about what went wrong

    def _worth_saving(self, trainer: L.Trainer, exception: BaseException) -> bool:
        told = isinstance(exception, SIGTERMException)
        together = told or trainer.world_size == 1  # other ranks wouldn't come to save it
        hopeless = isinstance(exception, (StoppedAtOnce, OutputError, TrainingError))
        if trainer.sanity_checking and told:
            return not hopeless and not self._resumable
        return self._training and self._between_steps and together and not hopeless

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the end of training."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Saves now, unless this step is saved already."""
        if self._last_global_step_saved != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.saved = Path(filepath)


def _repeat_validation(trainer: L.Trainer) -> None:
    """Makes a checkpoint that is saved now begin with the whole validation that is at hand."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()


def _validates_next(trainer: L.Trainer) -> bool:
    """Tells whether validation follows the batch at hand."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


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
