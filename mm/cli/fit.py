"""``mm fit``, ``mm validate``, ``mm test``: LightningCLI over the training module and the data module."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lightning.pytorch.cli import LightningCLI

from mm.data.datamodule import CaptionData
from mm.training.memory import keep_large_allocations
from mm.training.module import VisionLanguageTraining


class TrainingCLI(LightningCLI):
    """LightningCLI that gives the data what it needs of the model."""

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer, and attaches the tokenizer and image size to the data."""
        super().instantiate_classes()
        self.datamodule.attach(self.model.tokenizer, self.model.architecture.image_size)


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm fit``, ``mm validate`` or ``mm test``."""
    keep_large_allocations()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    TrainingCLI(
        VisionLanguageTraining,
        CaptionData,
        args=[program.removeprefix("mm "), *arguments],
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"use_distributed_sampler": False},
        seed_everything_default=0,
        parser_kwargs={"prog": "mm"},
    )
    return 0
