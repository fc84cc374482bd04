from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import tiny
import torch
from PIL import Image

from mm.checkpoints import Loaded, export_onnx
from mm.checkpoints.directory import special_tokens
from mm.checkpoints.export_onnx import IMAGE, TEXT, save_onnx
from mm.data.transforms import Preprocessing
from mm.errors import CapabilityError, OutputError, UsageError
from mm.models import DualEncoder, OpenClip, Parts, build
from mm.pipeline import VisionLanguagePipeline

WORDS = tiny.tokenizer()
VIT = {"preset": "vit", "image_size": 32, "patch_size": 8, "width": 32, "heads": 4, "blocks": 1}
TOWER = {"preset": "gpt2", "width": 32, "heads": 4, "blocks": 1, "max_tokens": 20, "head": False}
EMBEDS: dict[str, Any] = {"embedding_width": 16, "matches": False}
SHAPES = {
    "BLIP": Parts(
        vision=VIT,
        text_encoder={"preset": "bert", "width": 32, "heads": 4, "blocks": 1, "hidden": 48, "max_tokens": 20},
        image_pooling="first",
        text_pooling="first",
        embedding_width=16,
    ),
    "CLIP": Parts(
        vision=VIT | {"pre_norm": True, "activation": "quick_gelu"},
        text_encoder=TOWER | {"mask": "causal"},
        image_pooling="first",
        text_pooling="last",
        image_bias=False,
        text_bias=False,
        **EMBEDS,
    ),
    "SigLIP": Parts(
        vision=VIT | {"class_token": False, "attention_pool": True},
        text_encoder=TOWER | {"mask": "bidirectional"},
        image_pooling="pool",
        text_pooling="last",
        image_bias=None,
        text_length=20,
        **(EMBEDS | {"embedding_width": 32}),
    ),
}


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Moves all weights away from what they begin with, so that nothing is ignored."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def of_hub(kind: str) -> Loaded:
    """A model in the shape of a public one, whose texts end with a token as theirs do."""
    parts = SHAPES[kind]
    words = type(WORDS).from_json(WORDS.to_json(), "words", WORDS.special | {"close": WORDS.end})
    model = spread(build(parts, len(words), special_tokens(words)))
    return Loaded(model, words, parts, "", Preprocessing(32, "shortest", "bilinear", 40), kind)


def of_open_clip() -> Loaded:
    """A CLIP of open_clip."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 300, "width": 32, "heads": 2, "layers": 1},
    }
    described = OpenClip(config, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    words = type(WORDS).from_json(WORDS.to_json(), "words", WORDS.special | {"close": len(WORDS) - 1}, "lower")
    model = DualEncoder(spread(open_clip.CLIP(**config)), described, special_tokens(words))
    return Loaded(model.eval(), words, described, "", Preprocessing(32, "shortest", pillow=True), "CLIP (open_clip)")


def of_mm(**changes: Any) -> Loaded:
    """A model as mm-tiny is one."""
    architecture = replace(tiny.ARCHITECTURE, **changes)
    return Loaded(spread(tiny.model(WORDS, architecture)), WORDS, architecture, "")  # type: ignore[arg-type]


MODELS = {
    "mm": of_mm,
    "frozen stem": lambda: of_mm(frozen_stages=-1),
    "BLIP": lambda: of_hub("BLIP"),
    "CLIP": lambda: of_hub("CLIP"),
    "SigLIP": lambda: of_hub("SigLIP"),
    "open_clip": of_open_clip,
}


def texts(loaded: Loaded, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts, the first as long as said and the last empty."""
    generator = torch.Generator().manual_seed(length)
    padding = torch.arange(length) < torch.linspace(length, 0, rows)[:, None].ceil()
    tokens = torch.randint(5, len(loaded.tokenizer) - 1, (rows, length), generator=generator)
    return tokens.masked_fill(~padding, loaded.tokenizer.padding), padding


