"""``mm fit`` stops between two steps when it is told to, saves, and goes on exactly there."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from fitting import assert_same_end, last_checkpoint, logged, mm_fit, write_config
from running import made_data

pytestmark = pytest.mark.slow
TERM, INT = 128 + signal.SIGTERM, 128 + signal.SIGINT
SHORT = ["--trainer.max_epochs", "2"]  # six steps
TWO_RANKS = [*SHORT, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]


def signal_at(hook: str, step: int, **options: Any) -> dict[str, Any]:
    """The part of a config that sends a signal."""
    return {"class_path": "fitting.SignalAt", "init_args": {"hook": hook, "step": step, **options}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shards, and of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("signals")
    made_data(folder)
    status, errors = mm_fit(write_config(folder), folder / "whole", *SHORT)
    assert status == 0, errors
    return folder


@pytest.mark.parametrize(
    ("hook", "number", "status", "saved"),
    [
        ("on_before_optimizer_step", signal.SIGTERM, TERM, 2),
        ("on_before_optimizer_step", signal.SIGINT, INT, 2),
        ("on_validation_batch_start", signal.SIGTERM, TERM, 3),
    ],
    ids=["training", "ctrl-c", "validation"],
)
def test_stopped_and_gone_on(whole: Path, tmp_path: Path, hook: str, number: int, status: int, saved: int) -> None:
    """Processes that load data get the signal too. In training it comes in the middle of the second step."""
    step = 1 if "optimizer" in hook else 3
    stopped = write_config(whole, signal_at(hook, step, number=int(number), group=True))
    found, errors = mm_fit(stopped, tmp_path, *SHORT, "--data.workers", "1")
    assert found == status, errors
    name = signal.Signals(number).name
    assert errors.splitlines()[-1] == (
        f"mm fit: stopped by {name}: step {saved}; go on with --ckpt_path last, from {tmp_path}/checkpoints/last.ckpt"
    )
    assert "Traceback" not in errors
    assert last_checkpoint(tmp_path)["global_step"] == saved
    status, errors = mm_fit(write_config(whole), tmp_path, *SHORT, "--ckpt_path", "last")
    assert status == 0, errors
    assert logged(tmp_path) == logged(whole / "whole")
    assert logged(tmp_path, "val/CIDEr") == logged(whole / "whole", "val/CIDEr")
    assert_same_end(whole / "whole", tmp_path)


def test_before_the_first_step_the_beginning_is_saved_and_nothing_overwritten(whole: Path, tmp_path: Path) -> None:
    """In the sanity check, which a run that goes on doesn't have."""
    config = write_config(whole, signal_at("on_validation_batch_start", 0))
    sane = [*SHORT, "--trainer.num_sanity_val_steps", "2"]
    status, errors = mm_fit(config, tmp_path, *sane)
    assert status == TERM, errors
    assert errors.splitlines()[-1].startswith("mm fit: stopped by SIGTERM: step 0; go on with --ckpt_path last")
    last = tmp_path / "checkpoints/last.ckpt"
    before = last.read_bytes()
    config = write_config(whole, signal_at("on_train_start", 0))
    status, errors = mm_fit(config, tmp_path, *sane, "--ckpt_path", "last")
    assert status == TERM, errors
    assert last.read_bytes() == before
    status, errors = mm_fit(write_config(whole), tmp_path, *SHORT, "--ckpt_path", "last")
    assert status == 0, errors
    assert logged(tmp_path, last=True) == logged(whole / "whole")
    assert_same_end(whole / "whole", tmp_path)


def test_before_training_it_ends_at_once(whole: Path, tmp_path: Path) -> None:
    status, errors = mm_fit(write_config(whole, signal_at("setup", 0)), tmp_path, *SHORT)
    assert status == TERM, errors
    assert errors.splitlines()[-1] == "mm fit: stopped by SIGTERM: this run has saved nothing"
    assert not list(tmp_path.rglob("*.ckpt"))


def test_all_ranks_stop_at_the_same_step(whole: Path, tmp_path: Path) -> None:
    """The signal comes to the second rank alone, whose process Lightning would kill the first one for, if it failed."""
    status, errors = mm_fit(write_config(whole), tmp_path / "whole", *TWO_RANKS)
    assert status == 0, errors
    root = tmp_path / "stopped"
    config = write_config(whole, signal_at("on_before_optimizer_step", 3, rank=1))
    status, errors = mm_fit(config, root, *TWO_RANKS)
    assert status == TERM, errors
    assert errors.splitlines()[-1].startswith("mm fit: stopped by SIGTERM: step 4; go on with --ckpt_path last")
    status, errors = mm_fit(write_config(whole), root, *TWO_RANKS, "--ckpt_path", "last")
    assert status == 0, errors
    assert logged(root) == logged(tmp_path / "whole")
    assert_same_end(tmp_path / "whole", root)
