"""Training that notices when it goes wrong."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from mm.errors import OptionError, TrainingError

log = logging.getLogger(__name__)

RECENT = 100  # losses that a new one is compared with
ENOUGH = 50  # of them are needed to tell what is usual
LEAST = 1.0  # above the median is a spike at least
IN_A_ROW = 10  # steps that are left out, until there is no use in going on


class LossGuard(L.Callback):
    """Leaves a step out whose loss or gradients aren't finite, or whose loss is far above those before; or stops there.

    It decides before the optimizer's step, so that the weights stay good.

    Args:
        action: ``stop`` ends training with an error that names the samples; ``skip`` warns of them and goes on.
        spike: how many times the median of recent losses is too much; None to let every finite loss pass.

    Raises:
        OptionError: the factor isn't above 1.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", spike: float | None = 10.0) -> None:
        if spike is not None and not spike > 1:
            raise OptionError(f"loss_guard.spike must be above 1, or null, not {spike}")
        self.action = action
        self.spike = spike
        self.skipped = 0
        self._in_a_row = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._losses: list[Tensor] = []
        self._samples: list[str] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes note of a batch's samples, with those of others that the same step is of."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._losses, self._samples = [], []
        self._samples += batch["keys"]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Takes note of a batch's loss, divided by the number of batches in a step."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Decides about a step, the same on all ranks.

        Raises:
            TrainingError: it is bad, and training is to stop.
        """
        losses, norms = self._measure(trainer, pl_module)
        loss = sum(losses) / len(losses)
        problem = self._problem(loss, norms)
        if problem is None:
            self._recent.append(loss)
            self._in_a_row = 0
        else:
            samples = ", ".join(self._gather_samples(trainer, losses))
            self._refuse(f"step {trainer.global_step}: {problem}; samples: {samples}", trainer.is_global_zero)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        if self.action == "skip":
            pl_module.log("train/skipped", float(self.skipped))

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> tuple[list[float], list[float]]:
        """Gives the loss and the norm of the gradients on each rank, with one wait for the device.

        The norm is 0 where a scaler deals with gradients that overflow.
        """
        loss = torch.stack(self._losses).sum()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        norm = loss.new_zeros(()) if _scaler(trainer) else torch.nn.utils.get_total_norm(gradients)
        losses, norms = trainer.strategy.all_gather(torch.stack([loss, norm.to(loss)])).reshape(-1, 2).T.tolist()
        return losses, norms

    def _problem(self, loss: float, norms: Sequence[float] = ()) -> str | None:
        """Says what is wrong with a step, if anything.

        Args:
            loss: its loss.
            norms: of its gradients.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if loss > self._limit():
            usual = statistics.median(self._recent)
            return f"the loss is {loss:.4g}, and the median of the {len(self._recent)} before it {usual:.4g}"
        if not all(map(math.isfinite, norms)):
            return f"the loss is {loss:.4g}, but its gradients aren't finite"
        return None

    def _limit(self) -> float:
        """Gives the highest loss that isn't a spike."""
        if self.spike is None or len(self._recent) < ENOUGH:
            return math.inf
        usual = statistics.median(self._recent)
        return max(self.spike * usual, usual + LEAST)

    def _gather_samples(self, trainer: L.Trainer, losses: Sequence[float]) -> list[str]:
        """Gives the samples of the ranks whose own loss is bad, or of all where none is; all ranks must call it."""
        samples = [self._samples]
        if trainer.world_size > 1:
            samples = [[] for _ in losses]
            torch.distributed.all_gather_object(samples, self._samples)
        limit = self._limit()
        bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss) or loss > limit]
        return [sample for rank in bad or range(len(losses)) for sample in samples[rank]]

    def _refuse(self, problem: str, warns: bool) -> None:
        """Counts a bad step.

        Args:
            problem: what is wrong with it.
            warns: whether a step that is left out is reported; one of the ranks is enough.

        Raises:
            TrainingError: training is to stop.
        """
        if self.action == "stop":
            raise TrainingError(
                f"{problem}; the last checkpoint is from before: look at the samples, lower "
                "model.optimizer.learning_rate, or go on without them: --ckpt_path last --loss_guard.action skip"
            )
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            raise TrainingError(
                f"{problem}; it would be the {IN_A_ROW}th step in a row to be left out: lower "
                "model.optimizer.learning_rate, and go on with --ckpt_path last"
            )
        if warns:
            log.warning("%s; the step is left out, %d so far", problem, self.skipped)

    def state_dict(self) -> dict[str, Any]:
        """Gives what later decisions depend on, which goes into checkpoints."""
        return {"recent": list(self._recent), "skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._recent.extend(state_dict["recent"])
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _scaler(trainer: L.Trainer) -> Any:
    """What scales losses, and leaves out steps whose gradients overflow: with 16-bit floating point."""
    return getattr(trainer.precision_plugin, "scaler", None)
