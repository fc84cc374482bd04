from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from blips import (
    BEGIN,
    CLS,
    GREEDY,
    KINDS,
    PHOTOS,
    PROMPTS,
    QUESTIONS,
    SEP,
    enclosed,
    logits,
    made,
    seen,
    used,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import mm
from mm.checkpoints import save_directory
from mm.checkpoints.convert import Settings
from mm.checkpoints.families.blip import CAPTIONING, blip_parts
from mm.checkpoints.resolve import load_model
from mm.data.images import read_image
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import CapabilityError, CheckpointError
from mm.generation import generate

Close = Callable[[str, Tensor, Tensor], None]


def small(folder: Path) -> list[Path]:
    """Photos of just the size that models see, so that scaling leaves every pixel as it is."""
    paths = [folder / f"{photo.stem}.png" for photo in PHOTOS]
    for photo, path in zip(PHOTOS, paths, strict=True):
        Image.open(photo).convert("RGB").resize((32, 32)).save(path)
    return paths


@pytest.mark.parametrize("row", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits(row: str, tied: bool, tmp_path: Path, close: Close) -> None:
    reference = made(tmp_path, row, tied=tied)
    model = load_model(tmp_path).model
    for rows in (1, 3):
        close(row, *logits(row, reference, model, rows))


def test_logits_as_captioning_trains_them(tmp_path: Path, close: Close) -> None:
    reference = made(tmp_path, "BLIP captioning")
    model = load_model(tmp_path).model
    _, expected = logits("BLIP captioning", reference, model, 3)
    _, _, tokens, real = enclosed(3)
    with torch.inference_mode():
        about = model.about(model.image_tokens(seen(reference, 3)[0]))
        ours = model.caption_logits(about, torch.full((3,), BEGIN), tokens, real)
    first = torch.cat([expected[:6], expected[7:11], expected[12:14]])  # without those behind the last text token
    close("BLIP captioning", ours, first)


def test_retrieval_embeddings(tmp_path: Path, close: Close) -> None:
    reference = made(tmp_path, "BLIP retrieval")
    model = load_model(tmp_path).model
    assert model.logit_scale.item() == 2.0
    for rows in (1, 3):
        pixels, given = seen(reference, rows)
        ids, mask, tokens, real = enclosed(rows)
        with torch.inference_mode():
            image = reference.model.vision_model(given).last_hidden_state[:, 0]
            text = reference.model.text_encoder(ids, attention_mask=mask.long()).last_hidden_state[:, 0]
            image, text = reference.model.vision_proj(image), reference.model.text_proj(text)
            close("BLIP retrieval", model.image_embedding(model.image_tokens(pixels)), F.normalize(image, dim=-1))
            close("BLIP retrieval", model.text_embedding(tokens, real), F.normalize(text, dim=-1))


def test_retrieval_of_photos_and_texts(tmp_path: Path, close: Close) -> None:
    reference = made(tmp_path, "BLIP retrieval")
    model = mm.load(tmp_path, "cpu")
    assert model.capabilities == ("embed", "match") and model.dimension == 16
    photos = small(tmp_path)
    pixels = torch.cat([reference.inputs(photo, "")["pixel_values"] for photo in photos])
    words = dict(reference.processor(text=QUESTIONS, padding=True, return_tensors="pt"))
    with torch.inference_mode():
        similar = reference.model(pixel_values=pixels, use_itm_head=False, **words).itm_score
        images = [image.expand(len(QUESTIONS), -1, -1, -1) for image in pixels]
        table = torch.stack([reference.model(pixel_values=image, **words).itm_score for image in images])
    close("BLIP retrieval", torch.from_numpy(model.embed_images(photos) @ model.embed_text(QUESTIONS).T), similar)
    close("BLIP retrieval", torch.from_numpy(model.match(photos, QUESTIONS)), table.softmax(-1)[..., 1])


def test_captions_token_by_token(tmp_path: Path) -> None:
    ended = 0
    for seed in range(4):
        reference = made(tmp_path, "BLIP captioning", seed=seed)
        loaded = load_model(tmp_path)
        words, model = loaded.tokenizer, loaded.model
        pixels, given = seen(reference, 3)
        for prompt in ([], [5, 12, 14]):
            ids = torch.tensor([[CLS, *prompt, SEP]]).repeat(3, 1)
            rows = reference.model.generate(given, ids, max_new_tokens=12)[:, 1:].tolist()
            with torch.inference_mode():
                about = model.about(model.image_tokens(pixels))
            first = [words.languages["en"], *prompt]
            captions = generate(model.decoder, about, [first] * 3, GREEDY, end=words.end, fill=words.padding)
            for row, caption in zip(rows, captions, strict=True):
                assert caption.tokens == (row[: row.index(SEP)] if SEP in row else row)
                ended += SEP in row
    assert 0 < ended < 24


def test_captions_of_photos(tmp_path: Path) -> None:
    reference = made(tmp_path, "BLIP captioning")
    model = mm.load(tmp_path, "cpu")
    assert model.capabilities == ("caption",) and model.languages == ("en",)
    pairs = [(photo, prompt) for photo in PHOTOS for prompt in PROMPTS]
    expected = [reference.written(*pair)[1] for pair in pairs]
    photos, prompts = (list(given) for given in zip(*pairs, strict=True))
    together = model.caption(photos, prompt=prompts, config=GREEDY, batch_size=4)
    assert [caption.text for caption in together] == expected
    assert [model.caption(p, prompt=t, config=GREEDY)[0].text for p, t in pairs] == expected
    assert len(set(expected)) == len(expected)


def test_answers_to_questions_about_photos(tmp_path: Path) -> None:
    reference = made(tmp_path, "BLIP question answering")
    model = mm.load(tmp_path, "cpu")
    assert model.capabilities == ("ask",)
    pairs = [(photo, question) for photo in PHOTOS for question in QUESTIONS]
    expected = [reference.written(*pair)[1] for pair in pairs]
    photos, questions = (list(given) for given in zip(*pairs, strict=True))
    together = model.ask(photos, questions, config=GREEDY, batch_size=4)
    assert [answer.text for answer in together] == expected
    assert [answer.question for answer in together] == questions
    assert [model.ask(p, q, config=GREEDY)[0].text for p, q in pairs] == expected
    assert len(set(expected)) > len(QUESTIONS)


def test_answers_token_by_token(tmp_path: Path) -> None:
    reference = made(tmp_path / "model", "BLIP question answering", seed=1)
    loaded = load_model(tmp_path / "model")
    words, model = loaded.tokenizer, loaded.model
    for photo in small(tmp_path):
        pixels = to_pixels(ImageTransform(loaded.transform)(read_image(photo)))[None]
        for question in QUESTIONS:
            asked = [torch.from_numpy(array) for array in words.pad(words.encode([question]))]
            with torch.inference_mode():
                about = model.about_question(model.image_tokens(pixels), *asked)
            first = [[words.languages["en"]]]
            answer = generate(model.decoder, about, first, GREEDY, end=words.end, fill=words.padding)[0]
            assert answer.tokens == reference.written(photo, question)[0]


def test_pixels_are_those_of_the_reference_processor(tmp_path: Path) -> None:
    reference = made(tmp_path, "BLIP captioning")
    transform = ImageTransform(load_model(tmp_path).transform)
    images = reference.processor.image_processor
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (images.image_mean, images.image_std))
    for photo in PHOTOS:
        expected = reference.inputs(photo, "")["pixel_values"][0].numpy() * std + mean
        difference = np.abs(to_pixels(transform(read_image(photo))).numpy() - expected) * 255
        assert difference.max() <= 2 and difference.mean() <= 0.2


@pytest.mark.parametrize("row", KINDS)
def test_a_model_directory_keeps_all_of_it(row: str, tmp_path: Path) -> None:
    made(tmp_path / "blip", row)
    loaded = load_model(tmp_path / "blip")
    assert loaded.family == row
    save_directory(
        tmp_path / "own",
        loaded.model,
        loaded.tokenizer,
        loaded.architecture,
        "",
        preprocessing=loaded.preprocessing,
        family=loaded.family,
    )
    again = load_model(tmp_path / "own")
    assert (again.family, again.transform) == (row, loaded.transform)
    assert again.tokenizer.special == loaded.tokenizer.special
    assert used(mm.load(tmp_path / "own", "cpu")) == used(mm.load(tmp_path / "blip", "cpu"))


def test_what_older_checkpoints_hold_twice(tmp_path: Path) -> None:
    """Those of earlier versions of transformers hold tied weights twice, and the numbers of positions."""
    made(tmp_path, "BLIP question answering")
    expected = used(mm.load(tmp_path, "cpu"))
    weights = load_file(tmp_path / "model.safetensors")
    head, embedding = "text_decoder.cls.predictions", "text_decoder.bert.embeddings"
    weights[f"{head}.decoder.weight"] = weights[f"{embedding}.word_embeddings.weight"].clone()
    weights[f"{head}.decoder.bias"] = weights[f"{head}.bias"].clone()
    weights[f"{embedding}.position_ids"] = torch.arange(24)[None]
    weights["text_encoder.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert used(mm.load(tmp_path, "cpu")) == expected
    weights[f"{head}.decoder.bias"] += 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.bias differs from"):
        load_model(tmp_path)


def test_a_silent_configuration_means_the_defaults_of_the_reference() -> None:
    text, vision = transformers.BlipTextConfig(), transformers.BlipVisionConfig()
    parts = blip_parts(CAPTIONING, Settings({}, "config.json"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert parts.text_decoder is not None and parts.text_decoder["tied"]
    own = [parts.text_decoder[name] for name in ("vocabulary", "width", "heads", "blocks", "hidden", "max_tokens")]
    sizes: list[object] = [text.vocab_size, text.hidden_size, text.num_attention_heads, text.num_hidden_layers]
    assert own == [*sizes, text.intermediate_size, text.max_position_embeddings]
    assert parts.text_decoder["eps"] == text.layer_norm_eps
    assert parts.text_decoder["dropout"] == text.hidden_dropout_prob
    own = [parts.vision[name] for name in ("image_size", "patch_size", "width", "heads", "blocks", "hidden", "eps")]
    sizes = [vision.image_size, vision.patch_size, vision.hidden_size, vision.num_attention_heads]
    assert own == [*sizes, vision.num_hidden_layers, vision.intermediate_size, vision.layer_norm_eps]


def test_texts_begin_with_what_the_tokenizer_says(tmp_path: Path) -> None:
    made(tmp_path, "BLIP retrieval")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"cls_token": {"content": "[MASK]", "special": True}}))
    tokenizer = load_model(tmp_path).tokenizer
    assert (tokenizer.embed, tokenizer.match, tokenizer.close) == (4, 4, SEP)
    path.write_text(json.dumps(config | {"sep_token": "[END]"}))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: has no special token '\[END\]'.*sep_token"):
        load_model(tmp_path)


def test_what_a_blip_cannot_do_is_said(tmp_path: Path) -> None:
    made(tmp_path, "BLIP captioning")
    model = mm.load(tmp_path, "cpu")
    for call in (
        lambda: model.embed_images(PHOTOS),
        lambda: model.embed_text("a dog"),
        lambda: model.match(PHOTOS, "a dog"),
    ):
        with pytest.raises(CapabilityError, match=r"can't (embed|match) \(it can caption\)"):
            call()
    with pytest.raises(CapabilityError, match=r"can't ask .*hf:Salesforce/blip-vqa-base"):
        model.ask(PHOTOS, "how many dogs?")
