"""A loss that isn't a number any more, in real ``mm fit`` processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fitting import last_checkpoint, logged, mm_fit, write_config
from running import made_data

pytestmark = pytest.mark.slow


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
    samples = line.partition("samples: ")[2].partition(";")[0].split(", ")
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
