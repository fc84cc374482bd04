"""``mm fit`` survives kill -9: resumed from its last checkpoint, it ends with the very same losses and weights."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from fitting import assert_same_end, command, environment, last_checkpoint, logged, mm_fit, write_config
from running import made_data

STEPS = 12  # four epochs of three steps


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path: Path) -> None:
    made_data(tmp_path)
    status, errors = mm_fit(write_config(tmp_path), tmp_path / "whole")
    assert status == 0, errors
    root = tmp_path / "killed"
    last = root / "checkpoints/last.ckpt"
    # However late the kill comes, the run hasn't ended: it holds still two steps before.
    hold = {"hook": "on_train_batch_start", "step": STEPS - 2, "number": int(signal.SIGSTOP)}
    config = write_config(tmp_path, {"class_path": "fitting.SignalAt", "init_args": hold})
    with subprocess.Popen(command(config, root), env=environment()) as process:
        while not last.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    saved = last_checkpoint(root)["global_step"]
    assert 0 < saved < STEPS
    status, errors = mm_fit(write_config(tmp_path), root, "--ckpt_path", "last")
    assert status == 0, errors
    expected, found = logged(tmp_path / "whole"), logged(root, last=True)
    assert len(expected) == STEPS
    assert found == {step: loss for step, loss in expected.items() if step >= saved}
    assert_same_end(tmp_path / "whole", root)
