"""``mm fit`` survives kill -9: resumed from its last checkpoint, it ends with the very same losses and weights."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from running import made_data, tokenizer_file

CONFIG = Path(__file__).parents[2] / "configs" / "vision_language" / "tiny.yaml"
ANOTHER_DEVICE = Path("/dev/shm")
STEPS = 12  # four epochs of three steps


def command(folder: Path, root: Path, *more: str) -> list[str]:
    """``mm fit`` on made shards, writing ``last.ckpt`` after every step."""
    document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    document["model"]["tokenizer"] = tokenizer_file(folder)
    document["model"]["architecture"] |= {"vision": "test_efficientnet", "image_size": 32, "width": 32, "dropout": 0.1}
    document["model"]["validation"]["caption_images"] = 2
    document["data"] |= {"train": str(folder / "train"), "val": str(folder / "val"), "batch_size": 4, "workers": 0}
    for callback in document["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"] = {"minutes": 0}
    document["trainer"] |= {"max_epochs": 4, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}
    document["trainer"]["default_root_dir"] = str(root)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return [sys.executable, "-m", "mm", "fit", "--config", str(path), *more]


def losses(root: Path) -> dict[int, str]:
    """The loss of each step, as the last run under ``root`` logged it."""
    last = max((root / "csv").glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    with (last / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path: Path) -> None:
    made_data(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if ANOTHER_DEVICE.is_dir():  # a checkpoint begun there couldn't be renamed into place
        environment["TMPDIR"] = str(ANOTHER_DEVICE)
    subprocess.run(command(tmp_path, tmp_path / "whole"), check=True, env=environment)
    root = tmp_path / "killed"
    last = root / "checkpoints/last.ckpt"
    with subprocess.Popen(command(tmp_path, root), env=environment) as process:
        while not last.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    saved = torch.load(last, weights_only=True)["global_step"]
    assert 0 < saved < STEPS
    subprocess.run(command(tmp_path, root, "--ckpt_path", "last"), check=True, env=environment)
    expected, found = losses(tmp_path / "whole"), losses(root)
    assert len(expected) == STEPS
    assert found == {step: loss for step, loss in expected.items() if step >= saved}
    ends = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (tmp_path / "whole", root)]
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(ends[1]["state_dict"][name], value), name
