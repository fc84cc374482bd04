"""Captioners of any vision encoder and any text decoder, random or pretrained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from running import Recorded, fit, made_data, trainer, training
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from mm.checkpoints import load_checkpoint
from mm.checkpoints.starting import start_from_parts
from mm.data.transforms import to_pixels
from mm.errors import CheckpointError, OptionError, UsageError
from mm.generation import GenerationConfig, generate
from mm.models import Conditioning, Parts
from mm.training.losses import Losses
from mm.training.validation import Validation

SMALL: dict[str, Any] = {"width": 32, "heads": 4, "blocks": 2, "dropout": 0.0}
DECODERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden": 64, "max_tokens": 40},
    "gpt2": {"max_tokens": 40},
    "llama": {"hidden": 64, "max_tokens": 40, "key_value_heads": 2},
    "falcon": {"max_tokens": 40},
    "t5": {"hidden": 64, "max_tokens": 40, "tied": False, "scaled": False},
    "bart": {"hidden": 64, "max_tokens": 40},
}
VISION = {"preset": "timm", "name": "test_vit", "image_size": 32}
RESAMPLER = {"preset": "resampler", "blocks": 1, "latents": 4, "heads": 2, "head_width": 8, "hidden": 32}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cross-attention": ({"cross": "attention"}, {"sees": "cross"}),
    "gated": ({"cross": "gated", "cross_every": 2}, {"sees": "cross", "connector": RESAMPLER}),
    "prefix": ({}, {"sees": "prefix", "connector": {"preset": "projection", "norm": True}}),
}


def parts(decoder: str, way: str) -> Parts:
    """A tiny ViT of timm with a decoder that sees it in one of three ways."""
    seeing, how = WAYS[way]
    numbers = {"preset": decoder} | SMALL | DECODERS[decoder] | seeing
    return Parts(vision=VISION, text_decoder=numbers, **how)


def four(module: Recorded, folder: Path) -> dict[str, Any]:
    """Four pictures with one English caption each, as a batch."""
    data = made_data(folder, captions={"en": 1}, views=1)
    data.attach(module.tokenizer, module.transform, "en")
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_any_decoder_sees_in_any_way(decoder: str, way: str, tmp_path: Path) -> None:
    """Two steps; every weight gets a gradient, and the captions depend on the image."""
    module = training(tmp_path, parts=parts(decoder, way))
    assert set(module.batch_losses(four(module, tmp_path))) == {"captioning"}
    run = tmp_path / "run"
    fit(trainer(run, max_steps=2, max_epochs=-1), module, made_data(tmp_path, max_tokens=20))
    assert len(module.steps) == 2 and module.steps[0][2] != module.steps[1][2]
    batch = four(module, tmp_path)
    module.model.train().zero_grad()
    module.model.requires_grad_(True)
    sum(module.batch_losses(batch).values()).backward()  # type: ignore[union-attr]
    without = [name for name, p in module.model.named_parameters() if p.grad is None and "cls_token" not in name]
    assert not without
    loaded = load_checkpoint(run / "checkpoints/last.ckpt")
    assert loaded.architecture == module.architecture and loaded.model.capabilities == ("caption",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "way"),
    [
        ("gpt2", "cross-attention"),
        ("bert", "cross-attention"),
        ("falcon", "cross-attention"),
        ("llama", "prefix"),
        ("bart", "prefix"),
        ("t5", "gated"),
        ("gpt2", "gated"),
    ],
)
def test_four_samples_are_learned_by_heart(decoder: str, way: str, tmp_path: Path) -> None:
    module = training(tmp_path, parts=parts(decoder, way), losses=Losses(smoothing=0.0))
    batch, model = four(module, tmp_path), module.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        loss = module.batch_losses(batch)["captioning"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(loss.detach()) < 0.1
    model.eval()
    with torch.inference_mode():
        about = model.about(model.image_tokens(to_pixels(batch["pixels"])))
        start = [[module.tokenizer.languages["en"]]] * 4
        found = generate(
            model.decoder,
            about,
            start,
            GenerationConfig(max_tokens=16),
            end=module.tokenizer.end,
            fill=module.tokenizer.padding,
        )
    written = dict(zip(batch["rows"].tolist(), batch["tokens"].tolist(), strict=True))
    for row, caption in enumerate(found):
        assert caption.tokens == [token for token in written[row] if token != module.tokenizer.padding]


def gpt2(folder: Path, vocabulary: int) -> transformers.GPT2LMHeadModel:
    """A small GPT-2 with the tokenizer of all tests, in the hub's layout."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_head=4, n_layer=2, n_positions=40, bos_token_id=1, eos_token_id=1
    )
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny.tokenizer().to_json())
    return reference


