"""AdamW with sensible groups, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mm.errors import OptionError


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with linear warm-up and cosine decay.

    Args:
        learning_rate: the highest.
        vision_scale: what the learning rate of pretrained vision weights is multiplied with.
        weight_decay: of matrices; norms, biases, embeddings and positions have none.
        warmup: share of all steps in which the learning rate rises.
        final: share of the learning rate that is left at the end.

    Raises:
        OptionError: a number is out of range.
    """

    learning_rate: float = 1e-3
    vision_scale: float = 0.1
    weight_decay: float = 0.05
    warmup: float = 0.05
    final: float = 0.01

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise OptionError(f"optimizer.learning_rate must be above 0, not {self.learning_rate}")
        for name in ("vision_scale", "weight_decay"):
            if getattr(self, name) < 0:
                raise OptionError(f"optimizer.{name} must be at least 0, not {getattr(self, name)}")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"optimizer.{name} must be between 0 and 1, not {getattr(self, name)}")


def parameter_groups(model: nn.Module, pretrained: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups parameters by learning rate and by whether they decay; each is in one group.

    Args:
        model: everything that may be trained.
        pretrained: the part of it that trains with ``vision_scale`` of the learning rate.
        settings: learning rates and weight decay.
    """
    slow = {id(p) for p in pretrained.parameters()}
    exempt = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        names: set[str] = getattr(
            module, "no_weight_decay", set
        )()  # timm's own list: positions, class token and the like
        exempt |= {id(parameter) for name, parameter in module.named_parameters() if name in names}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and id(parameter) not in exempt and not name.endswith("positions")
        groups.setdefault((id(parameter) in slow, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.learning_rate * (settings.vision_scale if is_slow else 1.0),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (is_slow, decays), parameters in groups.items()
    ]


def adamw(groups: Iterable[dict[str, Any]]) -> AdamW:
    """Builds the optimizer of parameter groups."""
    return AdamW(list(groups), betas=(0.9, 0.98), eps=1e-8)


def cosine_schedule(optimizer: AdamW, settings: OptimizerSettings, steps: int) -> LambdaLR:
    """Builds the schedule: up linearly, down along a cosine, over ``steps`` optimizer steps."""
    rising = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        return settings.final + (1 - settings.final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
