from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch

from mm.errors import OptionError
from mm.models import Architecture, HybridViT
from mm.training.optimizer import OptimizerSettings, adamw, cosine_schedule, parameter_groups

WORDS = tiny.tokenizer()
SETTINGS = OptimizerSettings(learning_rate=2e-3, vision_scale=0.25, weight_decay=0.07)


@pytest.mark.parametrize(
    "architecture",
    [
        tiny.ARCHITECTURE,
        replace(tiny.ARCHITECTURE, vision="test_efficientnet", frozen_stages=3),
        replace(tiny.ARCHITECTURE, vision="vit_tiny_patch16_224", hybrid_blocks=0),
    ],
    ids=["hybrid", "partly frozen", "ViT"],
)
def test_every_parameter_is_in_one_group_with_its_rate_and_decay(architecture: Architecture) -> None:
    net = tiny.model(WORDS, architecture)
    vision = net.vision
    pretrained = vision.stem if isinstance(vision, HybridViT) else vision
    groups = parameter_groups(net, pretrained, SETTINGS)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted({id(parameter) for parameter in net.parameters()})
    place = {id(parameter): group for group in groups for parameter in group["params"]}
    slow = {id(parameter) for parameter in pretrained.parameters()}
    for name, parameter in net.named_parameters():
        group = place[id(parameter)]
        assert group["lr"] == pytest.approx(2e-3 * (0.25 if id(parameter) in slow else 1.0)), name
        last = name.rpartition(".")[2]
        bare = parameter.ndim < 2 or "embedding.weight" in name
        bare = bare or last in ("positions", "pos_embed", "cls_token", "logit_scale")
        assert group["weight_decay"] == (0.0 if bare else 0.07), name
    decaying = [n for n, p in net.named_parameters() if place[id(p)]["weight_decay"]]
    assert any("query.weight" in name for name in decaying) and not any("norm" in name for name in decaying)


def test_decay_acts_apart_from_the_gradient() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = adamw(parameter_groups(layer, torch.nn.Identity(), SETTINGS))
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 2e-3 * 0.07) - 2e-3, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 200), (0.0, 50), (1.0, 40), (0.5, 1)])
def test_schedule_rises_linearly_and_falls_along_a_cosine(warmup: float, steps: int) -> None:
    settings = replace(SETTINGS, warmup=warmup, final=0.1)
    optimizer = adamw([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 3.0}])
    schedule = cosine_schedule(optimizer, settings, steps)
    rates = []
    for _ in range(steps + 5):
        rates.append(optimizer.param_groups[0]["lr"] / 3.0)
        optimizer.step()
        schedule.step()
    rising = max(1, round(warmup * steps))
    for step, rate in enumerate(rates):
        if step < rising:
            expected = (step + 1) / rising
        else:
            through = min(1.0, (step - rising) / max(1, steps - rising))
            expected = 0.1 + 0.9 * (1 + math.cos(math.pi * through)) / 2
        assert rate == pytest.approx(expected), step
    assert max(rates) == pytest.approx(1.0)
    if rising < steps:
        assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate must be above 0"),
        ({"warmup": 1.5}, "optimizer.warmup must be between 0 and 1, not 1.5"),
        ({"final": -0.1}, "optimizer.final must be between 0 and 1"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay must be at least 0"),
        ({"vision_scale": -1.0}, "optimizer.vision_scale must be at least 0"),
    ],
)
def test_numbers_out_of_range(option: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        OptimizerSettings(**option)
