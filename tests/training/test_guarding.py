from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from running import Recorded, fit, made_data, trainer, training
from torch import Tensor

from mm.data.dataset import Batch
from mm.errors import OptionError, TrainingError
from mm.training.callbacks import AveragedWeights, LastCheckpoint
from mm.training.guarding import LossGuard

NAN, INFINITE = float("nan"), float("inf")


class Spoiled(Recorded):
    """Training whose loss, or its gradients, are spoiled."""

    spoil: Callable[[int, Tensor], Tensor] = staticmethod(lambda step, loss: loss)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.spoil(self.global_step, super().training_step(batch, batch_idx))


class BadGradient(torch.autograd.Function):
    """Passes a loss through, and gives gradients that aren't finite."""

    @staticmethod
    def forward(context: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * NAN


def bad_gradient(loss: Tensor) -> Tensor:
    result: Tensor = BadGradient.apply(loss)
    return result


def spoiled(folder: Path, spoil: Callable[[int, Tensor], Tensor]) -> Spoiled:
    module = training(folder)
    module.__class__ = Spoiled
    module.spoil = spoil  # type: ignore[attr-defined]
    return module  # type: ignore[return-value]


def names(guard: LossGuard) -> list[str]:
    """The samples of the step at hand."""
    return guard._samples


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda loss: loss * NAN, "the loss is nan"),
        (lambda loss: loss + INFINITE, "the loss is inf"),
        (bad_gradient, "but its gradients aren't finite"),
    ],
    ids=["nan", "inf", "gradients"],
)
def test_a_bad_step_stops_training_and_names_its_samples(
    tmp_path: Path, spoil: Callable[[Tensor], Tensor], said: str
) -> None:
    """The weights are those from before; the last good checkpoint is as it was."""
    module = spoiled(tmp_path, lambda step, loss: spoil(loss) if step == 4 else loss)
    guard, last = LossGuard(), LastCheckpoint(0)
    runner = trainer(tmp_path / "run", callbacks=[AveragedWeights(0.5), last, guard])
    with pytest.raises(TrainingError, match=said) as caught:
        fit(runner, module, made_data(tmp_path))
    message = str(caught.value)
    assert message.startswith("step 4: ") and "\n" not in message
    assert len(names(guard)) == 4 and f"samples: {', '.join(names(guard))};" in message
    assert "--loss_guard.action skip" in message
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    for name, value in module.state_dict().items():
        assert torch.equal(checkpoint["current_model_state"][name], value), name


@pytest.mark.parametrize("spoil", [lambda loss: loss * NAN, bad_gradient], ids=["nan", "gradients"])
def test_a_bad_step_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Tensor], Tensor]
) -> None:
    module = spoiled(tmp_path, lambda step, loss: spoil(loss) if step == 4 else loss)
    weights: list[Tensor] = []
    module.during = lambda step: weights.append(module.model.image_projection.weight.detach().clone())
    guard = LossGuard("skip")
    runner = trainer(tmp_path / "run", callbacks=[LastCheckpoint(0), guard])
    with caplog.at_level(logging.WARNING, logger="mm"):
        fit(runner, module, made_data(tmp_path))
    assert torch.equal(weights[4], weights[5]) and not torch.equal(weights[5], weights[6])
    assert len(module.steps) == 12 and guard.skipped == 1
    assert float(runner.callback_metrics["train/skipped"]) == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "mm.training.guarding"]
    assert warning.startswith("step 4: ") and "samples: " in warning and "the step is left out, 1 so far" in warning
    for name, value in module.state_dict().items():
        assert torch.isfinite(value).all(), name


def test_all_batches_of_a_step_are_left_out_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = 0

    def spoil(step: int, loss: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return loss * NAN if seen == 1 else loss  # the first batch of two

    module = spoiled(tmp_path, spoil)
    before = {name: value.clone() for name, value in module.named_parameters()}
    runner = trainer(
        tmp_path / "run", callbacks=[LossGuard("skip")], accumulate_grad_batches=2, max_steps=1, max_epochs=None
    )
    with caplog.at_level(logging.WARNING, logger="mm"):
        fit(runner, module, made_data(tmp_path))
    assert seen == 2
    for name, value in module.named_parameters():
        assert torch.equal(value, before[name]), name
    samples = caplog.messages[-1].partition("samples: ")[2].partition(";")[0]
    assert len(samples.split(", ")) == 8


def test_bad_steps_in_a_row_stop_training(tmp_path: Path) -> None:
    module = spoiled(tmp_path, lambda step, loss: loss * NAN if step >= 1 else loss)
    with pytest.raises(TrainingError, match=r"step 10: the loss is nan; .* 10th step in a row"):
        fit(trainer(tmp_path / "run", callbacks=[LossGuard("skip")]), module, made_data(tmp_path))


def judged(guard: LossGuard, *losses: float) -> list[bool]:
    """Which of some losses a guard finds too high."""
    found = []
    for loss in losses:
        problem = guard._problem(loss)
        found.append(problem is not None)
        if problem is None:
            guard._recent.append(loss)
    return found


def test_a_spike_is_far_above_the_recent_median() -> None:
    guard = LossGuard(spike=3.0)
    assert not any(judged(guard, *[2.0] * 49, 1000.0))  # too few to tell what is usual
    assert judged(guard, 5.9, 6.1, 2.0, 6.0) == [False, True, False, False]
    low = LossGuard(spike=3.0)
    assert judged(low, *[0.01] * 50, 1.0, 1.02) == [False] * 51 + [True]
    assert not any(judged(LossGuard(spike=None), *[2.0] * 60, 1e9))


def test_a_resumed_guard_decides_the_same() -> None:
    first, second = LossGuard("skip", 3.0), LossGuard("skip", 3.0)
    judged(first, *[2.0] * 80)
    first.skipped, first._in_a_row = 7, 3
    second.load_state_dict(first.state_dict())
    assert judged(second, 6.5) == [True]
    assert second.state_dict() == first.state_dict()


@pytest.mark.parametrize("spike", [1.0, 0.0, -3.0, NAN])
def test_a_spike_is_more_than_usual(spike: float) -> None:
    with pytest.raises(OptionError, match=r"loss_guard\.spike must be above 1"):
        LossGuard(spike=spike)


def test_an_overflow_that_a_scaler_deals_with_is_left_to_it(tmp_path: Path) -> None:
    """With 16-bit floating point, gradients overflow now and then until the scale fits."""
    module = spoiled(tmp_path, lambda step, loss: bad_gradient(loss) if step == 2 else loss)
    options: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False}
    runner = trainer(tmp_path / "run", callbacks=[LossGuard()], **options)
    runner.precision_plugin.scaler = object()  # type: ignore[attr-defined]
    fit(runner, module, made_data(tmp_path))
    assert len(module.steps) == 3


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, averaged: bool) -> None:
    module = training(tmp_path)

    def break_weights(trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            with torch.no_grad():
                module.model.image_projection.weight[0, 0] = NAN

    breaking = L.Callback()
    breaking.on_train_batch_end = break_weights  # type: ignore[method-assign]
    kept: list[L.Callback] = [AveragedWeights(0.5)] if averaged else []
    runner = trainer(tmp_path / "run", callbacks=[*kept, breaking, LastCheckpoint(0)])
    with pytest.raises(TrainingError, match=r"step 5: .*weights aren't finite, or larger than 1e\+06, such as model\."):
        fit(runner, module, made_data(tmp_path))
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
