from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from lightning.pytorch.loggers import CSVLogger
from running import Recorded, fit, made_data, trainer, training

from mm.checkpoints import load_checkpoint
from mm.data.order import SampleOrder
from mm.data.shards.manifest import Manifest
from mm.training.callbacks import AveragedWeights, BestCheckpoint, LastCheckpoint
from mm.training.optimizer import OptimizerSettings

pytestmark = pytest.mark.slow
STEPS = 12  # four epochs of three steps


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Lightning stops listening to Ctrl-C once it was pressed."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorded]:
    """A run that nothing interrupts, and the folder of its shards."""
    folder = tmp_path_factory.mktemp("whole")
    module = training(folder)
    fit(trainer(folder / "run"), module, made_data(folder))
    assert [step for step, _, _ in module.steps] == list(range(STEPS))
    return folder, module


class Killed(BaseException):
    """The process is gone: nothing more is written."""


def interrupted(folder: Path, root: Path, at: int, how: type[BaseException], **options: Any) -> Recorded:
    """A run that ends in the middle of a step, having written ``last.ckpt`` after every step unless told otherwise."""
    module = training(folder, **options.pop("model", {}))

    def stop(step: int) -> None:
        if step == at:
            raise how

    setattr(module, options.pop("where", "during"), stop)
    data = made_data(folder, **options.pop("data", {}))
    stopped = trainer(root, **options)
    if how is Killed:
        for callback in stopped.checkpoint_callbacks:
            callback.on_exception = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises((how, SystemExit)):
        fit(stopped, module, data)
    return module


def resumed(folder: Path, root: Path, **options: Any) -> Recorded:
    module = training(folder, **options.pop("model", {}))
    fit(trainer(root, **options), module, made_data(folder, **options.pop("data", {})), last=True)
    return module


def callbacks(minutes: float) -> list[Any]:
    return [AveragedWeights(0.5), LastCheckpoint(minutes), BestCheckpoint()]


def same_weights(one: Recorded, other: Recorded) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("at", [3, 5])
def test_killed_training_goes_on_as_if_nothing_had_happened(
    whole: tuple[Path, Recorded], tmp_path: Path, at: int
) -> None:
    folder, expected = whole
    first = interrupted(folder, tmp_path, at, Killed, callbacks=callbacks(0))
    second = resumed(folder, tmp_path, callbacks=callbacks(0))
    assert first.steps == expected.steps[:at]
    assert second.steps == expected.steps[at:]
    same_weights(expected, second)
    assert first.validations + second.validations == expected.validations


@pytest.mark.parametrize("at", [3, 7])
def test_ctrl_c_saves_and_repeats_the_step_at_hand(whole: tuple[Path, Recorded], tmp_path: Path, at: int) -> None:
    folder, expected = whole
    first = interrupted(folder, tmp_path, at, KeyboardInterrupt)
    assert (tmp_path / "checkpoints/last.ckpt").is_file()
    second = resumed(folder, tmp_path)
    assert first.steps + second.steps == expected.steps
    same_weights(expected, second)


