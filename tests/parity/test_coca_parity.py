from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from folders import random_
from PIL import Image

from mm.checkpoints import load_directory, save_directory
from mm.checkpoints.directory import Loaded
from mm.checkpoints.open_clip import load_open_clip
from mm.data.transforms import to_pixels
from mm.errors import CheckpointError, UsageError
from mm.generation import GenerationConfig, generate
from mm.models import build
from mm.pipeline import VisionLanguagePipeline, load

NAME = "coca_mm-test"
TEXTS = ["a dog", "Two dogs' bowls, in the snow.", "", "!!! a red wall " * 12, "grass"]
GREEDY = GenerationConfig(beams=1, min_tokens=0, max_tokens=12)
START, END = 49406, 49407


def config(**vision: Any) -> dict[str, Any]:
    """open_clip's description of a small CoCa, otherwise as that of coca_ViT-B-32."""
    tower = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32, "output_tokens": True}
    pooled = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6}
    shared = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
    return {
        "embed_dim": 32,
        "vision_cfg": tower | pooled | vision,
        "text_cfg": shared | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": shared | {"layers": 3, "attn_pooler_heads": 4},
        "custom_text": True,
    }


def reference(folder: Path, name: str, description: dict[str, Any]) -> tuple[Any, str]:
    """A random CoCa of open_clip, and the name that mm loads it by."""
    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(description))
    open_clip.add_model_config(folder / f"{name}.json")
    model = random_(open_clip.create_model(name), scale=1.5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(1.0)
                module.bias.mul_(0.3)
        model.text_decoder.text_projection[:, END] *= 6.0  # some captions end
        model.text_decoder.text_projection[:, 0] = 0.0  # open_clip hides what follows this token: it is never written
    torch.save(model.state_dict(), folder / "weights.pt")
    return model, f"open_clip:{name}/{folder / 'weights.pt'}"


@pytest.fixture(scope="module")
def coca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A CoCa of open_clip's usual kind."""
    return reference(tmp_path_factory.mktemp("coca") / "model", NAME, config())


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Photos with much in them, none of them square."""
    noise = [np.random.default_rng(number).integers(0, 256, (9, 7 + number, 3), dtype=np.uint8) for number in range(3)]
    return [Image.fromarray(one).resize((70, 50 + 20 * n), Image.Resampling.BICUBIC) for n, one in enumerate(noise)]


def pixels_of(model: Any, images: list[Image.Image]) -> torch.Tensor:
    """Images as open_clip takes them."""
    seen = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(seen, is_train=False)
    return torch.stack([transform(image) for image in images])


def compare_logits(model: Any, loaded: Loaded, images: list[Image.Image], texts: list[str], close: Any) -> None:
    """Compares what follows each token of texts, where it isn't padding."""
    words, mine = loaded.tokenizer, loaded.model
    rows = open_clip.get_tokenizer(NAME)(texts, mine.text_length)
    tokens, padding = map(torch.from_numpy, words.pad(words.encode(texts, mine.text_room)))
    pipeline = VisionLanguagePipeline("test", loaded, torch.device("cpu"))
    seen = to_pixels(torch.stack([pipeline._transform(image) for image in images]))
    with torch.inference_mode():
        expected = model(pixels_of(model, images), rows, output_labels=False)["logits"]
        about = mine.about(mine.image_tokens(seen))
        ours = mine.caption_logits(about, torch.full((len(texts),), START), tokens, padding)
    real = torch.nn.functional.pad(padding, (1, 0), value=True)
    close("CoCa", ours, expected[:, : real.shape[1]][real])


def test_logits(coca: tuple[Any, str], images: list[Image.Image], close: Any) -> None:
    loaded = load_open_clip(coca[1])
    compare_logits(coca[0], loaded, images, TEXTS[:3], close)
    compare_logits(coca[0], loaded, images[:1], TEXTS[3:4], close)


def test_vectors(coca: tuple[Any, str], images: list[Image.Image], close: Any) -> None:
    model, name = coca
    mine = load(name, "cpu")
    with torch.inference_mode():
        close("CoCa", torch.from_numpy(mine.embed_images(images)), model.encode_image(pixels_of(model, images)))
        texts = model.encode_text(open_clip.get_tokenizer(NAME)(TEXTS))
    for size in (1, len(TEXTS)):
        close("CoCa", torch.from_numpy(mine.embed_text(TEXTS, batch_size=size)), texts)


def greedy(model: Any, pixels: torch.Tensor) -> list[list[int]]:
    """Writes captions with open_clip's forward pass alone, each step from the beginning."""
    written = []
    with torch.inference_mode():
        for one in pixels:
            row = [START]
            while len(row) <= GREEDY.max_tokens:
                logits = model(one[None], torch.tensor([row]), output_labels=False)["logits"][0, -1]
                row.append(int(logits.argmax()))
                if row[-1] == END:
                    row.pop()
                    break
            written.append(row[1:])
    return written


def test_greedy_captions(coca: tuple[Any, str], images: list[Image.Image]) -> None:
    model, name = coca
    expected = greedy(model, pixels_of(model, images))
    assert len({tuple(row) for row in expected}) == len(images)
    assert len({len(row) for row in expected}) > 1
    loaded = load_open_clip(name)
    mine, words = loaded.model, loaded.tokenizer
    pipeline = VisionLanguagePipeline("test", loaded, torch.device("cpu"))
    seen = to_pixels(torch.stack([pipeline._transform(image) for image in images]))
    for cached in (True, False):
        with torch.inference_mode():
            about = mine.about(mine.image_tokens(seen))
        found = generate(
            mine.decoder, about, [[START]] * len(images), GREEDY, end=words.end, fill=words.padding, cached=cached
        )
        assert [one.tokens for one in found] == expected
    captions = pipeline.caption(images, config=GREEDY, batch_size=2)
    assert [caption.text for caption in captions] == words.decode(expected)
    assert pipeline.caption(images[1], config=GREEDY)[0].text == captions[1].text


def test_a_saved_captioner_is_the_same(coca: tuple[Any, str], images: list[Image.Image], tmp_path: Path) -> None:
    loaded = load_open_clip(coca[1])
    save_directory(
        tmp_path,
        loaded.model,
        loaded.tokenizer,
        loaded.architecture,
        "# CoCa\n",
        preprocessing=loaded.preprocessing,
        family=loaded.family,
    )
    assert load_directory(tmp_path).family == "CoCa"
    before, after = load(coca[1], "cpu"), load(tmp_path, "cpu")
    assert after.capabilities == ("caption", "embed") and after.languages == ("en",)
    assert after.caption(images, config=GREEDY) == before.caption(images, config=GREEDY)
    np.testing.assert_array_equal(after.embed_images(images), before.embed_images(images))
    np.testing.assert_array_equal(after.embed_text(["“dog’s”", *TEXTS]), before.embed_text(["“dog’s”", *TEXTS]))
    assert before.fingerprint == load(coca[1], "cpu").fingerprint


def test_a_tower_without_pooled_tokens(tmp_path: Path, images: list[Image.Image], close: Any) -> None:
    plain = config(attentional_pool=False, width=32, head_width=8, patch_size=8)
    model, name = reference(tmp_path / "model", "coca_mm-plain", plain | {"quick_gelu": True, "embed_dim": 24})
    compare_logits(model, load_open_clip(name), images, TEXTS[:3], close)
    with torch.inference_mode():
        expected = model.encode_image(pixels_of(model, images))
    close("CoCa", torch.from_numpy(load(name, "cpu").embed_images(images)), expected)


def test_parts_that_mm_has_no_place_for_are_named(tmp_path: Path) -> None:
    scaled = config()
    scaled["multimodal_cfg"]["ls_init_value"] = 0.1
    _, name = reference(tmp_path / "model", "coca_mm-scaled", scaled)
    with pytest.raises(CheckpointError, match=r"mm's CoCa differs in text_decoder.cross_attn.0.ls_1.gamma, "):
        load(name)


@pytest.mark.parametrize("change", [{"text_encoder": None}, {"heads": 2}, {"width": 16}])
def test_a_decoder_that_has_nothing_to_stand_on(coca: tuple[Any, str], change: dict[str, Any]) -> None:
    loaded = load_open_clip(coca[1])
    parts, special = loaded.architecture, loaded.model.special
    changed = change if "text_encoder" in change else {"text_decoder": parts.text_decoder | change}
    with pytest.raises(
        UsageError, match=r"architecture.text_decoder: .*its first blocks are a text encoder's, which must"
    ):
        build(replace(parts, **changed), 49408, special)


def test_its_losses_reach_every_weight(coca: tuple[Any, str]) -> None:
    mine = load_open_clip(coca[1]).model.train()
    tokens, padding = torch.randint(1, 40000, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    seen = mine.image_tokens(torch.rand(2, 3, 32, 32))
    logits = mine.caption_logits(mine.about(seen), torch.full((2,), START), tokens, padding)
    targets = mine.caption_targets(tokens, padding, torch.ones(2, dtype=torch.bool))
    similar = mine.image_embedding(seen) @ mine.text_embedding(tokens, padding).T * mine.logit_scale.exp()
    loss = torch.nn.functional.cross_entropy(logits, targets)
    (loss + torch.nn.functional.cross_entropy(similar, torch.arange(2))).backward()
    assert [name for name, value in mine.named_parameters() if value.grad is None] == []
