from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tiny
import torch

from mm.checkpoints.open_clip import load_open_clip
from mm.errors import CapabilityError, CheckpointError, UnknownModelError
from mm.pipeline import load

NAME = "mm-test-clip"
TEXTS = ["a red wall", "all of it is green", "一面红色的墙"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small random CLIP model, whose architecture open_clip is told of."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model(NAME).state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def test_vectors_are_those_of_open_clip(weights: Path) -> None:
    model, _, transform = open_clip.create_model_and_transforms(NAME, pretrained=str(weights))
    model.eval()
    pictures = [tiny.picture(name) for name in tiny.COLOURS]
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(image) for image in pictures]), normalize=True).numpy()
        texts = model.encode_text(open_clip.get_tokenizer(NAME)(TEXTS), normalize=True).numpy()
    mine = load(f"open_clip:{NAME}/{weights}", "cpu")
    assert mine.capabilities == ("embed",) and mine.dimension == 24 and mine.languages == ()
    np.testing.assert_allclose(mine.embed_images(pictures, batch_size=3), images, atol=1e-5)
    np.testing.assert_allclose(mine.embed_text(TEXTS, batch_size=2), texts, atol=1e-5)
    assert mine.embed_images([]).shape == mine.embed_text([]).shape == (0, 24)


def test_fingerprint_tells_weights_apart(weights: Path) -> None:
    torch.manual_seed(1)
    other = weights.with_name("other.pt")
    torch.save(open_clip.create_model(NAME).state_dict(), other)
    prints = [load_open_clip(f"open_clip:{NAME}/{path}")[2] for path in (weights, weights, other)]
    assert prints[0] == prints[1] != prints[2] and len(prints[0]) == 64


def test_it_neither_captions_nor_matches(weights: Path) -> None:
    model = load(f"open_clip:{NAME}/{weights}", "cpu")
    with pytest.raises(CapabilityError, match=r"can't caption \(it can embed\); models that can: mm-tiny"):
        model.caption(tiny.picture("red"))
    with pytest.raises(CapabilityError, match=r"can't match \(it can embed\); models that can: mm-tiny"):
        model.match(tiny.picture("red"), "a wall")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-Z-99/openai", "open_clip has no architecture 'ViT-Z-99'; some it has: "),
        ("open_clip:", "open_clip has no architecture ''"),
        ("open_clip:ViT-B-32/nothing", r"'nothing' is no file and no tag of ViT-B-32; tags: .*openai"),
        ("open_clip:ViT-B-32", "'' is no file and no tag of ViT-B-32"),
    ],
)
def test_unknown_names_list_known_ones(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_or_run_code_are_refused(weights: Path, tmp_path: Path) -> None:
    class Dangerous:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    state = torch.load(weights, weights_only=True)
    less = {name: value for name, value in state.items() if name != "ln_final.bias"}
    misshapen = state | {"ln_final.bias": torch.zeros(3)}
    path = tmp_path / "bad.pt"
    for document in (less, state | {"surplus": torch.zeros(1)}, misshapen, {"a": Dangerous()}, []):
        torch.save(document, path)
        with pytest.raises(CheckpointError, match="the weights can't be used") as caught:
            load(f"open_clip:{NAME}/{path}")
        assert "\n" not in str(caught.value)
    path.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="the weights can't be used"):
        load(f"open_clip:{NAME}/{path}")
    assert not (tmp_path / "ran").exists()
