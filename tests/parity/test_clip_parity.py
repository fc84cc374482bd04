from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from folders import random_, wordpiece
from PIL import Image
from tokenizers import processors

from mm.errors import CapabilityError, CheckpointError
from mm.pipeline import load

VISION = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 70}
LENGTH = 12
TEXTS = ["a dog", "the cat's.", "a", "", " A  photo of two dogs ", "a red dog on the grass " * 3]
Folder = tuple[Path, Any, Any]
"""A checkpoint, the reference model, and what the reference makes of images and texts before it."""


def clip_words() -> Any:
    """CLIP's own tokenizer with a vocabulary of letters and a few words."""
    letters = "abcdefghijklmnopqrstuvwxyz.'"
    merges = [("d", "o"), ("g</w>", "s</w>"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>")]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "do", "dog</w>", "ca", "cat</w>", "g</w>s</w>"]
    names += [f"filler{number}" for number in range(68 - len(names))] + ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=merges)


def clip(folder: Path, activation: str = "quick_gelu", end: int = 69) -> Folder:
    """A small random CLIP; images are cut, texts end with the last token of the vocabulary."""
    towers = {"intermediate_size": 40, "hidden_act": activation}
    text = TEXT | towers | {"max_position_embeddings": LENGTH, "bos_token_id": 68, "eos_token_id": end}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION | towers, projection_dim=24)
    model = random_(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    processor = transformers.CLIPProcessor(images, clip_words())
    processor.save_pretrained(folder)
    return folder, model, processor


def siglip(folder: Path) -> Folder:
    """A small random SigLIP; images are stretched, texts padded with a token that isn't the configuration's."""
    towers = {"intermediate_size": 40}
    config = transformers.SiglipConfig(
        text_config=TEXT | towers | {"max_position_embeddings": LENGTH}, vision_config=VISION | towers
    )
    model = random_(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    words = wordpiece(folder, 70, ("</s>", "<unk>", "<pad>"))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_input_names=["input_ids"]
    )
    processor = transformers.SiglipProcessor(
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer
    )
    processor.save_pretrained(folder)
    return folder, model, processor


ROWS: dict[str, tuple[Callable[[Path], Folder], str | bool]] = {"CLIP": (clip, True), "SigLIP": (siglip, "max_length")}


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Files of photos with much in them, none of them square."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (9, 7 + number, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((70, 50 + 20 * number), Image.Resampling.BICUBIC).save(path)
    return paths


def images_of(reference: Folder, paths: list[Path]) -> torch.Tensor:
    """What the reference embeds files of images as."""
    _, model, processor = reference
    with torch.inference_mode():
        pixels = processor(images=[Image.open(path) for path in paths], return_tensors="pt").pixel_values
        return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def texts_of(reference: Folder, texts: list[str], padding: str | bool) -> torch.Tensor:
    """What the reference embeds texts as."""
    _, model, processor = reference
    tokens = processor(text=texts, padding=padding, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.inference_mode():
        return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def compare(row: str, reference: Folder, padding: str | bool, paths: list[Path], close: Any) -> None:
    """Compares vectors of images and texts, all together and one by one."""
    mine = load(reference[0], "cpu")
    close(row, torch.from_numpy(mine.embed_images(paths)), images_of(reference, paths))
    close(row, torch.from_numpy(mine.embed_text(TEXTS)), texts_of(reference, TEXTS, padding))
    close(row, torch.from_numpy(mine.embed_images(paths, batch_size=1)), images_of(reference, paths))
    alone = torch.cat([texts_of(reference, [text], padding) for text in TEXTS])
    close(row, torch.from_numpy(mine.embed_text(TEXTS, batch_size=1)), alone)


@pytest.mark.parametrize("row", ROWS)
def test_vectors_of_files_and_texts(row: str, tmp_path: Path, photos: list[Path], close: Any) -> None:
    make, padding = ROWS[row]
    compare(row, make(tmp_path / "model"), padding, photos, close)


@pytest.mark.parametrize(("activation", "end"), [("gelu", 69), ("quick_gelu", 2)])
def test_other_clips(activation: str, end: int, tmp_path: Path, photos: list[Path], close: Any) -> None:
    compare("CLIP", clip(tmp_path / "model", activation, end), True, photos, close)


def test_old_configurations_of_clip_say_it_twice(tmp_path: Path, photos: list[Path], close: Any) -> None:
    reference = clip(tmp_path / "model", "gelu")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    for name in ("text_config", "vision_config"):
        config[f"{name}_dict"] = config[name] | {"hidden_act": "quick_gelu"}
    path.write_text(json.dumps(config))
    again = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
    compare("CLIP", (reference[0], again, reference[2]), True, photos, close)


def test_open_clip(tmp_path: Path, photos: list[Path], close: Any) -> None:
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
    description = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "mm-parity-clip.json").write_text(json.dumps(description))
    open_clip.add_model_config(tmp_path / "mm-parity-clip.json")
    model, _, transform = open_clip.create_model_and_transforms("mm-parity-clip")
    torch.save(random_(model).state_dict(), tmp_path / "weights.pt")
    tokenize: Any = open_clip.get_tokenizer("mm-parity-clip")
    with torch.inference_mode():
        pixels = torch.stack([cast(Any, transform)(Image.open(path)) for path in photos])
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(tokenize(TEXTS), normalize=True)
    mine = load(f"open_clip:mm-parity-clip/{tmp_path / 'weights.pt'}", "cpu")
    for size in (1, len(TEXTS)):
        close("CLIP (open_clip)", torch.from_numpy(mine.embed_images(photos, size)), images)
        close("CLIP (open_clip)", torch.from_numpy(mine.embed_text(TEXTS, size)), texts)


@pytest.mark.parametrize("row", ROWS)
def test_a_saved_model_is_the_same(row: str, tmp_path: Path, photos: list[Path]) -> None:
    from mm.checkpoints import load_directory, save_directory
    from mm.checkpoints.resolve import load_model

    folder = ROWS[row][0](tmp_path / "model")[0]
    loaded = load_model(folder)
    save_directory(
        tmp_path / "saved",
        loaded.model,
        loaded.tokenizer,
        loaded.architecture,
        "# saved\n",
        preprocessing=loaded.preprocessing,
        family=loaded.family,
    )
    assert load_directory(tmp_path / "saved").family == row
    first, second = load(folder, "cpu"), load(tmp_path / "saved", "cpu")
    np.testing.assert_array_equal(first.embed_images(photos), second.embed_images(photos))
    np.testing.assert_array_equal(first.embed_text(TEXTS), second.embed_text(TEXTS))


@pytest.mark.parametrize("row", ROWS)
def test_they_embed_and_do_nothing_else(row: str, tmp_path: Path, photos: list[Path]) -> None:
    mine = load(ROWS[row][0](tmp_path / "model")[0], "cpu")
    assert mine.capabilities == ("embed",) and mine.languages == ()
    with pytest.raises(CapabilityError, match=r"can't caption \(it can embed\)"):
        mine.caption(photos)
    with pytest.raises(CapabilityError, match=r"can't match \(it can embed\)"):
        mine.match(photos, TEXTS)


def change(path: Path, **values: Any) -> None:
    """Changes values of a file of JSON."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_files_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    folder = clip(tmp_path / "clip", end=7)[0]
    with pytest.raises(CheckpointError, match=r"text_config: eos_token_id is 7, but the tokenizer ends a text with 69"):
        load(folder)
    change(folder / "tokenizer.json", post_processor=None)
    with pytest.raises(
        CheckpointError, match=r"clip: the tokenizer puts 0 tokens before a text and not a single one behind it"
    ):
        load(folder)
    folder = siglip(tmp_path / "siglip")[0]
    change(folder / "tokenizer_config.json", pad_token="[FILL]")
    with pytest.raises(CheckpointError, match=r"pad_token is '\[FILL\]', which is no special token of the tokenizer"):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", vision_config=config["vision_config"] | {"vision_use_head": False})
    with pytest.raises(CheckpointError, match=r"vision_config: vision_use_head is False; mm knows True"):
        load(folder)
