"""A loss that isn't a number any more, in real ``mm fit`` processes."""

from __future__ import annotations

import json
import math
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from fitting import last_checkpoint, logged, mm_fit, write_config
from running import made_data

pytestmark = pytest.mark.slow


def named(line: str) -> list[str]:
    """The samples in a message."""
    return line.partition("samples: ")[2].partition(";")[0].split(", ")


def test_a_loss_that_is_not_finite_stops_or_is_left_out(tmp_path: Path) -> None:
    """The checkpoint from before the step is what a run goes on from without the samples that are named."""
    made_data(tmp_path)
    spoiling = {"class_path": "fitting.Spoil", "init_args": {"step": 2}}
    config, root = write_config(tmp_path, spoiling), tmp_path / "run"
    short = ["--trainer.max_epochs", "2"]
    status, errors = mm_fit(config, root, *short)
    assert status == 1, errors
    line = errors.splitlines()[-1]
    assert line.startswith("mm fit: step 2: the loss is nan; samples: ")
    samples = named(line)
    assert len(samples) == 4
    assert "Traceback" not in errors
    assert last_checkpoint(root)["global_step"] == 2
    status, errors = mm_fit(config, root, *short, "--ckpt_path", "last", "--loss_guard.action", "skip")
    assert status == 0, errors
    (warning,) = [line for line in errors.splitlines() if "the step is left out" in line]
    assert f"samples: {', '.join(samples)}; the step is left out, 1 so far" in warning
    losses = logged(root)
    assert [step for step, loss in losses.items() if math.isnan(float(loss))] == [2]
    assert list(losses) == list(range(6))
    assert last_checkpoint(root)["global_step"] == 6


def test_a_bad_loss_on_one_of_two_ranks(tmp_path: Path) -> None:
    """Both ranks stop, or leave the same step out; only the samples of the rank with the bad loss are named."""
    made_data(tmp_path)
    root = tmp_path / "run"
    root.mkdir()
    noting = [
        {"class_path": f"fitting.Noted{what}", "init_args": {"folder": str(root)}} for what in ("Steps", "Weights")
    ]
    spoiling = {"class_path": "fitting.Spoil", "init_args": {"step": 2, "rank": 1}}
    config = write_config(tmp_path, spoiling, *noting)
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    status, errors = mm_fit(config, root, *two)
    assert status in (1, -signal.SIGKILL), errors  # Lightning kills the first rank where it ends after the other
    said = [line for line in errors.splitlines() if line.startswith("mm fit: step 2: the loss is nan; samples: ")]
    assert len(set(said)) == 1, errors  # both ranks say the same
    assert "Traceback" not in errors
    assert last_checkpoint(root)["global_step"] == 2
    status, errors = mm_fit(config, root, *two, "--ckpt_path", "last", "--loss_guard.action", "skip")
    assert status == 0, errors
    assert json.loads((root / "steps-1.jsonl").read_text().splitlines()[2]) == named(said[0])
    (warning,) = [line for line in errors.splitlines() if "the step is left out" in line]
    assert named(warning) == named(said[0]) and warning.endswith("the step is left out, 1 so far")
    weights = [(root / f"weights-{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert weights[0] == weights[1] and len(weights[0]) == 4
    assert [one == other for one, other in pairwise(weights[0])] == [False, True, False]  # only the third is left out
    assert all(value.isfinite().all() for value in last_checkpoint(root)["state_dict"].values())
