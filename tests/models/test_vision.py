from __future__ import annotations

import pytest
import timm
import torch

from mm.errors import UsageError
from mm.models import ConvStem, HybridViT, TimmViT
from mm.models.presets import vision_encoder
from mm.models.presets.vision import vit

STEM = "test_efficientnet"


def hybrid(frozen_stages: int = 0, image_size: int = 64) -> HybridViT:
    torch.manual_seed(0)
    built = vision_encoder(
        STEM, image_size=image_size, hybrid_blocks=1, width=16, heads=2, frozen_stages=frozen_stages, dropout=0.1
    )
    assert isinstance(built, HybridViT)
    return built.eval()


def pictures(size: int = 64, count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frozen", [0, 3, -1])
def test_stem_is_the_network_of_timm(frozen: int) -> None:
    torch.manual_seed(0)
    network = timm.create_model(STEM, num_classes=0).eval()
    torch.manual_seed(0)
    stem = ConvStem(STEM, frozen).eval()
    pixels = pictures()
    with torch.no_grad():
        torch.testing.assert_close(stem(stem.frozen(pixels)), network.forward_features(pixels))
    stages = list(stem.stages)
    count = len(stages) if frozen < 0 else frozen
    assert all(not p.requires_grad for stage in stages[:count] for p in stage.parameters())
    assert all(p.requires_grad for stage in stages[count:] for p in stage.parameters())


def test_stored_statistics_are_used_while_training() -> None:
    stem = ConvStem(STEM).train()
    before = {name: value.clone() for name, value in stem.state_dict().items()}
    stem(stem.frozen(pictures()))
    assert all(torch.equal(value, before[name]) for name, value in stem.state_dict().items())
    assert all(not m.training for m in stem.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("frozen", [0, 4, -1])
def test_a_batch_of_images_equals_its_parts(frozen: int, grad: bool) -> None:
    model, pixels = hybrid(frozen), pictures()
    with torch.set_grad_enabled(grad):
        together = model(pixels)
        apart = torch.cat([model(image[None]) for image in pixels])
    assert together.shape == (6, 5, 16)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_frozen_and_tokens_make_the_whole() -> None:
    for model in (hybrid(3), TimmViT.named("test_vit", 64, (0.5,) * 3, (0.5,) * 3).eval()):
        pixels = pictures()
        assert torch.equal(model.tokens(model.frozen(pixels)), model(pixels))


def test_pixels_are_normalized() -> None:
    model = vision_encoder(STEM, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), hybrid_blocks=1, width=16, heads=2)
    pixels = torch.tensor([0.6, 0.7, 0.3]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert model.normalize(pixels)[0, :, 0, 0].tolist() == pytest.approx([1.0, 2.0, 0.0])
    assert not any("normalize" in name for name in model.state_dict())


def test_positions_fit_other_sizes() -> None:
    model = hybrid()
    assert model(pictures(96)).shape == (6, 10, 16)
    assert not torch.equal(model(pictures(96))[:, 1], model(pictures(64))[:, 1])


@pytest.mark.parametrize(
    ("name", "blocks", "size", "message"),
    [
        ("no_such_net", 1, 64, "timm has no vision model named 'no_such_net'"),
        ("resnet1000", 0, 64, "timm has no vision model named 'resnet1000'"),
        ("hf-hub:owner/model", 1, 64, "timm has no vision model named 'hf-hub:owner/model'"),
        ("local-dir:/tmp", 0, 64, "timm has no vision model named 'local-dir:/tmp'"),
        (STEM, 0, 64, "isn't a ViT with an image size.*hybrid_blocks"),
        ("test_vit", 0, 50, "test_vit"),
        ("test_vit", 1, 64, "not a plain sequence of stages"),
        ("test_vit3", 1, 64, "not a plain sequence of stages"),
        ("test_maxvit", 1, 64, "not a plain sequence of stages"),
        ("test_mambaout", 1, 64, "not a plain sequence of stages"),
    ],
)
def test_networks_that_do_not_fit_are_refused(name: str, blocks: int, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        vision_encoder(name, image_size=size, hybrid_blocks=blocks, width=16, heads=2)
    assert "\n" not in str(caught.value)


def test_the_first_token_of_a_hybrid_sums_up_the_pooled_features() -> None:
    model = hybrid()
    tokens = model(pictures())
    features = model.stem(model.frozen(pictures()))
    assert model.prefix_tokens == 1
    torch.testing.assert_close(tokens[:, 0], model.summary(features.mean((2, 3))))
    with torch.no_grad():
        model.blocks[0].attention.output.weight.normal_()
    changed = model(pictures())
    assert torch.equal(changed[:, 0], tokens[:, 0]) and not torch.equal(changed[:, 1], tokens[:, 1])


@pytest.mark.parametrize(
    ("name", "prefix", "summary"),
    [
        ("test_vit", 1, True),
        ("vit_medium_patch16_gap_240", 0, False),
        ("vit_little_patch16_reg1_gap_256", 1, False),
    ],
)
def test_prefix_tokens_come_before_the_patches(name: str, prefix: int, summary: bool) -> None:
    model = TimmViT.named(name, 64, (0.5,) * 3, (0.5,) * 3).eval()
    assert (model.prefix_tokens, model.has_summary) == (prefix, summary)
    assert model(pictures()).shape[1] == prefix + 16


def test_feed_forward_networks_are_as_wide_as_told() -> None:
    built = vit(16, 16, 176, 4, 1, hidden=240, attention_pool=True)  # 240 / 176 * 176 is less than 240
    assert built.model.blocks[0].mlp.fc1.out_features == built.model.attn_pool.mlp.fc1.out_features == 240
