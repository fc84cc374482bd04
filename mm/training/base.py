"""What all training has in common: steps that can be repeated, the optimizer, and what checkpoints hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from mm.checkpoints.directory import describe_build
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import Preprocessing
from mm.errors import CheckpointError, OptionError, TrainingError
from mm.training.optimizer import OptimizerSettings, adamw, cosine_schedule, parameter_groups
from mm.training.resuming import goes_on, recount

LARGEST = 1e6  # weights of a model that learns anything are far smaller
HOW_IT_IS_TRAINED = ("dropout", "pooled_dropout", "frozen_stages")


class Training(L.LightningModule):
    """Trains a model that a checkpoint of this training is enough to build again.

    Subclasses set ``model``, ``architecture``, ``tokenizer``, ``preprocessing`` and ``family``. A pass of validation or
    test is the same: it begins with ``on_validation_epoch_start``, and ends with ``report``.

    Args:
        optimizer: AdamW and its schedule.
        seed: what dropout and other random numbers of a step depend on, with its number.

    Raises:
        OptionError: the seed is out of range.
    """

    model: Any
    architecture: Any
    tokenizer: Tokenizer
    preprocessing: Preprocessing | None
    family: str

    def __init__(self, optimizer: OptimizerSettings, seed: int) -> None:
        super().__init__()
        if not 0 <= seed < 2**32:
            raise OptionError(f"model.seed must be at least 0 and below 2**32, not {seed}")
        self.optimizer_settings = optimizer
        self.seed = seed

    @property
    def pretrained(self) -> torch.nn.Module:
        """The part of the model that trains more slowly, since its weights come from elsewhere; empty for none."""
        return torch.nn.Module()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes the step a function of its number, so that resuming repeats it."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        number = self.seed * 1_000_003 + self.global_step + part * 500_009
        torch.manual_seed((number * 1009 + self.global_rank) % 2**63)

    def report(self, split: str) -> None:
        """Logs what a pass over a split has measured."""
        raise NotImplementedError

    def on_validation_epoch_end(self) -> None:
        """Reports the pass."""
        self.report("val")

    def on_test_epoch_start(self) -> None:
        """Begins a pass."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measures a batch."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Reports the pass."""
        self.report("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds AdamW and the schedule over all the steps of the run."""
        optimizer = adamw(parameter_groups(self.model, self.pretrained, self.optimizer_settings))
        if math.isinf(self.trainer.estimated_stepping_batches):
            raise OptionError("the learning rate needs an end of training: set trainer.max_epochs or trainer.max_steps")
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = cosine_schedule(optimizer, self.optimizer_settings, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Takes learning rate and weight decay of the configuration, where a run goes on with others than it had."""
        wanted = parameter_groups(self.model, self.pretrained, self.optimizer_settings)
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            rates = [group["lr"] for group in wanted]
            changed, schedule.base_lrs = schedule.base_lrs != rates, rates
            for group, own, factor in zip(schedule.optimizer.param_groups, wanted, schedule.lr_lambdas, strict=True):
                group["weight_decay"] = own["weight_decay"]
                if changed:
                    group["lr"] = own["lr"] * factor(schedule.last_epoch)

    def check_same(self, kept: dict[str, Any], source: str) -> None:
        """Makes sure that a checkpoint is of this model.

        Args:
            kept: what ``on_save_checkpoint`` added.
            source: where it came from, for the message.

        Raises:
            CheckpointError: it is of another tokenizer or architecture, save for how that is trained.
        """
        known, own = _numbers(kept.get("architecture") or {}), _numbers(asdict(self.architecture))
        differing = [
            f"{name} {known.get(name, 'unknown')} instead of {own.get(name, 'unknown')}"
            for name in sorted(known.keys() | own.keys())
            if known.get(name) != own.get(name) and name.rpartition(".")[2] not in HOW_IT_IS_TRAINED
        ]
        if kept.get("tokenizer") != self.tokenizer.to_json():
            differing.append("another tokenizer")
        if differing:
            raise CheckpointError(f"{source}: is of another model than the configuration: {', '.join(differing)}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Settles where training goes on by the position in the data, whatever batches were before."""
        trainer, loops = self.trainer, checkpoint["loops"]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.state.fn != TrainerFn.FITTING or data is None:
            return
        data.load_state_dict(checkpoint[type(data).__qualname__])  # Lightning does so only after this
        before = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        if checkpoint["mm"]["validating"]:
            recount(loops, data.batches_done(before))
        elif trainer.limit_train_batches == 1.0:  # otherwise Lightning's epochs aren't those of the data
            goes_on(loops, data.epoch, data.batches_done(0), checkpoint["global_step"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what it takes to use the weights: architecture and tokenizer.

        Raises:
            TrainingError: weights aren't finite, or so large that training has gone wrong.
        """
        for weights in (checkpoint.get("state_dict", {}), checkpoint.get("current_model_state", {})):
            bad = [name for name, _ in self.named_parameters() if name in weights and not _sound(weights[name])]
            if bad:
                raise TrainingError(
                    f"step {self.global_step}: {len(bad)} of the model's weights aren't finite, or larger than "
                    f"{LARGEST:g}, such as {bad[0]}; they aren't saved, and a checkpoint from before is as it was: "
                    "lower model.optimizer.learning_rate"
                )
        described = describe_build(self.architecture, self.tokenizer, self.preprocessing, self.family)
        described["capabilities"] = list(self.model.capabilities)
        described["validating"] = self._trainer is not None and self.trainer.validating
        checkpoint["mm"] = described | {"tokenizer": self.tokenizer.to_json()}


def _sound(weights: torch.Tensor) -> bool:
    return bool((weights.abs() <= LARGEST).all())  # which nothing is that isn't a number


def _numbers(description: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Gives the numbers of a nested description under names such as ``decoder.width``."""
    numbers: dict[str, Any] = {}
    for name, value in description.items():
        nested = isinstance(value, Mapping)
        numbers |= _numbers(value, f"{within}{name}.") if nested else {f"{within}{name}": value}
    return numbers
