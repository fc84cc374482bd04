from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tiny
import torch
import transformers
from PIL import Image
from running import fit, made_data, trainer
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from mm.checkpoints import load_directory, save_directory
from mm.checkpoints.open_clip import load_open_clip
from mm.data.transforms import ImageTransform, Preprocessing, to_pixels
from mm.errors import CapabilityError, CheckpointError, UnknownModelError
from mm.pipeline import load
from mm.training.losses import Losses
from mm.training.module import VisionLanguageTraining

NAME, SIGLIP = "mm-test-clip", "mm-test-SigLIP"
TEXTS = ["a red wall", "all of it is green", "一面红色的墙", "", "“Dogs”, &amp; cats_on  a\twall!", "a wall " * 40]


def architecture(folder: Path, name: str, **config: Any) -> None:
    """Tells open_clip of an architecture."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small random CLIP model, whose architecture open_clip is told of."""
    folder = tmp_path_factory.mktemp("clip")
    architecture(
        folder,
        NAME,
        embed_dim=24,
        vision_cfg={"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        text_cfg={"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    torch.manual_seed(0)
    torch.save(open_clip.create_model(NAME).state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise of a small SigLIP: a ViT of timm, and a tokenizer of transformers that texts are cleaned for."""
    folder = tmp_path_factory.mktemp("siglip")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "wall", "all", "of", "it", "is", "green", "dogs", "cats", "on"]
    backend = Backend(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "words")
    tower = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    text = {"context_length": 16, "vocab_size": 14, "width": 64, "heads": 2, "layers": 1, "pool_type": "last"}
    text |= {"hf_tokenizer_name": str(folder / "words"), "tokenizer_kwargs": {"clean": "canonicalize"}}
    text |= {"no_causal_mask": True, "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
    architecture(folder, SIGLIP, embed_dim=64, init_logit_bias=-10, custom_text=True, vision_cfg=tower, text_cfg=text)
    torch.manual_seed(0)
    torch.save(open_clip.create_model(SIGLIP).state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def photos() -> list[Image.Image]:
    """Pictures with much in them, none of them square."""
    noise = [np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8) for number in range(3)]
    return [Image.fromarray(one).resize((70 + 5 * n, 50), Image.Resampling.BICUBIC) for n, one in enumerate(noise)]


def expected(name: str, weights: Path, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """What open_clip embeds images and the texts as."""
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(weights))
    model.eval()
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])  # type: ignore[operator, arg-type, misc]
        texts = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        return model.encode_image(pixels, normalize=True).numpy(), texts.numpy()


def compare(name: str, weights: Path, mine: Any) -> None:
    """Compares the vectors of a loaded model with open_clip's."""
    images, texts = expected(name, weights, photos())
    np.testing.assert_allclose(mine.embed_images(photos(), batch_size=2), images, atol=1e-6)
    np.testing.assert_allclose(mine.embed_text(TEXTS, batch_size=2), texts, atol=1e-6)


def test_vectors_are_those_of_open_clip(weights: Path) -> None:
    mine = load(f"open_clip:{NAME}/{weights}", "cpu")
    assert mine.capabilities == ("embed",) and mine.dimension == 24 and mine.languages == ()
    assert mine.preprocessing == "shortest side scaled to 32, 32x32 cut out, bicubic"
    compare(NAME, weights, mine)
    assert mine.embed_images([]).shape == mine.embed_text([]).shape == (0, 24)


def test_vectors_of_siglip(siglip: Path) -> None:
    compare(SIGLIP, siglip, load(f"open_clip:{SIGLIP}/{siglip}", "cpu"))


@pytest.mark.parametrize("name", [NAME, SIGLIP])
def test_a_saved_model_is_the_same(name: str, weights: Path, siglip: Path, tmp_path: Path) -> None:
    path = weights if name == NAME else siglip
    loaded = load_open_clip(f"open_clip:{name}/{path}")
    save_directory(
        tmp_path,
        loaded.model,
        loaded.tokenizer,
        loaded.architecture,
        "# CLIP\n",
        preprocessing=loaded.preprocessing,
        family=loaded.family,
    )
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mm-open-clip"
    again = load_directory(tmp_path)
    assert (again.family, again.architecture, again.preprocessing) == (
        "CLIP (open_clip)",
        loaded.architecture,
        loaded.preprocessing,
    )
    compare(name, path, load(tmp_path, "cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_cfg": {"widht": 3}}, r"open_clip can't build it \(.*widht"),
        ({"text_cfg": None}, "open_clip can't build it"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:somebody/something"}}, "timm has no model 'hf-hub:somebody/someth"),
        ({"embed_dim": 25}, "the weights don't fit the model: .*text_projection has shape"),
    ],
)
def test_a_directory_that_was_changed_is_refused(
    change: dict[str, Any], message: str, weights: Path, tmp_path: Path
) -> None:
    loaded = load_open_clip(f"open_clip:{NAME}/{weights}")
    save_directory(tmp_path, loaded.model, loaded.tokenizer, loaded.architecture, "# CLIP\n")
    config = json.loads((tmp_path / "config.json").read_text())
    for document, error in (
        (config | {"clean": "upper"}, "cleaned by 'upper'; mm knows lower, whitespace, canonicalize"),
        (
            config | {"architecture": config["architecture"] | {"config": config["architecture"]["config"] | change}},
            message,
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=error) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("resize", "mode"), [("shortest", "shortest"), ("stretch", "squash")])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_pixels_are_those_of_open_clip(resize: str, mode: str, filter: str) -> None:
    seen = open_clip.transform.PreprocessCfg(
        size=32, resize_mode=mode, interpolation=filter, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    theirs: Any = open_clip.transform.image_transform_v2(seen, is_train=False)
    mine = ImageTransform(Preprocessing(32, resize, filter, pillow=True))
    for width in range(33, 60, 3):  # margins of every kind, odd ones too
        noise = np.random.default_rng(width).integers(0, 256, (48, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        assert torch.equal(to_pixels(mine(image)), theirs(image))


@pytest.mark.parametrize("name", [NAME, SIGLIP])
def test_a_contrastive_loss_reaches_every_weight(name: str, weights: Path, siglip: Path) -> None:
    path = weights if name == NAME else siglip
    loaded = load_open_clip(f"open_clip:{name}/{path}")
    model, words = loaded.model.train(), loaded.tokenizer
    tokens, padding = map(torch.from_numpy, words.pad(words.encode(TEXTS[:2], 5)))
    side = loaded.architecture.image_size
    images = model.image_embedding(model.image_tokens(to_pixels(torch.randint(256, (2, 3, side, side)))))
    similar = images @ model.text_embedding(tokens, padding).T * model.logit_scale.exp()
    torch.nn.functional.cross_entropy(similar, torch.arange(2)).backward()
    unused = [key for key, value in model.named_parameters() if value.grad is None]
    assert unused == ["model.logit_bias"] * (name == SIGLIP)


def test_it_trains_and_what_was_trained_loads(weights: Path, tmp_path: Path) -> None:
    module = VisionLanguageTraining(init=f"open_clip:{NAME}/{weights}", losses=Losses(contrastive=1.0))
    fit(trainer(tmp_path, max_epochs=1), module, made_data(tmp_path, captions={"en": 1}, max_tokens=10))
    trained = load(next((tmp_path / "checkpoints").glob("*.ckpt")), "cpu")
    before = load(f"open_clip:{NAME}/{weights}", "cpu")
    assert trained.capabilities == ("embed",) and trained.preprocessing == before.preprocessing
    assert np.abs(trained.embed_images(photos()) - before.embed_images(photos())).max() > 1e-3
    assert np.abs(trained.embed_text(TEXTS) - before.embed_text(TEXTS)).max() > 1e-3
    np.testing.assert_allclose(trained.embed_text(TEXTS[:1]), trained.embed_text(TEXTS)[:1], atol=1e-6)


def test_cut_captions_keep_their_end(weights: Path) -> None:
    loaded = load_open_clip(f"open_clip:{NAME}/{weights}")
    words = loaded.tokenizer
    tokens, padding = map(torch.from_numpy, words.pad(words.encode(["a red wall of stones", "a"], 3)))
    whole = loaded.model.whole_texts(tokens, padding)
    assert torch.equal(whole, open_clip.get_tokenizer(NAME)(["a red wall", "a"]))


def test_fingerprint_tells_weights_apart_and_waits(weights: Path) -> None:
    torch.manual_seed(1)
    other = weights.with_name("other.pt")
    torch.save(open_clip.create_model(NAME).state_dict(), other)
    loaded = [load_open_clip(f"open_clip:{NAME}/{path}") for path in (weights, weights, other)]
    assert not any("value" in vars(one.fingerprint) for one in loaded)
    prints = [str(one.fingerprint) for one in loaded]
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


def test_a_tokenizer_that_is_read_otherwise_is_refused(siglip: Path, tmp_path: Path) -> None:
    folder, name = siglip.parent, "mm-test-left"
    config = json.loads((folder / f"{SIGLIP}.json").read_text())
    words = transformers.AutoTokenizer.from_pretrained(folder / "words", padding_side="left")
    words.save_pretrained(tmp_path / "words")
    config["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "words")
    architecture(tmp_path, name, **config)
    with pytest.raises(CheckpointError, match="mm can't read texts as open_clip's tokenizer of it does"):
        load(f"open_clip:{name}/{siglip}")
    config["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "nothing")
    architecture(tmp_path, name, **config)
    with pytest.raises(UnknownModelError, match="its tokenizer can't be fetched") as caught:
        load(f"open_clip:{name}/{siglip}")
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