def test_ctrl_c_during_validation_saves_the_right_weights(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    folder, expected = whole
    first = interrupted(folder, tmp_path, 6, KeyboardInterrupt, where="during_validation")
    second = resumed(folder, tmp_path)
    assert first.steps + second.steps == expected.steps
    same_weights(expected, second)
    assert all(images == 6 for _, images in second.validations)


def test_killed_during_validation_repeats_what_was_not_saved_and_validates(
    whole: tuple[Path, Recorded], tmp_path: Path
) -> None:
    folder, expected = whole
    first = interrupted(folder, tmp_path, 6, Killed, where="during_validation", callbacks=callbacks(0))
    second = resumed(folder, tmp_path)
    assert second.steps == expected.steps[5:]  # the last batch before validation is saved once that is over
    same_weights(expected, second)
    assert first.validations == expected.validations[:1] and second.validations == expected.validations[1:]


def test_training_interrupted_twice(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    folder, expected = whole
    first = interrupted(folder, tmp_path, 2, KeyboardInterrupt)
    module = training(folder)

    def stop(step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt

    module.during = stop
    with pytest.raises(SystemExit):
        fit(trainer(tmp_path), module, made_data(folder), last=True)
    second = resumed(folder, tmp_path)
    assert first.steps + module.steps + second.steps == expected.steps
    same_weights(expected, second)


def test_with_kept_features_and_dropout(tmp_path: Path) -> None:
    made_data(tmp_path)
    architecture = replace(tiny.ARCHITECTURE, vision="test_efficientnet", frozen_stages=-1, dropout=0.3)
    model = {"architecture": architecture, "features": str(tmp_path / "kept")}
    expected = training(tmp_path, **model)
    fit(trainer(tmp_path / "whole"), expected, made_data(tmp_path))
    first = interrupted(tmp_path, tmp_path / "run", 4, Killed, callbacks=callbacks(0), model=model)
    second = resumed(tmp_path, tmp_path / "run", model=model)
    assert first.steps + second.steps == expected.steps
    same_weights(expected, second)


def test_more_epochs_go_on_with_the_next_one(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    """The checkpoint of finished training continues the order of samples, and from the current weights."""
    folder, expected = whole
    first = training(folder)
    fit(trainer(tmp_path, max_epochs=2), first, made_data(folder))
    second = resumed(folder, tmp_path, max_epochs=4)
    assert [samples for _, samples, _ in first.steps + second.steps] == [samples for _, samples, _ in expected.steps]
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    weights, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert any(not torch.equal(weights[name], current[name]) for name in weights)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_another_batch_size_goes_on_at_the_same_sample(whole: tuple[Path, Recorded], tmp_path: Path, size: int) -> None:
    """Every epoch but for what fills no batch at its end, and in the epoch at hand what is left of it."""
    folder, expected = whole
    first = interrupted(folder, tmp_path, 5, Killed, callbacks=callbacks(0), limit_val_batches=0)
    module = training(folder)
    fit(trainer(tmp_path, limit_val_batches=0), module, made_data(folder, batch_size=size), last=True)
    sizes = [shard.nsamples for shard in Manifest.of(folder / "train").shards]
    order = [
        np.concatenate([part.indices for part in SampleOrder([sizes]).epoch(epoch)]).tolist() for epoch in (1, 2, 3)
    ]
    assert [samples for _, samples, _ in first.steps] == [samples for _, samples, _ in expected.steps[:5]]
    found = [samples for _, samples, _ in module.steps]
    rest = [order[0][8:], order[1], order[2]]
    assert found == [epoch[at : at + size] for epoch in rest for at in range(0, len(epoch) // size * size, size)]


def test_another_learning_rate_is_taken(whole: tuple[Path, Recorded], tmp_path: Path) -> None:
    folder, _ = whole
    interrupted(folder, tmp_path, 5, KeyboardInterrupt)
    rates = {}
    for factor in (1.0, 0.5):
        settings = OptimizerSettings()
        settings = replace(settings, learning_rate=factor * settings.learning_rate, weight_decay=0.25)
        module = training(folder, optimizer=settings)
        seen: list[dict[str, float]] = []

        def note(step: int, module: Recorded = module, seen: list[dict[str, float]] = seen) -> None:
            seen.append({name: module.trainer.optimizers[0].param_groups[0][name] for name in ("lr", "weight_decay")})

        module.during = note
        fit(trainer(tmp_path, callbacks=[]), module, made_data(folder), last=True)
        rates[factor] = seen
    assert [row["lr"] for row in rates[0.5]] == pytest.approx([row["lr"] / 2 for row in rates[1.0]])
    assert {row["weight_decay"] for row in rates[0.5]} <= {0.0, 0.25}


def test_last_is_found_with_loggers_too(tmp_path: Path) -> None:
    """Left to itself, Lightning looks in the folder of the first logger's next version."""
    for expected in (list(range(3)), list(range(3, 6))):
        module = training(tmp_path)
        runner = trainer(tmp_path / "run", max_epochs=expected[-1] // 3 + 1, logger=CSVLogger(tmp_path / "logs"))
        fit(runner, module, made_data(tmp_path), last=True)
        assert [step for step, _, _ in module.steps] == expected


def test_last_holds_averaged_weights_and_the_current_ones(tmp_path: Path) -> None:
    module = interrupted(tmp_path, tmp_path / "run", 5, KeyboardInterrupt)
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    current = checkpoint["current_model_state"]
    for name, value in module.state_dict().items():
        assert torch.equal(current[name], value)
    loaded = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    averaged = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, averaged[name])
    assert not torch.equal(averaged["image_projection.weight"], current["model.image_projection.weight"])


def test_a_failure_before_training_leaves_last_alone(tmp_path: Path) -> None:
    interrupted(tmp_path, tmp_path / "run", 5, KeyboardInterrupt)
    path = tmp_path / "run/checkpoints/last.ckpt"
    before = path.read_bytes()
    module = training(tmp_path)

    def fail() -> None:
        raise RuntimeError("no")

    module.on_fit_start = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no"):
        fit(trainer(tmp_path / "run"), module, made_data(tmp_path), last=True)
    module = training(tmp_path)
    configure = module.configure_optimizers

    def other() -> Any:
        made = configure()
        made["optimizer"].param_groups.pop()
        return made

    module.configure_optimizers = other  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="parameter group"):
        fit(trainer(tmp_path / "run"), module, made_data(tmp_path), last=True)
    assert path.read_bytes() == before