def run(path: Path, **arrays: torch.Tensor) -> torch.Tensor:
    """What onnxruntime makes of a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(None, {name: value.numpy() for name, value in arrays.items()})
    return torch.from_numpy(vectors)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    loaded = MODELS[name]()
    model = loaded.model
    differences = save_onnx(tmp_path, loaded)
    assert differences.keys() == {IMAGE, TEXT} and max(differences.values()) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {IMAGE, TEXT, "tokenizer.json", "config.json", "README.md"}
    for rows in (1, 5):
        pixels = torch.rand(rows, 3, 32, 32)
        with torch.inference_mode():
            expected = model.image_embedding(model.image_tokens(pixels))
        torch.testing.assert_close(run(tmp_path / IMAGE, pixels=pixels), expected, atol=1e-5, rtol=0)
        for length in (1, 4, model.text_room):
            tokens, padding = texts(loaded, rows, length)
            with torch.inference_mode():
                expected = model.text_embedding(tokens, padding)
            found = run(tmp_path / TEXT, tokens=tokens, padding=padding)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            assert rows == 1 or expected.std(0).max() > 1e-3, "texts that all look the same prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mm", "CLIP", "open_clip"])
def test_the_readme_says_how_to_use_them_without_mm(name: str, tmp_path: Path) -> None:
    loaded = MODELS[name]()
    save_onnx(tmp_path / "onnx", loaded)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "onnx/README.md").read_text(), re.DOTALL)
    pictures = [Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)), tiny.picture("red")]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    said = ["A red wall.", "", "all of it   is green", "一面红色的墙。"]
    code += "\nimport sys\nassert 'mm' not in sys.modules and 'torch' not in sys.modules\n"
    code += f"images = embed_images([Image.open(f'../{{number}}.png') for number in range({len(pictures)})])\n"
    code += f"np.savez('../vectors', images=images, texts=embed_texts({said!r}))\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "onnx", check=True)
    with np.load(tmp_path / "vectors.npz") as vectors:
        pipeline = VisionLanguagePipeline(name, loaded, torch.device("cpu"))
        np.testing.assert_allclose(vectors["texts"], pipeline.embed_text(said), atol=1e-5)
        # Pillow and torch scale a few pixels differently, by one 255th
        assert (vectors["images"] * pipeline.embed_images(pictures)).sum(1).min() > 0.999


@pytest.mark.slow
def test_files_that_give_other_vectors_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = of_mm()
    made = export_onnx._export

    def drifting(tower: torch.nn.Module, path: Path, loaded: Loaded) -> None:
        made(tower, path, loaded)
        with torch.no_grad():
            loaded.model.text_projection.weight.mul_(torch.linspace(1.0, 1.01, 16)[:, None])

    monkeypatch.setattr(export_onnx, "_export", drifting)
    with pytest.raises(OutputError, match=r"text.onnx: gives vectors that are .* apart from the model's"):
        save_onnx(tmp_path / "onnx", loaded)
    assert list((tmp_path / "onnx").iterdir()) == []


@pytest.mark.slow
def test_large_weights_are_kept_beside_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "WHOLE", 0)
    loaded = of_hub("CLIP")
    save_onnx(tmp_path, loaded)
    assert (tmp_path / f"{IMAGE}.data").is_file() and (tmp_path / f"{TEXT}.data").is_file()
    tokens, padding = texts(loaded, 3, 5)
    with torch.inference_mode():
        expected = loaded.model.text_embedding(tokens, padding)
    found = run(tmp_path / TEXT, tokens=tokens, padding=padding)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_model_that_does_not_embed(tmp_path: Path) -> None:
    parts = Parts(vision=VIT, text_decoder=TOWER | {"head": True, "mask": "causal"}, matches=False)
    loaded = Loaded(build(parts, len(WORDS), special_tokens(WORDS)), WORDS, parts, "")
    with pytest.raises(CapabilityError, match=r"can't embed \(it can caption\)"):
        save_onnx(tmp_path / "onnx", loaded)
    assert not (tmp_path / "onnx").exists()


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "PACKAGES", ("onnx", "onnx_of_tomorrow"))
    with pytest.raises(UsageError, match=r"need onnx_of_tomorrow; install what mm\[onnx\] names"):
        save_onnx(tmp_path / "onnx", of_mm())
    assert not (tmp_path / "onnx").exists()


def test_another_model_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mm-vision-language"}))
    with pytest.raises(OutputError, match="belongs to a model of another kind"):
        save_onnx(tmp_path, of_mm())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        save_onnx(tmp_path / "file" / "onnx", of_mm())
