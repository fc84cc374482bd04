"""``mm fit``, ``mm validate``, ``mm test``: LightningCLI over the training module and the data module."""

from __future__ import annotations

import argparse
import errno
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mm.checkpoints.directory import read_checkpoint
from mm.cli.common import add_json, print_json, wrong_use
from mm.data.datamodule import CaptionData
from mm.data.texts import TextData
from mm.errors import OptionError, OutputError, UsageError
from mm.files import make_folder
from mm.progress import progress
from mm.training.callbacks import LastCheckpoint
from mm.training.guarding import LossGuard
from mm.training.language import LanguageTraining
from mm.training.memory import keep_large_allocations
from mm.training.module import VisionLanguageTraining
from mm.training.saving import WholeCheckpoints, checkpoint_file
from mm.training.stopping import StopOnSignal

# What is trained, and on which data; by the name that the key 'task' of a config file gives it.
TASKS: dict[str, tuple[type[Any], type[Any]]] = {
    "images": (VisionLanguageTraining, CaptionData),
    "text": (LanguageTraining, TextData),
}


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TrainingParser(LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""

    program = "mm fit"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong, and exits with status 2."""
        wrong_use(self.program, message)


class TrainingCLI(LightningCLI):
    """LightningCLI that gives the data what it needs of the model, and logs under ``trainer.default_root_dir``."""

    task: str
    stopping: StopOnSignal

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer, with CSV and TensorBoard logs unless the configuration names other loggers."""
        config, root = self.settings.trainer, self.root
        if not config.fast_dev_run:
            make_folder(root, f"trainer.default_root_dir {root}")
        if config.logger in (None, True) and not config.fast_dev_run:
            kwargs["logger"] = [CSVLogger(root, name="csv"), TensorBoardLogger(root, name="tensorboard")]
        if config.plugins is None:
            kwargs["plugins"] = [WholeCheckpoints()]
        if self.settings.json:
            kwargs |= {"enable_progress_bar": False, "enable_model_summary": False}
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        callbacks.append(self.stopping)
        if self.settings.json and config.get("callbacks"):
            noisy = ProgressBar, ModelSummary
            config["callbacks"] = [callback for callback in config["callbacks"] if not isinstance(callback, noisy)]
        return super()._instantiate_trainer(config, callbacks)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--task``, ``--json`` and ``--loss_guard``."""
        parser.add_argument("--task", default=self.task, help=f"what is trained: {' or '.join(TASKS)}")
        add_json(parser)
        parser.add_lightning_class_args(LossGuard, "loss_guard")

    @property
    def settings(self) -> Namespace:
        """What the command was told."""
        return self.config[self.config["subcommand"]]

    @property
    def root(self) -> Path:
        """Where everything of a run goes."""
        return Path(self.settings.trainer.default_root_dir or "runs")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; finds and checks the checkpoint to go on from, which Lightning reads next."""
        super().parse_arguments(parser, args)
        self.kept: dict[str, Any] | None = None
        if name := self.settings.get("ckpt_path"):
            path = _find_checkpoint(str(name), self.root)
            if path.is_file() or name != "last":  # without a last one, training begins
                self.kept = read_checkpoint(path, mmap=True)["mm"]
                self.settings.ckpt_path = str(path)
        elif self.config["subcommand"] == "fit" and not self.settings.trainer.fast_dev_run:
            _spare_checkpoints(self.root)
        if self.settings.json and "verbose" in self.settings:
            self.settings.verbose = False

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:  # of loggers, which write as they like
            if error.errno not in NO_ROOM:
                raise
            raise OutputError(
                f"{self.root}: logs can't be written ({error.strerror}): make room, then go on with --ckpt_path last"
            ) from error

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer, and attaches the tokenizer and image size to the data."""
        super().instantiate_classes()
        if self.kept is not None:
            self.model.check_same(self.kept, f"--ckpt_path {self.settings.ckpt_path}")
        self.model.attach(self.datamodule, progress)

    def report(self) -> None:
        """Prints the last figures as one JSON object, where that was asked for."""
        if self.settings.json and self.trainer.is_global_zero:
            print_json({name: float(value) for name, value in self.trainer.callback_metrics.items()})


def _find_checkpoint(name: str, root: Path) -> Path:
    """Finds the checkpoint that ``--ckpt_path`` names: a file, or ``last`` or ``best`` under ``default_root_dir``."""
    if name in ("last", "best"):
        return checkpoint_file(root, name)
    if not Path(name).is_file():
        raise UsageError(f"--ckpt_path {name}: no such file; 'last' goes on from where the last run was stopped")
    return Path(name)


def _spare_checkpoints(root: Path) -> None:
    """Makes sure that training from the beginning overwrites nothing.

    Raises:
        UsageError: there are checkpoints of an earlier run.
    """
    for path in (checkpoint_file(root, name) for name in ("last", "best")):
        if path.exists():
            raise UsageError(
                f"{path} is of an earlier run, and would be overwritten: go on from it with --ckpt_path last, give "
                f"another folder as --trainer.default_root_dir, or remove {path.parent}"
            )


def find_task(arguments: Sequence[str]) -> str:
    """Finds the task that arguments name, or the config files among them; what is wrong with those is said later.

    Raises:
        OptionError: there is no such task.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", nargs="?", dest="said", action="append", type=_configured_task, default=[])
    parser.add_argument("--task", nargs="?", dest="said", action="append")
    tasks = [str(name) for name in parser.parse_known_args(list(arguments))[0].said if name is not None]
    name = tasks[-1] if tasks else "images"
    if name not in TASKS:
        raise OptionError(f"task {name!r} is unknown; there are {' and '.join(TASKS)}")
    return name


def _configured_task(path: str) -> Any:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return document.get("task") if isinstance(document, dict) else None


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm fit``, ``mm validate`` or ``mm test``."""
    keep_large_allocations()
    TrainingParser.program = program
    TrainingCLI.task = find_task(arguments)
    module, data = TASKS[TrainingCLI.task]
    warnings.filterwarnings("ignore", ".*(does not have many workers|LightningCLI's args parameter|LeafSpec).*")
    stopping = TrainingCLI.stopping = StopOnSignal()
    with stopping.listening():
        try:
            cli = TrainingCLI(
                module,
                data,
                args=[program.removeprefix("mm "), *arguments],
                save_config_kwargs={"overwrite": True},
                trainer_defaults={"use_distributed_sampler": False},
                seed_everything_default=0,
                parser_class=TrainingParser,
                parser_kwargs={"prog": "mm"},
                auto_configure_optimizers=False,
            )
        except SIGTERMException:
            return _report_stop(stopping, program)
    cli.report()
    return 0


def _report_stop(stopping: StopOnSignal, program: str) -> int:
    """Says where a run was stopped, and how to go on; gives the exit status."""
    trainer, number = stopping.trainer, stopping.received
    assert number is not None
    if trainer is not None and not trainer.is_global_zero:
        return 0  # where one of its processes fails, Lightning kills the first one
    callbacks = trainer.checkpoint_callbacks if trainer is not None else []
    saved = [callback.saved for callback in callbacks if isinstance(callback, LastCheckpoint) and callback.saved]
    outcome = "this run has saved nothing"
    if trainer is not None and saved:
        outcome = f"step {trainer.global_step}; go on with --ckpt_path last, from {saved[0]}"
    print(f"{program}: stopped by {number.name}: {outcome}", file=sys.stderr)
    return 128 + number
