"""``mm fit``, ``mm validate``, ``mm test``: LightningCLI over the training module and the data module."""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mm.cli.common import add_json, print_json, wrong_use
from mm.data.datamodule import CaptionData
from mm.errors import CheckpointError, OutputError, UsageError
from mm.progress import progress
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
        config = self.settings.trainer
        root = Path(config.default_root_dir or "runs")
        if not config.fast_dev_run:
            _check_folder(root)
        if config.logger in (None, True) and not config.fast_dev_run:
            kwargs["logger"] = [CSVLogger(root, name="csv"), TensorBoardLogger(root, name="tensorboard")]
        if self.settings.json:
            kwargs |= {"enable_progress_bar": False, "enable_model_summary": False}
        return super().instantiate_trainer(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--json``."""
        add_json(parser)

    @property
    def settings(self) -> Namespace:
        """What the command was told."""
        return self.config[self.config["subcommand"]]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; checks the checkpoint to go on from, which Lightning reads next; keeps tables out of JSON."""
        super().parse_arguments(parser, args)
        if path := self.settings.get("ckpt_path"):
            _check_checkpoint(str(path))
        if self.settings.json and "verbose" in self.settings:
            self.settings.verbose = False

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer, and attaches the tokenizer and image size to the data."""
        super().instantiate_classes()
        self.datamodule.attach(self.model.tokenizer, self.model.architecture.image_size, progress)

    def report(self) -> None:
        """Prints the last figures as one JSON object, where that was asked for."""
        if self.settings.json and self.trainer.is_global_zero:
            print_json({name: float(value) for name, value in self.trainer.callback_metrics.items()})


def _check_checkpoint(path: str) -> None:
    if path in ("last", "best", "hpc"):  # Lightning's names for those it finds itself
        return
    if not Path(path).is_file():
        raise UsageError(f"--ckpt_path {path}: no such file; 'last' goes on from where the last run was stopped")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"--ckpt_path {path}: damaged, or not a training checkpoint of mm")


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
    cli = TrainingCLI(
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
    cli.report()
    return 0
