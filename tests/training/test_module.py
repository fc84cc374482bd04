from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from running import Recorded, fit, made_data, trainer, training

from mm.checkpoints import load_checkpoint, load_directory, save_directory
from mm.data.dataset import Batch
from mm.data.samples import Sample
from mm.data.shards.writing import write_shards
from mm.data.transforms import to_pixels
from mm.errors import MMError, OptionError
from mm.generation import GenerationConfig
from mm.models import HybridViT
from mm.pipeline import VisionLanguagePipeline
from mm.training.losses import Losses, caption_loss, contrastive_loss
from mm.training.module import VisionLanguageTraining
from mm.training.optimizer import OptimizerSettings


def a_batch(folder: Path, module: VisionLanguageTraining, **options: Any) -> Batch:
    data = made_data(folder, **options)
    data.attach(module.tokenizer, 32)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def test_losses_of_a_batch_are_those_of_its_parts(tmp_path: Path) -> None:
    module = training(tmp_path, losses=Losses(matching=0)).eval()
    batch = a_batch(tmp_path, module)
    found = module.batch_losses(batch)
    model, rows = module.model, batch["rows"]
    images = torch.cat([model.image_tokens(image[None]) for image in to_pixels(batch["pixels"])])
    texts, logits, targets = [], [], []
    for row, tokens, real, language in zip(rows, batch["tokens"], batch["padding"], batch["languages"], strict=True):
        ids, whole = tokens[real][None], torch.ones(1, int(real.sum()), dtype=torch.bool)
        texts.append(model.text_embedding(ids, whole))
        about = model.about(images[row][None])
        logits.append(model.caption_logits(about, language[None], ids, whole))
        targets.append(model.caption_targets(ids, whole, torch.ones(1, dtype=torch.bool)))
    same = torch.arange(4)[:, None] == rows[None, :]
    expected = contrastive_loss(model.image_embedding(images), torch.cat(texts), same, model.logit_scale.exp())
    torch.testing.assert_close(found["contrastive"], expected)
    torch.testing.assert_close(found["captioning"], caption_loss(torch.cat(logits), torch.cat(targets), 0.1))
    assert set(found) == {"contrastive", "captioning"}


class Spied:
    """Stands in for ``match_logits`` and notes which image and text it was asked about."""

    def __init__(self, module: VisionLanguageTraining) -> None:
        self.module, self.seen = module, []

    def __call__(self, context: Any, tokens: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        self.seen.append((context.layers[0].keys[:, 0, 0, 0].tolist(), tokens.tolist()))
        return torch.zeros(len(tokens), 2, requires_grad=True)


@pytest.mark.parametrize("match_pairs", [0, 3])
def test_matching_sees_pairs_and_hard_negatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, match_pairs: int
) -> None:
    module = training(tmp_path, losses=Losses(match_pairs=match_pairs)).eval()
    batch = a_batch(tmp_path, module)
    images = module.model.image_tokens(to_pixels(batch["pixels"]))
    names = module.model.text_encoder.keys_values(images).layers[0].keys[:, 0, 0, 0].tolist()
    spied = Spied(module)
    monkeypatch.setattr(module.model, "match_logits", spied)
    owner: dict[str, set[int]] = {}
    for row, tokens in zip(batch["rows"].tolist(), batch["tokens"].tolist(), strict=True):
        owner.setdefault(str(tokens), set()).add(row)
    pairs = match_pairs or 4
    for seed in range(10):
        torch.manual_seed(seed)
        module.batch_losses(batch)
        keys, texts = spied.seen[-1]
        assert len(keys) == 3 * pairs
        found = [names.index(key) in owner[str(text)] for key, text in zip(keys, texts, strict=True)]
        assert found[:pairs] == [True] * pairs
        if all(len(rows) == 1 for rows in owner.values()):
            assert found[pairs:] == [False] * 2 * pairs


def test_pairs_without_a_negative_are_not_called_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = training(tmp_path).eval()
    batch = a_batch(tmp_path, module, batch_size=1)
    spied = Spied(module)
    monkeypatch.setattr(module.model, "match_logits", spied)
    losses = module.batch_losses(batch)
    assert len(spied.seen[-1][0]) == 1
    assert float(losses["matching"].detach()) == pytest.approx(0.6931, abs=1e-4)
    assert float(losses["contrastive"].detach()) == 0.0


