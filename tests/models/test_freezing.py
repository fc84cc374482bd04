from __future__ import annotations

from typing import Any

import open_clip
import pytest
import tiny
import torch

from mm.errors import OptionError
from mm.models import Parts, VisionLanguageModel, build
from mm.models.dual_encoder import DualEncoder, OpenClip
from mm.models.freezing import freeze, language_model_parameters

WORDS = tiny.tokenizer()
SIZES: dict[str, Any] = {"width": 16, "heads": 2, "blocks": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"preset": "llama", "hidden": 24, "max_tokens": 24, "cross": "gated", "cross_every": 2},
    "gpt2": {"preset": "gpt2", "max_tokens": 24, "cross": "attention"},
}
RESAMPLER = {"preset": "resampler", "blocks": 1, "latents": 3, "heads": 2, "head_width": 4, "hidden": 24}


def model(decoder: str) -> VisionLanguageModel:
    torch.manual_seed(0)
    vision = {"preset": "vit", "image_size": 32, "patch_size": 16} | SIZES
    parts = Parts(vision, text_decoder=DECODERS[decoder] | SIZES, connector=RESAMPLER)
    net = build(parts, len(WORDS), tiny.special(WORDS)).train()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("_gate"):
                value.fill_(0.5)  # a gate that is shut passes no gradient on to the image
    return net


def changed(net: VisionLanguageModel) -> set[str]:
    """The parameters that a step of training changes."""
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    tokens = torch.randint(5, len(WORDS), (4, 6))
    about = net.about(net.image_tokens(torch.rand(4, 3, 32, 32)))
    padding = torch.ones_like(tokens, dtype=torch.bool)
    language = torch.full((4,), WORDS.languages["en"])
    logits = net.caption_logits(about, language, tokens, padding)
    targets = net.caption_targets(tokens, padding, torch.ones(4, dtype=torch.bool))
    torch.nn.functional.cross_entropy(logits, targets).backward()
    optimizer.step()
    return {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("vision", [True, False])
def test_a_step_leaves_the_language_model_as_it_is(decoder: str, vision: bool) -> None:
    net = model(decoder)
    freeze(net, ["language_model", *(["vision"] if vision else [])])
    names = {name for name, _ in net.named_parameters()}
    seeing = {name for name in names if ".cross" in name or name.startswith("connector.")}
    assert {name.split(".")[0] for name in seeing} == {"text_decoder", "connector"}
    trained = changed(net)
    assert trained >= seeing
    assert trained - seeing == (set() if vision else {name for name in names if name.startswith("vision.")})


def test_without_freezing_all_of_it_is_trained() -> None:
    net = model("llama")
    assert changed(net) == {name for name, _ in net.named_parameters()}


def test_the_language_model_is_the_decoder_without_its_sight() -> None:
    sizes = {"vocabulary": len(WORDS)} | SIZES
    vision = {"preset": "vit", "image_size": 32, "patch_size": 16} | SIZES
    plain = build(Parts(vision, DECODERS["llama"] | sizes, sees="prefix"), len(WORDS), tiny.special(WORDS)).decoder
    own = [tuple(value.shape) for value in language_model_parameters(model("llama").decoder)]
    assert own == [tuple(value.shape) for value in plain.parameters()]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["decoder"], "frozen part 'decoder' is unknown"),
        (["text_encoder"], "frozen part 'text_encoder': this model has none"),
    ],
)
def test_what_can_not_be_frozen(parts: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        freeze(model("llama"), parts)


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_the_text_tower_of_open_clip(kind: type[torch.nn.Module]) -> None:
    config: dict[str, Any] = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 1},
    }
    architecture = OpenClip(config, (0.5,) * 3, (0.5,) * 3)
    net = DualEncoder(kind(**config, init_logit_bias=-10), architecture, tiny.special(WORDS))
    freeze(net, ["text_encoder"])
    tokens = torch.randint(5, len(WORDS), (2, 4))
    assert not net.text_embedding(tokens, torch.ones_like(tokens, dtype=torch.bool)).requires_grad
    trained = {name for name, value in net.named_parameters() if value.requires_grad}
    others = {f"model.{name}" for name in ("logit_scale", "logit_bias")}
    assert trained == others | {f"model.visual.{name}" for name, _ in net.vision.named_parameters()}
    with pytest.raises(OptionError, match="frozen part 'text_decoder': this model has none"):
        freeze(net, ["text_decoder"])


def test_nothing_left_to_train() -> None:
    net = model("gpt2")
    net.connector = None
    with pytest.raises(OptionError, match="nothing is left to train"):
        freeze(net, ["vision", "text_decoder"])
