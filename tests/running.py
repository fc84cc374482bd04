"""Short training runs on made shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import tiny
from torch import Tensor

from mm.data.datamodule import CaptionData
from mm.data.dataset import Batch
from mm.training.callbacks import AveragedWeights, BestCheckpoint, LastCheckpoint
from mm.training.module import VisionLanguageTraining
from mm.training.validation import Validation


class Recorded(VisionLanguageTraining):
    """Notes every step: its number, its samples and its loss; calls ``during`` in the middle of each."""

    during: Callable[[int], None] = staticmethod(lambda step: None)
    during_validation: Callable[[int], None] = staticmethod(lambda step: None)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: list[tuple[int, list[int], float]] = []
        self.validations: list[tuple[int, int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.during(self.global_step)
        self.steps.append((self.global_step, batch["index"].tolist(), float(loss.detach())))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.during_validation(self.global_step)
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        assert self._run is not None
        self.validations.append((self.global_step, len(self._run.references)))
        super().on_validation_epoch_end()


def tokenizer_file(folder: Path) -> str:
    """Writes the tokenizer that all runs use."""
    path = folder / "tokenizer.json"
    path.write_text(tiny.tokenizer().to_json(), encoding="utf-8")
    return str(path)


def training(folder: Path, **options: Any) -> Recorded:
    """A tiny model in training."""
    defaults: dict[str, Any] = {
        "architecture": tiny.ARCHITECTURE,
        "tokenizer": tokenizer_file(folder),
        "validation": Validation(caption_images=4),
    }
    if options.get("init"):
        del defaults["tokenizer"]  # the model has its own
    return Recorded(**(defaults | options))


def made_data(folder: Path, **options: Any) -> CaptionData:
    """Fourteen pictures to train on and six to validate on, made where they aren't there yet."""
    for name, count in (("train", 14), ("val", 6)):
        if not (folder / name).exists():
            tiny.shards(folder / name, count)
    defaults: dict[str, Any] = {
        "train": str(folder / "train"),
        "val": str(folder / "val"),
        "batch_size": 4,
        "val_batch_size": 3,
        "captions": {"en": 2, "zh": 1},
        "max_tokens": 20,
        "views": 2,
        "workers": 0,
    }
    return CaptionData(**(defaults | options))


def trainer(folder: Path, **options: Any) -> L.Trainer:
    """A quiet trainer with all callbacks of mm that writes to ``folder``."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": str(folder),
        "max_epochs": 4,
        "callbacks": [AveragedWeights(0.5), LastCheckpoint(), BestCheckpoint()],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "gradient_clip_val": 1.0,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**(defaults | options))


def fit(trainer: L.Trainer, module: VisionLanguageTraining, data: CaptionData, last: bool = False) -> None:
    """Trains, as ``mm fit`` does."""
    module.attach(data)
    trainer.fit(module, datamodule=data, ckpt_path="last" if last else None, weights_only=True)
