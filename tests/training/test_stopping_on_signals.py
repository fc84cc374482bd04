from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from running import Recorded, fit, made_data, trainer, training

from mm.training.callbacks import AveragedWeights, BestCheckpoint, LastCheckpoint
from mm.training.stopping import StopOnSignal, StoppedAtOnce

STEPS = 6  # two epochs of three steps, each with two batches of validation


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Nothing is left of the signal handlers."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


class Signalled(L.Callback):
    """Sends a signal to this process in a hook, the times that ``when`` holds."""

    def __init__(self, hook: str, when: Callable[[L.Trainer], bool], number: int) -> None:
        self.when, self.number = when, number
        setattr(self, hook, self._send)

    def _send(self, trainer: L.Trainer, *_: Any) -> None:
        if self.when(trainer):
            os.kill(os.getpid(), self.number)


def run(folder: Path, root: Path, *callbacks: L.Callback, last: bool = False, **options: Any) -> Recorded:
    """Trains under all of the callbacks of ``mm fit`` that stopping is a matter of."""
    module = training(folder)
    kept = [AveragedWeights(0.5), LastCheckpoint(options.pop("minutes", 10)), BestCheckpoint()]
    runner = trainer(root, max_epochs=2, callbacks=[*kept, StopOnSignal(), *callbacks], **options)
    try:
        fit(runner, module, made_data(folder), last=last)
    except SIGTERMException:
        assert callbacks
    return module


def compare(one: Recorded, *parts: Recorded) -> None:
    """Makes sure that runs one after the other did the same as a whole one, to the bit."""
    assert [step for part in parts for step in part.steps] == one.steps
    assert [validation for part in parts for validation in part.validations] == one.validations
    for name, value in one.state_dict().items():
        assert torch.equal(parts[-1].state_dict()[name], value), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorded]:
    """A run that nothing stops, and the folder of its shards."""
    folder = tmp_path_factory.mktemp("whole")
    module = run(folder, folder / "run")
    assert len(module.steps) == STEPS and module.validations == [(3, 6), (6, 6)]
    return folder, module


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, 10])
@pytest.mark.parametrize(
    ("hook", "at", "steps"),
    [
        ("on_train_batch_start", 1, 2),
        ("on_before_optimizer_step", 1, 2),
        ("on_train_batch_end", 2, 3),  # after the flag was looked at
        ("on_before_optimizer_step", 2, 3),  # the last step before validation
        ("on_validation_start", 3, 3),
        ("on_validation_batch_start", 3, 3),
        ("on_validation_end", 3, 4),
        ("on_train_epoch_end", 3, 4),
        ("on_validation_batch_start", 6, 6),
    ],
)
def test_stopped_anywhere_it_goes_on_to_the_bit(
    whole: tuple[Path, Recorded], tmp_path: Path, hook: str, at: int, steps: int, minutes: int
) -> None:
    """Averaged weights, whether they are in the model or not, current weights, losses and validations are the same."""
    folder, expected = whole
    stop = Signalled(hook, lambda trainer: trainer.global_step == at, signal.SIGTERM)
    first = run(folder, tmp_path, stop, minutes=minutes)
    assert len(first.steps) == steps
    compare(expected, first, run(folder, tmp_path, last=True, minutes=minutes))


def test_a_step_of_several_batches_is_never_divided(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    folder, _ = whole
    several = {"accumulate_grad_batches": 2}
    expected = run(folder, tmp_path / "whole", **several)
    stop = Signalled("on_before_backward", lambda trainer: trainer.global_step == 0, signal.SIGTERM)
    first = run(folder, tmp_path / "run", stop, **several)
    assert [step for step, _, _ in first.steps] == [0, 0]
    compare(expected, first, run(folder, tmp_path / "run", last=True, **several))


def test_what_goes_wrong_within_a_step_is_not_saved(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    """Between the gradients of its first batch and the averages of the new weights."""
    folder, _ = whole

    def fail(trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("broken")

    for hook in ("on_before_optimizer_step", "on_before_zero_grad"):
        breaking = L.Callback()
        setattr(breaking, hook, fail)
        last = LastCheckpoint()
        runner = trainer(tmp_path / hook, callbacks=[last, breaking])
        with pytest.raises(RuntimeError, match="broken"):
            fit(runner, training(folder), made_data(folder))
        assert (last.saved is None) == (hook == "on_before_optimizer_step")


def test_ctrl_c_again_ends_at_once(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    folder, _ = whole
    stop = [
        Signalled(hook, lambda trainer: trainer.global_step == 1, signal.SIGINT)
        for hook in ("on_train_batch_start", "on_before_optimizer_step")
    ]
    module = training(folder)
    with pytest.raises(StoppedAtOnce):
        fit(trainer(tmp_path, callbacks=[LastCheckpoint(), StopOnSignal(), *stop]), module, made_data(folder))
    assert len(module.steps) == 2
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_stop_before_the_first_step_saves_nothing(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    """Not even where the signal comes in the last batch of the sanity check."""
    folder, _ = whole
    stop = Signalled("on_sanity_check_end", lambda trainer: True, signal.SIGTERM)
    assert run(folder, tmp_path, stop, num_sanity_val_steps=1).steps == []
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_signal_before_training_ends_it_at_once() -> None:
    stopping = StopOnSignal()
    with pytest.raises(StoppedAtOnce), stopping.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopping.received == signal.SIGTERM