@pytest.mark.parametrize("cross", ["attention", "gated"])
def test_a_pretrained_decoder_keeps_its_weights(cross: str, tmp_path: Path) -> None:
    reference = gpt2(tmp_path / "gpt2", 300)
    described = Parts(vision=VISION, text_decoder={"checkpoint": str(tmp_path / "gpt2"), "cross": cross})
    loaded = start_from_parts(described)
    assert loaded.architecture.text_decoder["width"] == 32 and "checkpoint" not in loaded.architecture.text_decoder
    assert loaded.tokenizer.end == 1 and not loaded.tokenizer.own
    decoder, tokens = loaded.model.eval().decoder, torch.randint(0, 300, (2, 7))
    with torch.inference_mode():
        expected = reference(tokens).logits
        torch.testing.assert_close(decoder.logits(decoder(tokens)), expected, atol=1e-5, rtol=0)
        seen = loaded.model.about(loaded.model.image_tokens(torch.rand(2, 3, 32, 32)))
        looking = decoder.logits(decoder(tokens, context=seen.context))
        assert torch.allclose(looking, expected, atol=1e-5) == (cross == "gated")  # gates begin closed


def test_pretrained_vision_comes_with_its_preprocessing(tmp_path: Path) -> None:
    described = parts("gpt2", "cross-attention")
    loaded = start_from_parts(replace(described, vision={"checkpoint": "mm-tiny"}))
    from mm.checkpoints.resolve import load_vision_language

    own = load_vision_language("mm-tiny").model
    for name, value in own.vision.state_dict().items():
        assert torch.equal(value, loaded.model.vision.state_dict()[name])
    assert loaded.transform.size == 260 and loaded.tokenizer.own


def test_a_frozen_language_model_stays_as_it_is(tmp_path: Path) -> None:
    module = training(tmp_path, parts=parts("gpt2", "gated"), frozen=["vision", "language_model"])
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    fit(trainer(tmp_path / "run", max_epochs=1, callbacks=[]), module, made_data(tmp_path))
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("connector.", "text_decoder.blocks")) for name in changed)
    assert all("crossing" in name for name in changed if name.startswith("text_decoder"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": ["decoder"]}, "frozen part 'decoder' is unknown: vision, text_encoder"),
        ({"frozen": ["text_encoder"]}, "frozen part 'text_encoder': this model has none"),
        ({"frozen": ["vision", "text_decoder"]}, "nothing is left to train"),
        ({"losses": Losses(captioning=0.0)}, "model.losses leaves nothing to train: this model can learn captioning"),
        ({"init": "mm-tiny"}, "model.init gives a whole model, and model.parts builds one"),
    ],
)
def test_wrong_options_are_said_in_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        training(tmp_path, parts=parts("gpt2", "cross-attention"), **options)


