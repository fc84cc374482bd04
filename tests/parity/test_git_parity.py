from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from folders import padded, random_, wordpiece
from PIL import Image
from torch import Tensor

import mm
from mm.checkpoints import save_directory
from mm.checkpoints.resolve import load_model
from mm.data.images import read_image
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import CheckpointError
from mm.generation import GenerationConfig, generate

Close = Callable[[str, Tensor, Tensor], None]

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
PHOTOS = [SAMPLES / f"{name}.jpg" for name in ("cat", "rocket", "coffee", "officer")]
PROMPTS = ["", "a photo of", "the dog's red grass."]
BEGIN, END = 2, 3
GREEDY = GenerationConfig(min_tokens=0, max_tokens=12)
TEXT = {
    "vocab_size": 60,
    "hidden_size": 40,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "intermediate_size": 56,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 24,
    "layer_norm_eps": 1e-2,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 3e-2,
}


class Reference(NamedTuple):
    """A model of transformers, with what prepares its inputs."""

    model: Any
    processor: Any

    def pixels(self, photo: Path) -> Tensor:
        """A photo as the model takes it."""
        return self.processor(images=Image.open(photo), return_tensors="pt").pixel_values

    @torch.inference_mode()
    def written(self, photo: Path, prompt: str) -> tuple[list[int], str]:
        """What it writes about a photo, greedily: the ids behind the first up to the end, and the text."""
        words = self.processor.tokenizer
        begun = torch.tensor([[BEGIN, *words(prompt, add_special_tokens=False).input_ids]])
        ids = self.model.generate(
            pixel_values=self.pixels(photo), input_ids=begun, max_new_tokens=GREEDY.max_tokens, do_sample=False
        )[0]
        tokens = ids.tolist()[1:]
        return tokens[: tokens.index(END)] if END in tokens else tokens, words.decode(ids, skip_special_tokens=True)


def made(folder: Path, *, tied: bool = False, seed: int = 0) -> Reference:
    """A small random GIT, saved with its processor."""
    config = transformers.GitConfig(vision_config=VISION, **TEXT, tie_word_embeddings=tied)
    words = transformers.BertTokenizer(wordpiece(folder, 60).get_vocab(), clean_up_tokenization_spaces=True)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 35}, crop_size={"height": 32, "width": 32})
    model = random_(transformers.GitForCausalLM(config), seed, 1.5)
    if not tied:
        with torch.no_grad():
            model.output.weight[END].mul_(3)  # so that some captions end by themselves
    reference = Reference(model, transformers.GitProcessor(images, words))
    reference.model.save_pretrained(folder)
    reference.processor.save_pretrained(folder)
    return reference


@pytest.mark.parametrize("tied", [False, True])
def test_logits(tied: bool, tmp_path: Path, close: Close) -> None:
    reference = made(tmp_path, tied=tied)
    model = mm.load(tmp_path, "cpu").model
    given = torch.cat([reference.pixels(photo) for photo in PHOTOS[:3]])
    norm = model.vision.normalize
    tokens, real = padded()
    for rows in (1, 3):
        with torch.inference_mode():
            expected = reference.model(tokens[:rows], real[:rows].long(), pixel_values=given[:rows]).logits
            about = model.about(model.image_tokens(given[:rows] * norm.std + norm.mean))
            hidden = model.decoder(tokens[:rows], padding=real[:rows], prefix=about.prefix)
            ours, behind = model.decoder.logits(hidden), expected[:, about.prefix.shape[1] :]
        close("GIT", ours[real[:rows]], behind[real[:rows]])


def test_logits_as_captioning_trains_them(tmp_path: Path, close: Close) -> None:
    reference = made(tmp_path)
    model = mm.load(tmp_path, "cpu").model
    given = torch.cat([reference.pixels(photo) for photo in PHOTOS[:3]])
    norm = model.vision.normalize
    tokens, real = padded()
    tokens[:, 0] = BEGIN
    with torch.inference_mode():
        expected = reference.model(tokens, real.long(), pixel_values=given).logits
        about = model.about(model.image_tokens(given * norm.std + norm.mean))
        ours = model.caption_logits(about, tokens[:, 0], tokens[:, 1:], real[:, 1:])
    close("GIT", ours, expected[:, about.prefix.shape[1] :][real])


def test_captions_of_photos(tmp_path: Path) -> None:
    captions: list[str] = []
    ended = 0
    for seed in range(2):
        reference = made(tmp_path, seed=seed)
        model = mm.load(tmp_path, "cpu")
        assert model.family == "GIT" and model.capabilities == ("caption",) and model.languages == ("en",)
        pairs = [(photo, prompt) for photo in PHOTOS for prompt in PROMPTS]
        expected = [reference.written(*pair)[1] for pair in pairs]
        photos, prompts = (list(given) for given in zip(*pairs, strict=True))
        together = model.caption(photos, prompt=prompts, config=GREEDY, batch_size=5)
        assert [caption.text for caption in together] == expected
        assert [model.caption(p, prompt=t, config=GREEDY)[0].text for p, t in pairs] == expected
        captions += expected
        ended += sum(caption.complete for caption in together)
    assert len(set(captions)) > len(captions) / 2 and 0 < ended < len(captions)


@pytest.mark.parametrize("cached", [True, False])
def test_captions_token_by_token(cached: bool, tmp_path: Path) -> None:
    reference = made(tmp_path, seed=1)
    loaded = load_model(tmp_path)
    words, model = loaded.tokenizer, loaded.model
    for photo in PHOTOS:
        pixels = to_pixels(ImageTransform(loaded.transform)(read_image(photo)))[None]
        for prompt in PROMPTS:
            with torch.inference_mode():
                about = model.about(model.image_tokens(pixels))
            first = [[words.languages["en"], *words.encode([prompt])[0]]]
            caption = generate(model.decoder, about, first, GREEDY, end=words.end, fill=words.padding, cached=cached)[0]
            assert caption.tokens == reference.written(photo, prompt)[0]


def test_a_model_directory_keeps_all_of_it(tmp_path: Path) -> None:
    made(tmp_path / "git")
    loaded = load_model(tmp_path / "git")
    given = loaded.model, loaded.tokenizer, loaded.architecture, "A GIT."
    save_directory(tmp_path / "own", *given, preprocessing=loaded.preprocessing, family=loaded.family)
    theirs, own = mm.load(tmp_path / "git", "cpu"), mm.load(tmp_path / "own", "cpu")
    captions = theirs.caption(PHOTOS, prompt=PROMPTS[2], config=GREEDY)
    assert all(caption.text.startswith(PROMPTS[2]) for caption in captions)
    assert own.caption(PHOTOS, prompt=PROMPTS[2], config=GREEDY) == captions
    assert own.preprocessing == theirs.preprocessing and own.family == "GIT"


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    made(tmp_path)
    expected = mm.load(tmp_path, "cpu").caption(PHOTOS, config=GREEDY)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("pad_token_id", "tie_word_embeddings", "num_image_with_embedding", "hidden_dropout_prob"):
        del config[name]
    for name in ("hidden_act", "num_channels"):
        del config["vision_config"][name]
    path.write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink()
    assert mm.load(tmp_path, "cpu").caption(PHOTOS, config=GREEDY) == expected


def test_a_checkpoint_for_videos_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_image_with_embedding": 6}))
    with pytest.raises(CheckpointError, match="num_image_with_embedding is 6: a checkpoint for videos"):
        mm.load(tmp_path, "cpu")
