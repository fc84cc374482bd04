from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import ARCHITECTURE, model, special, tokenizer

from mm.errors import UsageError
from mm.models import Architecture, VisionLanguageModel, build
from mm.training.losses import caption_loss, contrastive_loss, matching_loss

WORDS = tokenizer()
COMPLETE = torch.ones(6, dtype=torch.bool)
PRESETS = {
    "hybrid": ARCHITECTURE,
    "hybrid with batch norm": replace(ARCHITECTURE, vision="test_efficientnet", hybrid_blocks=2, decoder_blocks=2),
    "ViT": replace(ARCHITECTURE, vision="vit_tiny_patch16_224", hybrid_blocks=0, encoder_blocks=2),
    "ViT with a pooling head": replace(ARCHITECTURE, vision="test_vit3", hybrid_blocks=0),
    "ViT that pools by a mean": replace(ARCHITECTURE, vision="test_vit2", hybrid_blocks=0),
}


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Two captions for each of three images."""
    rows = WORDS.encode(["a red wall", "all of it", "blue", "a green wall now", "grey", "it is all of it white"])
    tokens, padding = WORDS.pad(rows)
    return torch.from_numpy(tokens), torch.from_numpy(padding)


def total_loss(net: VisionLanguageModel) -> torch.Tensor:
    tokens, padding = texts()
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    images = net.image_tokens(torch.rand(3, 3, 32, 32))
    vectors = net.image_embedding(images), net.text_embedding(tokens, padding)
    same = rows[None, :] == torch.arange(3)[:, None]
    wide = images[rows]
    language = torch.full((6,), net.special.languages["en"])
    logits = net.caption_logits(net.about(wide), language, tokens, padding)
    matches = net.match_logits(net.text_encoder.keys_values(wide), tokens, padding)
    return (
        contrastive_loss(*vectors, same, net.logit_scale.exp())
        + matching_loss(matches, torch.arange(6) % 2 == 0)
        + caption_loss(logits, net.caption_targets(tokens, padding, COMPLETE), 0.1)
    )


@pytest.mark.parametrize("architecture", PRESETS.values(), ids=PRESETS)
def test_every_parameter_gets_a_gradient(architecture: Architecture) -> None:
    net = model(WORDS, architecture).train()
    total_loss(net).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert without == []
    # A bias of keys shifts all scores of a query alike, which softmax ignores: its gradient is zero up to rounding.
    zero = [n for n, p in net.named_parameters() if not p.grad.abs().max() > 0 and not n.endswith("key.bias")]
    assert zero == []


def test_frozen_stages_get_none() -> None:
    net = model(WORDS, replace(ARCHITECTURE, vision="test_efficientnet", frozen_stages=4)).train()
    total_loss(net).backward()
    stem = net.vision.stem
    frozen = {id(p) for stage in list(stem.stages)[:4] for p in stage.parameters()}
    assert frozen
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen), name


def test_embeddings_are_unit_vectors_whatever_the_padding() -> None:
    net = model(WORDS)
    tokens, padding = texts()
    vectors = net.text_embedding(tokens, padding)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    for row in range(6):
        real = tokens[row, padding[row]][None]
        torch.testing.assert_close(net.text_embedding(real, torch.ones_like(real, dtype=torch.bool))[0], vectors[row])
    images = net.image_embedding(net.image_tokens(torch.rand(3, 3, 32, 32)))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("name", PRESETS)
def test_images_are_embedded_by_their_first_token_and_the_mean_of_their_patches(name: str) -> None:
    net = model(WORDS, PRESETS[name])
    tokens = net.image_tokens(torch.rand(3, 3, 32, 32))
    prefix = net.vision.prefix_tokens
    parts = [tokens[:, 0]] * net.vision.has_summary + [tokens[:, prefix:].mean(1)]
    expected = F.normalize(net.image_projection(torch.cat(parts, -1)), dim=-1)
    torch.testing.assert_close(net.image_embedding(tokens), expected)


def test_embeddings_stay_exact_in_reduced_precision() -> None:
    net = model(WORDS)
    with torch.autocast("cpu", torch.bfloat16):
        images = net.image_embedding(net.image_tokens(torch.rand(3, 3, 32, 32)))
        texts_ = net.text_embedding(*texts())
    for vectors in (images, texts_):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_caption_targets_are_the_caption_and_its_end() -> None:
    net = model(WORDS)
    tokens, padding = texts()
    targets = net.caption_targets(tokens, padding, COMPLETE).tolist()
    expected = [[*tokens[row, padding[row]].tolist(), WORDS.end] for row in range(6)]
    assert targets == [token for row in expected for token in row]


def test_captions_that_were_cut_do_not_learn_to_end() -> None:
    net = model(WORDS)
    tokens, padding = texts()
    complete = torch.tensor([True, False, True, True, False, True])
    targets = net.caption_targets(tokens, padding, complete)
    ends = (padding.sum(1) + 1).cumsum(0) - 1
    assert targets[ends].tolist() == [WORDS.end if whole else -100 for whole in complete]
    rest = torch.ones_like(targets, dtype=torch.bool).index_fill(0, ends, False)
    assert torch.equal(targets[rest], tokens[padding])


def test_caption_logits_line_up_with_targets() -> None:
    net = model(WORDS)
    tokens, padding = texts()
    about = net.about(net.image_tokens(torch.rand(6, 3, 32, 32)))
    logits = net.caption_logits(about, torch.full((6,), WORDS.languages["zh"]), tokens, padding)
    targets = net.caption_targets(tokens, padding, COMPLETE)
    assert logits.shape == (len(targets), len(WORDS))
    start = 0
    for row in range(6):
        real = tokens[row, padding[row]]
        begun = torch.cat([torch.tensor([WORDS.languages["zh"]]), real])
        hidden = net.text_decoder(begun[None], context=about.of(torch.tensor([row])).context)
        torch.testing.assert_close(net.text_decoder.logits(hidden)[0], logits[start : start + len(begun)])
        start += len(begun)


def test_matching_looks_at_image_and_text() -> None:
    net = model(WORDS)
    tokens, padding = texts()
    images = net.image_tokens(torch.rand(6, 3, 32, 32))
    scores = net.match_logits(net.text_encoder.keys_values(images), tokens, padding)
    other = net.match_logits(net.text_encoder.keys_values(images.flip(0)), tokens, padding)
    assert scores.shape == (6, 2) and not torch.allclose(scores, other)
    real = padding[0].sum()
    single = net.match_logits(net.text_encoder.keys_values(images[:1]), tokens[:1, :real], padding[:1, :real])
    torch.testing.assert_close(F.softmax(single, 1), F.softmax(scores[:1], 1))


def test_both_stacks_share_one_embedding() -> None:
    net = model(WORDS)
    assert net.text_encoder.embedding is net.text_decoder.embedding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30, "heads": 4}, "architecture.width 30 must be a multiple of architecture.heads 4"),
        ({"heads": 0}, "architecture.heads must be at least 1, not 0"),
        ({"decoder_blocks": 0}, "architecture.decoder_blocks must be at least 1"),
        ({"hybrid_blocks": -1}, "architecture.hybrid_blocks must be at least 0"),
        ({"frozen_stages": -2}, "architecture.frozen_stages must be at least -1"),
        ({"max_tokens": 1}, "architecture.max_tokens must be at least 2"),
        ({"dropout": 1.5}, "architecture.dropout must be at least 0 and below 1"),
        ({"std": (1.0, 0.0, 1.0)}, "architecture.std must be above 0"),
        ({"mean": (1.0, 0.0)}, "architecture.mean must be three numbers"),
    ],
)
def test_numbers_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(replace(ARCHITECTURE, **change), len(WORDS), special(WORDS))
