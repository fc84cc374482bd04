"""Training in processes of their own, and notes of what every step saw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from running import tokenizer_file
from torch import Tensor

CONFIG = Path(__file__).parents[1] / "configs" / "vision_language" / "tiny.yaml"


class NotedSteps(L.Callback):
    """Writes the number, samples and loss of every step that is done to ``steps-RANK.jsonl`` in a folder.

    Args:
        folder: where to.
        ends_after: the step after which a SIGTERM comes; None for never.
    """

    def __init__(self, folder: str, ends_after: int | None = None) -> None:
        self.folder = Path(folder)
        self.ends_after = ends_after

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a line."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        assert isinstance(loss, Tensor)
        row = {"step": trainer.global_step, "keys": batch["keys"], "loss": loss.item().hex()}
        with (self.folder / f"steps-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if trainer.global_step == self.ends_after and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)


def noted(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """All steps that were written so far."""
    return [json.loads(line) for line in (folder / f"steps-{rank}.jsonl").read_text().splitlines()]


def fit_command(
    folder: Path, root: Path, train: Path, *more: str, minutes: float = 10.0, ends_after: int | None = None
) -> list[str]:
    """``mm fit`` of a tiny model that notes its steps in ``root``.

    Args:
        folder: for the configuration.
        root: of the run.
        train: shards to train on.
        more: options that are added.
        minutes: how often ``last.ckpt`` is saved.
        ends_after: the step after which a SIGTERM comes; None for never.
    """
    document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    document["model"]["tokenizer"] = tokenizer_file(folder)
    document["model"]["architecture"] |= {"vision": "test_efficientnet", "image_size": 32, "width": 32, "dropout": 0.1}
    document["model"]["validation"]["caption_images"] = 2
    document["data"] |= {"train": str(train), "val": None, "batch_size": 4, "workers": 0}
    for callback in document["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"] = {"minutes": minutes}
    callbacks = [one for one in document["trainer"]["callbacks"] if not one["class_path"].endswith("BestCheckpoint")]
    noting = {"folder": str(root), "ends_after": ends_after}
    callbacks.append({"class_path": "noting.NotedSteps", "init_args": noting})
    document["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": callbacks}
    document["trainer"] |= {"default_root_dir": str(root), "max_epochs": 2}
    root.mkdir(exist_ok=True)
    path = folder / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return [sys.executable, "-m", "mm", "fit", "--config", str(path), *more]


def environment() -> dict[str, str]:
    """The environment of such a process: it finds this module, and computes in one thread."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: list[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever its status."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment())