def test_weights_of_losses(tmp_path: Path) -> None:
    module = training(tmp_path, losses=Losses(contrastive=2.0, matching=0.0, captioning=0.5)).eval()
    batch = a_batch(tmp_path, module)
    losses = module.batch_losses(batch)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    total = module.training_step(batch, 0)
    torch.testing.assert_close(total, 2 * losses["contrastive"] + 0.5 * losses["captioning"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"contrastive": -1.0}, "losses.contrastive must be at least 0"),
        ({"smoothing": 1.0}, "losses.smoothing must be at least 0 and below 1"),
        ({"contrastive": 0.0, "matching": 0.0, "captioning": 0.0}, "can't all be 0"),
        ({"match_pairs": -1}, "losses.match_pairs must be at least 0"),
    ],
)
def test_losses_out_of_range(option: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Losses(**option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"vision_frozen_epochs": -1}, "model.vision_frozen_epochs must be at least 0"),
        ({"seed": -1}, "model.seed must be at least 0"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json: can't be read"),
        ({"init": "nowhere"}, "no model named 'nowhere': known are mm-tiny"),
        ({"vision_weights": "nowhere.pth"}, "nowhere.pth: no such file of weights"),
    ],
)
def test_options_out_of_range(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(MMError, match=message):
        training(tmp_path, **option)


def test_pretrained_weights_thaw_in_time(tmp_path: Path) -> None:
    module = training(tmp_path, vision_frozen_epochs=1)
    vision = module.model.vision
    assert isinstance(vision, HybridViT)
    start = {name: value.clone() for name, value in vision.stem.named_parameters()}
    moved = []

    def note(step: int) -> None:
        moved.append(any(not torch.equal(value, start[name]) for name, value in vision.stem.named_parameters()))

    module.during = note
    fit(trainer(tmp_path, max_epochs=2, callbacks=[], enable_checkpointing=False), module, made_data(tmp_path))
    assert moved == [False] * 4 + [True] * 2


def test_parts_of_a_step_draw_different_dropout(tmp_path: Path) -> None:
    module = training(tmp_path)
    drawn = []
    module.during = lambda step: drawn.append((step, torch.initial_seed()))
    options = {"callbacks": [], "enable_checkpointing": False, "max_epochs": 2, "limit_val_batches": 0}
    fit(trainer(tmp_path, accumulate_grad_batches=2, **options), module, made_data(tmp_path))
    assert [step for step, _ in drawn] == [0, 0, 1, 2, 2, 3]
    assert len({number for _, number in drawn}) == 6


def test_fine_tuning_begins_with_the_model_given_and_with_dropout(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    given = tiny.model(words, replace(tiny.ARCHITECTURE, dropout=0.4), seed=5)
    save_directory(tmp_path / "model", given, words, replace(tiny.ARCHITECTURE, dropout=0.4), "")
    module = VisionLanguageTraining(init=str(tmp_path / "model"))
    assert module.architecture.dropout == 0.4 and len(module.tokenizer) == len(words)
    for name, value in given.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], value)
    assert module.model.training and module.model.text_decoder.dropout.training
    assert not any(m.training for m in module.model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_fine_tuning_may_thaw_stages(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    frozen = replace(tiny.ARCHITECTURE, vision="test_efficientnet", frozen_stages=-1)
    save_directory(tmp_path / "model", tiny.model(words, frozen), words, frozen, "")
    module = training(tmp_path, init=str(tmp_path / "model"), frozen_stages=4, features=str(tmp_path / "kept"))
    before = {name: value.clone() for name, value in module.pretrained.state_dict().items()}
    fit(trainer(tmp_path / "run", max_epochs=1), module, made_data(tmp_path))
    stages = [name for name, _ in module.pretrained.stages.named_children()]
    changed = {
        name.split(".")[1]
        for name, value in module.pretrained.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed and changed <= set(stages[4:])
    kept = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert kept.architecture.frozen_stages == 4


@pytest.mark.parametrize(
    ("model", "frozen", "message"),
    [
        (None, 2, "set model.architecture.frozen_stages"),
        (replace(tiny.ARCHITECTURE, vision="test_vit", hybrid_blocks=0), 2, "model.frozen_stages needs a model"),
        (tiny.ARCHITECTURE, -2, "model.frozen_stages must be at least -1"),
    ],
)
def test_stages_that_cannot_be_thawed(tmp_path: Path, model: Any, frozen: int, message: str) -> None:
    words = tiny.tokenizer()
    options: dict[str, Any] = {"frozen_stages": frozen}
    if model is not None:
        save_directory(tmp_path / "model", tiny.model(words, model), words, model, "")
        options["init"] = str(tmp_path / "model")
    with pytest.raises(OptionError, match=message):
        training(tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["hybrid", "ViT"])
def test_a_tiny_model_overfits_four_samples_and_captions_them_exactly(tmp_path: Path, vision: str) -> None:
    # One caption per image and language, so that there is one right answer.
    first = {name: {code: known[:1] for code, known in tiny.captions(name).items()} for name in list(tiny.COLOURS)[:4]}
    four = [Sample(name, "made", tiny.encode(tiny.picture(name)), captions) for name, captions in first.items()]
    write_shards(four, tmp_path / "four")
    small = replace(tiny.ARCHITECTURE, dropout=0.0, width=48, embedding_width=24)
    if vision == "ViT":
        small = replace(small, vision="test_vit", hybrid_blocks=0)
    module: Recorded = training(
        tmp_path,
        architecture=small,
        losses=Losses(smoothing=0.0),
        optimizer=OptimizerSettings(learning_rate=4e-3, vision_scale=1.0, weight_decay=0.0),
    )
    data = made_data(tmp_path, train=str(tmp_path / "four"), val=None, captions={"en": 1, "zh": 1}, views=1)
    options = {"callbacks": [], "enable_checkpointing": False, "max_epochs": 240}
    data.attach(module.tokenizer, 32)
    trainer(tmp_path, **options).fit(module, datamodule=data)
    save_directory(tmp_path / "model", module.model, module.tokenizer, small, "")
    model = VisionLanguagePipeline("four", load_directory(tmp_path / "model"), torch.device("cpu"))
    names = list(tiny.COLOURS)[:4]
    pictures = [tiny.picture(name) for name in names]
    for language in ("en", "zh"):
        expected = [first[name][language][0] for name in names]
        for beams in (1, 3):
            config = GenerationConfig(beams=beams, max_tokens=16)
            found = model.caption(pictures, language=language, config=config)
            assert [str(caption) for caption in found] == expected
            assert all(caption.complete and caption.language == language for caption in found)
    similarity = model.embed_images(pictures) @ model.embed_text([first[name]["en"][0] for name in names]).T
    assert similarity.argmax(0).tolist() == similarity.argmax(1).tolist() == [0, 1, 2, 3]
    matches = model.match(pictures, [first[name]["zh"][0] for name in names])
    assert matches.argmax(1).tolist() == [0, 1, 2, 3] and matches.diagonal().min() > 0.5
