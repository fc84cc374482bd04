from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import mm
from mm.checkpoints import save_directory
from mm.errors import CapabilityError, ImageError, OptionError, UnknownModelError, UsageError
from mm.generation import GenerationConfig, generate_all
from mm.generation.sampling import content_seeds
from mm.pipeline import VisionLanguagePipeline

WORDS = tiny.tokenizer()
SHORT = GenerationConfig(max_tokens=8)
TEXTS = ["a red wall", "绿色", "", "a word that no caption of this vocabulary has, and more of them than fit " * 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguagePipeline:
    folder = tmp_path_factory.mktemp("model")
    net = tiny.model(WORDS)
    with torch.no_grad():  # captions of an untrained model that depend on the image
        net.decoder.positions.mul_(60)
        net.text_decoder.embedding.weight.mul_(12)
    save_directory(folder, net, WORDS, tiny.ARCHITECTURE, "")
    loaded = mm.load(folder, "cpu")
    assert isinstance(loaded, VisionLanguagePipeline)
    return loaded


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (9, 50, 60, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def test_what_a_model_tells_of_itself(model: VisionLanguagePipeline) -> None:
    assert model.capabilities == ("caption", "embed", "match") and model.languages == ("en", "zh")
    assert model.dimension == 16 and len(model.fingerprint) == 64 and "32x32" in model.preprocessing
    model.require("caption", "zh")
    with pytest.raises(OptionError, match=r"doesn't caption in 'fr'; languages: en, zh"):
        model.require("caption", "fr")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_of_a_batch_equal_those_of_single_images(
    model: VisionLanguagePipeline, beams: int, language: str
) -> None:
    config = GenerationConfig(beams=beams, max_tokens=10)
    prompts = ["", "a", "all of it is", "", "a red wall", "", "", "a", "all"]
    together = model.caption(pictures(), language=language, prompt=prompts, config=config, batch_size=4)
    apart = [
        model.caption(image, language=language, prompt=prompt, config=config)[0]
        for image, prompt in zip(pictures(), prompts, strict=True)
    ]
    assert [str(caption) for caption in together] == [caption.text for caption in apart]
    for one, other, prompt in zip(together, apart, prompts, strict=True):
        assert one.text.startswith(prompt) and one.language == language and one.complete == other.complete
        assert one.score == pytest.approx(other.score, abs=1e-4) and one.score < 0
    assert len({caption.text for caption in together}) > 4


def test_an_image_may_be_given_in_any_form(model: VisionLanguagePipeline, tmp_path: Path) -> None:
    image = pictures()[0]
    path = tmp_path / "a.png"
    image.save(path)
    vectors = [model.embed_images(given) for given in (image, [image], path, str(path), path.read_bytes())]
    for vector in vectors:
        np.testing.assert_array_equal(vector, vectors[0])
    assert vectors[0].shape == (1, 16) and vectors[0].dtype == np.float32


def stored(image: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_decoded_images_are_seen_as_their_files_are(model: VisionLanguagePipeline) -> None:
    """Transparency is white, 16 bits are scaled, and EXIF says which side is up."""
    base = pictures()[0]
    clear = base.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(base.size))
    deep = Image.fromarray(np.linspace(0, 65535, 3000).reshape(50, 60).astype(np.uint16))
    palette = base.quantize(8)
    turned = base.copy()
    turned.getexif()[0x0112] = 6
    for image in (clear, deep, palette, base.convert("L"), base.convert("1"), turned):
        options = {"exif": image.getexif()} if image is turned else {}
        np.testing.assert_allclose(
            model.embed_images(image), model.embed_images(stored(image, **options)), atol=1e-6, err_msg=image.mode
        )
    assert not np.allclose(model.embed_images(turned), model.embed_images(base), atol=1e-3)


def test_vectors_have_length_1_and_do_not_depend_on_the_batch(model: VisionLanguagePipeline) -> None:
    images = model.embed_images(pictures(), batch_size=4)
    texts = model.embed_text(TEXTS, batch_size=3)
    for vectors in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(images, np.concatenate([model.embed_images(i) for i in pictures()]), atol=1e-5)
    np.testing.assert_allclose(texts, np.concatenate([model.embed_text(text) for text in TEXTS]), atol=1e-5)


def test_matches_are_probabilities_of_each_pair(model: VisionLanguagePipeline) -> None:
    table = model.match(pictures(), TEXTS)
    assert table.shape == (9, 4) and table.dtype == np.float32 and (table > 0).all() and (table < 1).all()
    for row, column in ((0, 0), (8, 3), (4, 2)):
        assert table[row, column] == pytest.approx(model.match(pictures()[row], TEXTS[column])[0, 0], abs=1e-5)


def test_nothing_in_nothing_out(model: VisionLanguagePipeline) -> None:
    assert model.caption([]) == []
    assert model.embed_images([]).shape == model.embed_text([]).shape == (0, 16)
    assert model.match([], TEXTS).shape == (0, 4) and model.match(pictures()[:2], []).shape == (2, 0)


def test_wrong_use_is_said_in_one_line(model: VisionLanguagePipeline, tmp_path: Path) -> None:
    image = pictures()[0]
    with pytest.raises(OptionError, match=r"2 prompts for 1 images"):
        model.caption(image, prompt=["a", "b"])
    with pytest.raises(OptionError, match="max_tokens can be at most"):
        model.caption(image, prompt="all of it is red " * 9, config=SHORT)
    with pytest.raises(ImageError, match="isn't an image"):
        model.caption(b"text that is no image at all")
    with pytest.raises(UsageError, match=r"nowhere.png: doesn't exist"):
        model.embed_images(tmp_path / "nowhere.png")
    with pytest.raises(UnknownModelError, match="known are mm-tiny"):
        mm.load("no-such-model")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_devices_that_are_not_there(device: str, tmp_path: Path) -> None:
    save_directory(tmp_path, tiny.model(WORDS), WORDS, tiny.ARCHITECTURE, "")
    with pytest.raises(OptionError, match=f"device '{device}' can't be used"):
        mm.load(tmp_path, device)


def test_sampled_captions_depend_on_the_image_and_the_seed_alone(model: VisionLanguagePipeline) -> None:
    images, config = pictures()[:5], GenerationConfig(strategy="sample", max_tokens=10)
    together = [caption.text for caption in model.caption(images, config=config, batch_size=2)]
    assert together == [caption.text for caption in model.caption(images[::-1], config=config, batch_size=5)][::-1]
    assert together == [model.caption(image, config=config)[0].text for image in images]
    assert len(set(together)) == 5
    other = [caption.text for caption in model.caption(images, config=replace(config, seed=1))]
    assert all(one != another for one, another in zip(together, other, strict=True))
    assert model.caption(images[:1] * 2, config=config)[0] == model.caption(images[0], config=config)[0]


@pytest.mark.parametrize("rank_by", ["match", "similarity"])
def test_captions_are_ranked_by_the_image(model: VisionLanguagePipeline, rank_by: str) -> None:
    images, sample = pictures()[:4], GenerationConfig(strategy="sample", max_tokens=10, temperature=2.0, captions=6)
    config, best = replace(sample, captions=1, best_of=6, rank_by=rank_by), []
    for image in images:
        texts = candidates(model, image, sample)
        cosines = model.embed_images(image) @ model.embed_text(texts).T
        best.append(int((model.match(image, texts) if rank_by == "match" else cosines).argmax()))
        assert model.caption(image, config=config)[0].text == texts[best[-1]]
    assert any(best)  # not always the first
    together = model.caption(images, config=config, batch_size=3)
    assert [one.text for one in together] == [model.caption(image, config=config)[0].text for image in images]


def candidates(model: VisionLanguagePipeline, image: Image.Image, config: GenerationConfig) -> list[str]:
    """All captions that are found for an image."""
    (pixels,) = model._batches(image, 1)
    about = model.model.about(model.image_tokens(pixels))
    seeds = content_seeds(config, [pixels[0].numpy().tobytes()])
    words = model.tokenizer
    prompts = [[words.languages["en"]]]
    (found,) = generate_all(model.model.decoder, about, prompts, config, end=words.end, fill=words.padding, seeds=seeds)
    return words.decode([caption.tokens for caption in found])


@pytest.mark.parametrize(("rank_by", "capability"), [("match", "match"), ("similarity", "embed")])
def test_a_model_without_the_capability_ranks_by_it_in_no_way(
    model: VisionLanguagePipeline, rank_by: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GenerationConfig(strategy="sample", best_of=2, rank_by=rank_by)
    monkeypatch.setattr(model, "capabilities", ("caption", "ask"))
    message = rf"can't {capability} \(it can caption, ask\); models that can: mm-tiny"
    with pytest.raises(CapabilityError, match=message):
        model.caption([], config=config)
    with pytest.raises(CapabilityError, match=message):
        model.ask([], [], config=config)
