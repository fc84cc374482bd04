"""Real ``mm fit`` processes on made shards, and what sends them signals at known moments."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from running import tokenizer_file

CONFIG = Path(__file__).parents[1] / "configs" / "vision_language" / "tiny.yaml"
ANOTHER_DEVICE = Path("/dev/shm")


class SignalAt(L.Callback):
    """Sends a signal once, in a hook at a step: to its own process, or to the whole group.

    Args:
        hook: such as ``on_before_optimizer_step``.
        step: when.
        number: the signal.
        group: whether processes that load data get it too.
        rank: which of the ranks sends it.
    """

    def __init__(self, hook: str, step: int, number: int = 15, group: bool = False, rank: int = 0) -> None:
        self.step, self.number, self.group, self.rank = step, number, group, rank
        self.sent = False
        setattr(self, hook, self._send)

    def _send(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if not self.sent and trainer.global_step == self.step and trainer.global_rank == self.rank:
            self.sent = True
            os.kill(0 if self.group else os.getpid(), self.number)


class _Noting(L.Callback):
    """Writes a line after every step to ``NAME-RANK.SUFFIX`` in a folder.

    Args:
        folder: where to.
    """

    file: str

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def line(self, pl_module: L.LightningModule, batch: Any) -> str:
        """What is noted of a step."""
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a line."""
        with (self.folder / self.file.format(trainer.global_rank)).open("a") as file:
            file.write(self.line(pl_module, batch) + "\n")


class NotedSteps(_Noting):
    """Writes the samples of every step to ``steps-RANK.jsonl``."""

    file = "steps-{}.jsonl"

    def line(self, pl_module: L.LightningModule, batch: Any) -> str:
        """The keys."""
        return json.dumps(batch["keys"])


class NotedWeights(_Noting):
    """Writes what the weights are after every step, as a hash, to ``weights-RANK.txt``."""

    file = "weights-{}.txt"

    def line(self, pl_module: L.LightningModule, batch: Any) -> str:
        """The hash."""
        digest = hashlib.sha256()
        for weight in pl_module.parameters():
            digest.update(weight.detach().numpy().tobytes())
        return digest.hexdigest()


class Spoil(L.Callback):
    """Makes the loss of a step, and so its gradients, not a number.

    Args:
        step: which.
        rank: where.
    """

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Spoils the images."""
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            batch["pixels"] = torch.full_like(batch["pixels"], torch.nan, dtype=torch.float32)


def write_config(folder: Path, *callbacks: dict[str, Any]) -> Path:
    """Writes a config of four epochs of three steps each that saves ``last.ckpt`` after every step."""
    document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    document["model"]["tokenizer"] = tokenizer_file(folder)
    document["model"]["architecture"] |= {"vision": "test_efficientnet", "image_size": 32, "width": 32, "dropout": 0.1}
    document["model"]["validation"]["caption_images"] = 2
    document["data"] |= {"train": str(folder / "train"), "val": str(folder / "val"), "batch_size": 4, "workers": 0}
    document["data"]["val_batch_size"] = 3
    for callback in document["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"] = {"minutes": 0}
    document["trainer"]["callbacks"] += callbacks
    document["trainer"] |= {"max_epochs": 4, "log_every_n_steps": 1, "accelerator": "cpu"}
    document["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def command(config: Path, root: Path, *more: str) -> list[str]:
    """``mm fit`` that writes to ``root``."""
    return [sys.executable, "-m", "mm", "fit", "--config", str(config), "--trainer.default_root_dir", str(root), *more]


def environment() -> dict[str, str]:
    """One thread, the temporary folder on another device where there is one, and this module to import."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    if ANOTHER_DEVICE.is_dir():  # a checkpoint begun there couldn't be renamed into place
        variables["TMPDIR"] = str(ANOTHER_DEVICE)
    return variables


def mm_fit(config: Path, root: Path, *more: str, **options: Any) -> tuple[int, str]:
    """Runs ``mm fit`` in a process group of its own: exit status and standard error."""
    run = command(config, root, *more)
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(run, env=environment(), start_new_session=True, timeout=300, **streams, **options)
    return done.returncode, done.stderr


def logged(root: Path, name: str = "train/loss", last: bool = False) -> dict[int, str]:
    """A figure at each step, as the runs under ``root`` logged it; or as the last one did."""
    runs = sorted((root / "csv").glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    values: dict[int, str] = {}
    for run in runs[-1:] if last else runs:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            found = {int(row["step"]): row[name] for row in csv.DictReader(file) if row.get(name)}
        assert not values.keys() & found.keys(), "a step was repeated"
        values |= found
    return values


def last_checkpoint(root: Path) -> dict[str, Any]:
    """What ``last.ckpt`` holds."""
    checkpoint: dict[str, Any] = torch.load(root / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint


def assert_same_end(one: Path, other: Path) -> None:
    """Makes sure that two runs ended with the same weights, averaged and current, to the bit."""
    ends = last_checkpoint(one), last_checkpoint(other)
    assert ends[0]["global_step"] == ends[1]["global_step"]
    for kind in ("state_dict", "current_model_state"):
        for name, value in ends[0][kind].items():
            assert torch.equal(ends[1][kind][name], value), name
