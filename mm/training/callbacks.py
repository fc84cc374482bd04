"""Callbacks of training: which checkpoints are kept, and averaged weights."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint


class _InRootDir(ModelCheckpoint):
    """Keeps checkpoints in ``checkpoints/`` under the trainer's ``default_root_dir``, where the next run finds them."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)


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

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the end of training."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class BestCheckpoint(_InRootDir):
    """Keeps the state with the best validation figure as ``best.ckpt``.

    Args:
        monitor: the figure, the higher the better.
    """

    def __init__(self, monitor: str = "val/CIDEr") -> None:
        super().__init__(filename="best", monitor=monitor, mode="max", save_top_k=1, enable_version_counter=False)


class AveragedWeights(EMAWeightAveraging):
    """Exponential moving average of the weights: validation, checkpoints and the final model use it.

    Args:
        decay: share of the average that a step keeps.
        start: step that the average begins at.
    """

    def __init__(self, decay: float = 0.999, start: int = 0) -> None:
        super().__init__(decay=decay, update_starting_at_step=start, use_buffers=True)
