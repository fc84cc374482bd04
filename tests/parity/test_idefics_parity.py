from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import running
import torch
import transformers
from folders import WORDS, random_
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import mm
from mm.checkpoints.directory import save_directory
from mm.checkpoints.resolve import load_model
from mm.errors import CheckpointError, OptionError
from mm.generation import GenerationConfig, generate, generate_all
from mm.models import Conditioning, Context
from mm.training.optimizer import OptimizerSettings

ROW = "IDEFICS"
VOCABULARY = 58
AROUND, IMAGE, UTTERANCE = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
UNKNOWN, BEGIN, END, AROUND_ID, IMAGE_ID = 0, 1, 2, 58, 59
MARK = [AROUND_ID, IMAGE_ID, AROUND_ID]
GREEDY = GenerationConfig(min_tokens=0, max_tokens=8)
TEXTS = [
    [BEGIN, *MARK, 5, 9, END, *MARK, 12, 7, 30, *MARK, 8],
    [BEGIN, 6, 11, *MARK, 5, 21, 22],
    [BEGIN, *MARK, 17, *MARK],
]


def words(scheme: str, added: Sequence[str]) -> Backend:
    """A tokenizer like LLaMA's, of whole words with a space before them and without; ``scheme`` is Metaspace's."""
    names = ["<unk>", "<s>", "</s>", *(f"▁{word}" for word in WORDS), *WORDS]
    names += [f"filler{number}" for number in range(VOCABULARY - len(names))]
    backend = Backend(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens(["<unk>", "<s>", "</s>", *added])
    return backend


def checkpoint(
    folder: Path, *, scheme: str = "always", added: Sequence[str] = (AROUND, IMAGE), **options: Any
) -> tuple[Any, Any]:
    """Writes a folder in the hub's layout; gives the reference model and its processor."""
    numbers = {
        "vocab_size": VOCABULARY,
        "additional_vocab_size": len(added),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "cross_layer_interval": 2,
        "max_position_embeddings": 96,
        "use_resampler": True,
        "vision_config": {
            "embed_dim": 24,
            "image_size": 32,
            "intermediate_size": 40,
            "patch_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "perceiver_config": {
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 3,
            "resampler_head_dim": 6,
            "qk_layer_norms_perceiver": options.get("qk_layer_norms", False),
        },
    }
    reference = transformers.IdeficsForVisionText2Text(transformers.IdeficsConfig(**(numbers | options)))
    random_(reference).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words(scheme, added),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        padding_side="left",
    )
    processor = transformers.IdeficsProcessor(transformers.IdeficsImageProcessor(image_size=32), tokenizer)
    processor.save_pretrained(folder)
    return reference, processor


def pictures(count: int) -> torch.Tensor:
    """Random (B, 3, 32, 32) pixels in [0, 1] that differ clearly."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, 32, 32, generator=generator) * torch.linspace(0.3, 1, count)[:, None, None, None]


def photo(folder: Path, number: int) -> Path:
    """Writes a picture that isn't square."""
    path = folder / f"{number}.png"
    generator = torch.Generator().manual_seed(number)
    small = (torch.rand(5, 4, 3, generator=generator) * 255).byte().numpy()
    Image.fromarray(small).resize((50, 40), Image.Resampling.BICUBIC).save(path)
    return path


