from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from running import fit, made_data, trainer, training

from mm.checkpoints import load_checkpoint
from mm.errors import OptionError, OutputError
from mm.training.callbacks import AveragedWeights, BestCheckpoint, LastCheckpoint
from mm.training.saving import WholeCheckpoints


@pytest.mark.parametrize(("every", "scores", "best"), [(1, [0.1, 0.4, 0.2, 0.3], 6), (2, [0.5, 0.2], 6)])
def test_best_is_the_best_validation(tmp_path: Path, every: int, scores: list[float], best: int) -> None:
    """Three steps an epoch; validation after every epoch, or every other one."""
    module = training(tmp_path)
    left = iter(scores)
    module.on_validation_epoch_end = lambda: module.log("val/CIDEr", next(left))  # type: ignore[method-assign]
    runner = trainer(tmp_path / "run", callbacks=[BestCheckpoint()], check_val_every_n_epoch=every)
    fit(runner, module, made_data(tmp_path))
    folder = tmp_path / "run/checkpoints"
    assert [path.name for path in folder.iterdir()] == ["best.ckpt"]
    checkpoint = torch.load(folder / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == best and next(left, None) is None
    assert runner.checkpoint_callback.best_model_score == pytest.approx(max(scores))


def test_best_holds_the_averaged_weights_that_were_measured(tmp_path: Path) -> None:
    module = training(tmp_path)
    measured: dict[int, torch.Tensor] = {}

    def note(step: int) -> None:
        measured[step] = module.model.image_projection.weight.detach().clone()

    module.during_validation = note
    callbacks = [AveragedWeights(0.5), LastCheckpoint(), BestCheckpoint()]
    fit(trainer(tmp_path, max_epochs=2, callbacks=callbacks), module, made_data(tmp_path))
    checkpoint = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    kept = load_checkpoint(tmp_path / "checkpoints/best.ckpt").model.image_projection.weight
    assert torch.equal(kept, measured[checkpoint["global_step"]])
    assert not torch.equal(kept, checkpoint["current_model_state"]["model.image_projection.weight"])
    last = load_checkpoint(tmp_path / "checkpoints/last.ckpt").model.image_projection.weight
    assert torch.equal(last, measured[6]) and torch.equal(module.model.image_projection.weight, last)


def test_averages_are_moving_averages(tmp_path: Path) -> None:
    module = training(tmp_path)
    seen = []
    module.during = lambda step: seen.append(module.model.image_projection.weight.detach().clone())
    runner = trainer(tmp_path, max_epochs=2, callbacks=[AveragedWeights(0.75, start=2), LastCheckpoint()])
    fit(runner, module, made_data(tmp_path))
    final = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    seen.append(final["current_model_state"]["model.image_projection.weight"])
    average = seen[3]
    for weight in seen[4:]:
        average = 0.75 * average + 0.25 * weight
    torch.testing.assert_close(module.model.image_projection.weight.detach(), average)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_is_a_share(decay: float) -> None:
    with pytest.raises(OptionError, match="decay must be at least 0 and below 1"):
        AveragedWeights(decay)


def test_a_checkpoint_is_whole_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written elsewhere first, and a full disk leaves the old checkpoint."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there is no such folder"))
    path = tmp_path / "new/last.ckpt"
    WholeCheckpoints().save_checkpoint({"a": torch.ones(3)}, path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        WholeCheckpoints().save_checkpoint({"a": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(path.parent.iterdir()) == [path]