@pytest.mark.parametrize(
    ("decoder", "how", "message"),
    [
        ({"preset": "gpt3"}, {}, "architecture.text_decoder: no preset 'gpt3'; there are mm, bert, gpt2"),
        ({"preset": "gpt2", "depth": 3}, {}, "preset 'gpt2' has no depth; it has vocabulary, width"),
        ({"preset": "gpt2", "width": 32}, {}, "preset 'gpt2' also needs heads, blocks, max_tokens"),
        ({"preset": "gpt2"} | SMALL | {"max_tokens": 9, "heads": 5}, {}, "width 32 is not a multiple of 5 heads"),
        ({"preset": "gpt2"} | SMALL | {"max_tokens": 9, "cross": "both"}, {}, "cross is 'both': attention or gated"),
        ({"preset": "gpt2"} | SMALL | {"max_tokens": 9, "vocabulary": 9}, {}, "vocabulary of 9, but the tokenizer has"),
        ({"preset": "gpt2"} | SMALL | {"max_tokens": 9}, {"sees": "prefix"}, "set architecture.connector"),
        ({"checkpoint": "nowhere"}, {}, "no model named 'nowhere'"),
        (None, {}, "neither text_encoder nor text_decoder"),
    ],
)
def test_parts_that_do_not_fit(decoder: dict[str, Any] | None, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        start_from_parts(Parts(vision=VISION, text_decoder=decoder, **how))


def framed(folder: Path) -> None:
    """Writes the tokenizer of all tests as a public one, which puts a text between two special tokens."""
    backend = Backend.from_str(tiny.tokenizer().to_json())
    backend.add_special_tokens(["<embed>", "<match>"])
    marks = [(name, backend.token_to_id(name)) for name in ("<embed>", "<match>")]
    backend.post_processor = processors.BertProcessing(marks[1], marks[0])
    backend.save(str(folder / "tokenizer.json"))


PRETRAINED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (
        transformers.BertConfig,
        transformers.BertForMaskedLM,
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48},
    ),
    "llama": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48},
    ),
    "falcon": (
        transformers.FalconConfig,
        transformers.FalconForCausalLM,
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2},
    ),
    "t5": (
        transformers.T5Config,
        transformers.T5ForConditionalGeneration,
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "bart": (
        transformers.BartConfig,
        transformers.BartForConditionalGeneration,
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
        },
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", PRETRAINED)
def test_pretrained_decoders_are_trained(family: str, way: str, tmp_path: Path) -> None:
    """Two steps of each, with its own tokenizer and a vision encoder of another width."""
    torch.manual_seed(0)
    config, kind, numbers = PRETRAINED[family]
    ids = {} if family == "bert" else {"bos_token_id": 2, "eos_token_id": 3}
    kind(config(vocab_size=300, pad_token_id=0, **numbers, **ids)).save_pretrained(tmp_path / "text")
    framed(tmp_path / "text")
    seeing, how = WAYS[way]
    described = Parts(vision=VISION, text_decoder={"checkpoint": str(tmp_path / "text")} | seeing, **how)
    module = Recorded(parts=described, validation=Validation(caption_images=2))
    data = made_data(tmp_path, captions={"en": 1}, max_tokens=16)
    fit(trainer(tmp_path / "run", max_steps=2, max_epochs=-1), module, data)
    assert len(module.steps) == 2
    loaded = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert loaded.tokenizer.special == module.tokenizer.special and list(loaded.tokenizer.languages) == ["en"]
    with pytest.raises(UsageError, match="isn't that of the pretrained text part"):
        start_from_parts(described, "mm-tiny")


@pytest.mark.parametrize("decoder", DECODERS)
def test_prompts_of_other_lengths_beside_it_change_nothing(decoder: str) -> None:
    """With the image as a prefix, padding stands between image and text."""
    torch.manual_seed(0)
    model = start_from_parts(parts(decoder, "prefix")).model.eval()
    with torch.no_grad():
        for value in model.decoder.parameters():
            value.add_(torch.randn_like(value) * 0.3)
        if model.decoder.relative is not None:
            model.decoder.relative.weight.mul_(10)
        about = model.about(model.image_tokens(torch.rand(1, 3, 32, 32)))
        alone = model.decoder(torch.tensor([[5, 6, 7]]), prefix=about.prefix)
        padded, real = torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[False, False, True, True, True]])
        beside = model.decoder(padded, padding=real, prefix=about.prefix)
    torch.testing.assert_close(beside[:, 2:], alone)


def test_a_checkpoint_whose_numbers_are_contradicted(tmp_path: Path) -> None:
    gpt2(tmp_path / "gpt2", 300)
    wider = {"checkpoint": str(tmp_path / "gpt2"), "width": 64}
    with pytest.raises(CheckpointError, match=r"text_decoder of .*gpt2.*embedding.weight has shape \(300, 32\)"):
        start_from_parts(Parts(vision=VISION, text_decoder=wider))


def test_bert_becomes_a_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=48,
        bos_token_id=2,
        eos_token_id=3,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    framed(tmp_path / "bert")
    loaded = start_from_parts(Parts(vision=VISION, text_decoder={"checkpoint": str(tmp_path / "bert")}))
    decoder, tokens = loaded.model.eval().decoder, torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(decoder(tokens)[:, :3], decoder(changed)[:, :3])
        pixels = to_pixels(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        about = loaded.model.about(loaded.model.image_tokens(pixels))
        assert isinstance(about, Conditioning) and decoder(tokens, context=about.context).isfinite().all()