def padded(rows: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and (B, T) bool, true at real tokens."""
    longest = max(map(len, rows))
    fill = [[UNKNOWN] * (longest - len(row)) for row in rows]
    tokens = [[*f, *row] if side == "left" else [*row, *f] for f, row in zip(fill, rows, strict=True)]
    real = [[*(False for _ in f), *(True for _ in row)] for f, row in zip(fill, rows, strict=True)]
    return torch.tensor(tokens), torch.tensor(real if side == "left" else [row[::-1] for row in real])


def reference_mask(tokens: torch.Tensor, processor: Any, images: int) -> torch.Tensor:
    """The (B, T, M) mask of images as the reference's processor makes it."""
    from transformers.models.idefics import processing_idefics as made

    numbers, _ = made.image_attention_mask_for_packed_input_ids(tokens, processor.tokenizer, "pt")
    return made.incremental_to_binary_attention_mask(numbers, "pt", num_classes=images)


def normalized(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    return (pixels - mean) / std


def interleaved(texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, int]:
    """(B, M, 3, 32, 32) pixels, M images for each text, and M."""
    most = max(list(text).count(IMAGE_ID) for text in texts)
    return pictures(len(texts) * most).unflatten(0, (len(texts), most)), most


def about(model: Any, pixels: torch.Tensor, texts: Sequence[Sequence[int]]) -> Conditioning:
    """What texts with images in them are about."""
    seen = model.seen_tokens(model.image_tokens(pixels.flatten(0, 1))).unflatten(0, pixels.shape[:2])
    return model.about_interleaved(seen, padded(texts, "right")[0])


@pytest.mark.parametrize("resampled", [True, False])
@pytest.mark.parametrize(("norms", "gates", "tied"), [(False, "float", False), (True, "vector", True)])
def test_interleaved_images(resampled: bool, norms: bool, gates: str, tied: bool, tmp_path: Path, close: Any) -> None:
    options = {"qk_layer_norms": norms, "alpha_type": gates, "tie_word_embeddings": tied}
    reference, processor = checkpoint(tmp_path, use_resampler=resampled, **options)
    model = load_model(tmp_path).model
    for texts, side in itertools.product((TEXTS[:1], TEXTS), ("left", "right")):
        pixels, most = interleaved(texts)
        tokens, real = padded(texts, side)
        with torch.inference_mode():
            expected = reference(
                input_ids=tokens,
                attention_mask=real.long(),
                pixel_values=normalized(pixels, processor),
                image_attention_mask=reference_mask(tokens, processor, most),
            ).logits
            ours = model.decoder.logits(
                model.decoder(tokens, padding=real, context=about(model, pixels, texts).context)
            )
        close(ROW, ours[real], expected[real])


def test_any_mask_of_images(tmp_path: Path, close: Any) -> None:
    """Tokens may see several images, a later one, or none."""
    reference, processor = checkpoint(tmp_path, qk_layer_norms=True)
    model = load_model(tmp_path).model
    pixels, _ = interleaved(TEXTS[:1])
    tokens = torch.tensor(TEXTS[:1])
    sees = torch.rand(1, tokens.shape[1], 3, generator=torch.Generator().manual_seed(0)) < 0.4
    counts = set(sees.sum(-1).flatten().tolist())
    assert {0, 1, 2} <= counts
    with torch.inference_mode():
        expected = reference(
            input_ids=tokens, pixel_values=normalized(pixels, processor), image_attention_mask=sees.long()
        ).logits
        layers = about(model, pixels, TEXTS[:1]).context.layers
        mask = sees.repeat_interleave(5, 2)[:, None]
        ours = model.decoder.logits(model.decoder(tokens, context=Context(layers, mask)))
    close(ROW, ours, expected)


def written(model: Any, pixels: torch.Tensor, config: GenerationConfig, end: int, **options: Any) -> list[list[int]]:
    """What mm writes behind each of ``TEXTS``, the end token included."""
    prompts = options.pop("prompts", TEXTS)
    found = generate(model.decoder, about(model, pixels, prompts), prompts, config, end=end, fill=UNKNOWN, **options)
    return [[*one.tokens[len(text) - 1 :], *([end] * one.ended)] for one, text in zip(found, prompts, strict=True)]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("resampled", [True, False])
def test_generation(resampled: bool, beams: int, tmp_path: Path) -> None:
    reference, processor = checkpoint(tmp_path, use_resampler=resampled)
    model = load_model(tmp_path).model
    pixels, most = interleaved(TEXTS)
    tokens, real = padded(TEXTS, "left")

    def theirs(end: int) -> list[list[int]]:
        out = reference.generate(
            input_ids=tokens,
            attention_mask=real.long(),
            pixel_values=normalized(pixels, processor),
            image_attention_mask=reference_mask(tokens, processor, most),
            do_sample=False,
            num_beams=beams,
            max_new_tokens=GREEDY.max_tokens,
            eos_token_id=end,
        )
        rows = [row[tokens.shape[1] :].tolist() for row in out]
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    found = {token: theirs(token) for token in set(itertools.chain(*theirs(END)))}
    end = next(end for end, rows in found.items() if len({row[-1] == end for row in rows}) == 2)  # some end, some don't
    expected = found[end]
    config = GenerationConfig(beams=beams, min_tokens=0, max_tokens=GREEDY.max_tokens)
    assert written(model, pixels, config, end) == expected
    assert written(model, pixels, config, end, cached=False) == expected
    for number, text in enumerate(TEXTS):
        alone = pixels[number : number + 1, : text.count(IMAGE_ID)]
        assert written(model, alone, config, end, prompts=[text]) == expected[number : number + 1]


def spoken(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Notes the prompts of every call of ``generate_all`` in the pipeline."""
    from mm.pipeline import writing

    prompts: list[list[list[int]]] = []

    def spy(decoder: Any, about: Any, given: Any, *arguments: Any, **options: Any) -> Any:
        prompts.append([list(row) for row in given])
        return generate_all(decoder, about, given, *arguments, **options)

    monkeypatch.setattr(writing, "generate_all", spy)
    return prompts


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("added", [(AROUND, IMAGE), (AROUND, IMAGE, UTTERANCE)])
def test_prompts_are_those_of_the_processor(
    scheme: str, added: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = checkpoint(tmp_path, scheme=scheme, added=added)
    model, prompts = mm.load(tmp_path), spoken(monkeypatch)
    one, two, query = (photo(tmp_path, number) for number in (1, 2, 3))
    end = UTTERANCE if UTTERANCE in added else "</s>"
    first, second = "a dog runs.", " two red dog's  on grass "
    model.caption(query, shots=[(one, first), (two, second)], prompt="a photo of ", config=GREEDY)
    model.caption(query, prompt=["a photo"], config=GREEDY)
    model.caption([query, one], config=GREEDY)
    opened = {path: Image.open(path) for path in (one, two, query)}
    texts = [
        [opened[one], f"{first}{end}", opened[two], f"{second.strip()}{end}", opened[query], "a photo of"],
        [opened[query], "a photo"],
        [opened[query]],
    ]
    expected = [processor(text=[text]).input_ids[0].tolist() for text in texts]
    assert prompts == [[expected[0]], [expected[1]], [expected[2]] * 2]
    assert UNKNOWN not in expected[1]


def test_special_tokens_in_a_caption_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path)
    model, prompts = mm.load(tmp_path), spoken(monkeypatch)
    picture = photo(tmp_path, 1)
    model.caption(picture, shots=[(picture, "a <image> dog</s>")], config=GREEDY)
    assert prompts[0][0].count(IMAGE_ID) == 2 and prompts[0][0].count(END) == 1


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_from_file_to_text(shots: int, prompt: str, tmp_path: Path) -> None:
    reference, processor = checkpoint(tmp_path, qk_layer_norms=True)
    with torch.no_grad():  # so that images' marks would be written, were they not forbidden
        reference.lm_head.additional_fc.weight *= 3
    reference.save_pretrained(tmp_path)
    model = mm.load(tmp_path)
    photos = [photo(tmp_path, number) for number in range(5)]
    queries, examples = photos[2:], list(zip(photos[:shots], ("a dog runs", "the cat sits"), strict=False))
    expected, free = [], []
    for query in queries:
        lead = [part for path, text in examples for part in (Image.open(path), f"{text}</s>")]
        inputs = processor(text=[[*lead, Image.open(query), *([prompt] if prompt else [])]], return_tensors="pt")
        greedy = {"do_sample": False, "max_new_tokens": 8}
        out = reference.generate(**inputs, **greedy, bad_words_ids=[[AROUND_ID], [IMAGE_ID]])
        new = out[0, inputs.input_ids.shape[1] :]
        free += reference.generate(**inputs, **greedy)[0, inputs.input_ids.shape[1] :].tolist()
        expected.append(f"{prompt} {processor.tokenizer.decode(new, skip_special_tokens=True).strip()}".strip())
    assert len(set(expected)) == len(expected) and set(free) & set(MARK)

    def captions(loaded: Any, batch_size: int) -> list[str]:
        found = loaded.caption(queries, prompt=prompt, shots=examples, config=GREEDY, batch_size=batch_size)
        return [caption.text for caption in found]

    assert captions(model, 3) == captions(model, 1) == expected
    saved, unprepared = tmp_path / "saved", load_model(tmp_path)
    save_directory(
        saved,
        unprepared.model,
        model.tokenizer,
        model.architecture,
        "# IDEFICS\n",
        preprocessing=unprepared.preprocessing,
        family=model.family,
    )
    again = mm.load(saved)
    assert again.family == "IDEFICS" and again.capabilities == ("caption", "shots")
    assert captions(again, 2) == expected
    several: dict[str, Any] = {"prompt": ["a", "a photo of the"] * 2, "shots": examples}
    short = GenerationConfig(min_tokens=2, max_tokens=6, beams=2)
    beside = model.caption(photos[:4], **several, config=short)
    pairs = zip(photos, several["prompt"], strict=False)
    alone = [model.caption(path, prompt=text, shots=examples, config=short)[0] for path, text in pairs]
    assert [caption.text for caption in beside] == [caption.text for caption in alone]


def test_training_sees_the_mark_of_the_image(tmp_path: Path, close: Any) -> None:
    reference, processor = checkpoint(tmp_path)
    model = load_model(tmp_path).model
    pixels = pictures(2)
    captions, real = torch.tensor([[5, 9, 12], [7, UNKNOWN, UNKNOWN]]), torch.tensor([[True] * 3, [True, False, False]])
    with torch.inference_mode():
        about_images = model.about(model.image_tokens(pixels))
        ours = model.caption_logits(about_images, torch.full((2,), BEGIN), captions, real)
        tokens = torch.cat([torch.tensor([[BEGIN, *MARK]] * 2), captions], 1)
        expected = reference(
            input_ids=tokens,
            pixel_values=normalized(pixels, processor)[:, None],
            image_attention_mask=reference_mask(tokens, processor, 1),
        ).logits[:, len(MARK) :]
    close(ROW, ours, expected[torch.cat([torch.ones(2, 1, dtype=torch.bool), real], 1)])


def test_a_tokenizer_without_the_mark_of_an_image(tmp_path: Path) -> None:
    checkpoint(tmp_path, added=("<a>", "<b>"))
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: has no token <image> and no <fake_token_around_image>"
    ):
        load_model(tmp_path)


def test_fine_tuning_leaves_the_language_model_as_it_is(tmp_path: Path) -> None:
    checkpoint(tmp_path / "hub", max_position_embeddings=40)
    options = {"init": str(tmp_path / "hub"), "frozen": ["language_model", "vision"]}
    settings = OptimizerSettings(learning_rate=0.01)
    module = running.training(tmp_path, **options, optimizer=settings)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = running.made_data(tmp_path, captions={"en": 2}, max_tokens=20)
    running.fit(running.trainer(tmp_path, max_epochs=8), module, data)
    after = module.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".crossing." in name or name.startswith("connector.")}
    losses = [loss for *_, loss in module.steps]
    assert sum(losses[-4:]) < sum(losses[:4])
    too_long = running.made_data(tmp_path, captions={"en": 2}, max_tokens=37)
    with pytest.raises(OptionError, match=r"data\.max_tokens 37 must be at most 36"):
        running.fit(running.trainer(tmp_path, max_epochs=1), module, too_long)
