"""``mm fit``, ``mm validate``, ``mm test``: LightningCLI over the training module and the data module."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mm.cli.common import wrong_use
from mm.data.datamodule import CaptionData
from mm.errors import OutputError
from mm.training.memory import keep_large_allocations
from mm.training.module import VisionLanguageTraining


class TrainingParser(LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""

    program = "mm fit"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong, and exits with status 2."""
        wrong_use(self.program, message)


class TrainingCLI(LightningCLI):
    """LightningCLI that gives the data what it needs of the model, and logs under ``trainer.default_root_dir``."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer, with CSV and TensorBoard logs unless the configuration names other loggers."""
        config = self.config[self.subcommand].trainer if self.subcommand else self.config.trainer
        root = Path(config.default_root_dir or "runs")
        if not config.fast_dev_run:
            _check_folder(root)
        if config.logger in (None, True) and not config.fast_dev_run:
            kwargs["logger"] = [CSVLogger(root, name="csv"), TensorBoardLogger(root, name="tensorboard")]
        return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer, and attaches the tokenizer and image size to the data."""
        super().instantiate_classes()
        self.datamodule.attach(self.model.tokenizer, self.model.architecture.image_size)


def _check_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(f"trainer.default_root_dir {path}: can't be written ({error.strerror})") from error


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm fit``, ``mm validate`` or ``mm test``."""
    keep_large_allocations()
    TrainingParser.program = program
    warnings.filterwarnings("ignore", ".*(does not have many workers|LightningCLI's args parameter|LeafSpec).*")
    TrainingCLI(
        VisionLanguageTraining,
        CaptionData,
        args=[program.removeprefix("mm "), *arguments],
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"use_distributed_sampler": False},
        seed_everything_default=0,
        parser_class=TrainingParser,
        parser_kwargs={"prog": "mm"},
        auto_configure_optimizers=False,
    )
    return 0
