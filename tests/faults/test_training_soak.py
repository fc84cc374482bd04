"""Training that is interrupted again and again sees what a run sees that nothing interrupts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import fit, made_data, trainer, training

from mm.training.callbacks import AveragedWeights, LastCheckpoint

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 10, 30
INTERRUPTIONS = 20
Step = tuple[list[int], float]


class Killed(BaseException):
    """The process is gone: nothing more is written."""


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Lightning stops listening to Ctrl-C once it was pressed."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def run(
    folder: Path, root: Path, workers: int, ends: int | None, how: type[BaseException]
) -> tuple[dict[int, Step], Any]:
    """Goes on with a run until it ends by itself, or in the middle of a step; gives the steps that were done."""
    module = training(folder)

    def end(step: int) -> None:
        if step == ends:
            raise how

    module.during = end
    last = LastCheckpoint(0)
    if how is Killed:
        last.on_exception = lambda *_: None  # type: ignore[method-assign]
    data = made_data(folder, views=0, workers=workers)
    going = trainer(root, max_epochs=EPOCHS, limit_val_batches=0, callbacks=[AveragedWeights(0.5), last])
    try:
        fit(going, module, data, last=True)
    except (Killed, SystemExit):
        assert ends is not None
    return {step: (samples, loss) for step, samples, loss in module.steps}, module.state_dict()


def test_interrupted_twenty_times(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    expected, weights = run(tmp_path, tmp_path / "whole", 0, None, Killed)
    assert sorted(expected) == list(range(STEPS))
    found: dict[int, Step] = {}
    points = sorted(random.permutation(STEPS)[:INTERRUPTIONS].tolist())
    for number, point in enumerate([*points, None]):
        workers = 1 if number % 7 == 3 else 0
        steps, state = run(tmp_path, tmp_path / "run", workers, point, (Killed, KeyboardInterrupt)[number % 2])
        assert not found.keys() & steps.keys()  # a checkpoint is saved after every step
        found |= steps
    assert found == expected
    for name, value in weights.items():
        assert torch.equal(state[name], value), name
