from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from folders import WORDS, padded, random_, wordpiece
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

import mm
from mm.checkpoints.resolve import load_model
from mm.data.images import read_image
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import CheckpointError
from mm.generation import GenerationConfig, generate

Close = Callable[[str, Tensor, Tensor], None]

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
PHOTOS = [SAMPLES / f"{name}.jpg" for name in ("cat", "rocket", "coffee", "officer")]
PROMPTS = ["", "a photo of", "the dog's red picture."]
GREEDY = GenerationConfig(min_tokens=0, max_tokens=12, repetition_penalty=2.0)  # without, words would repeat for ever
VOCABULARY = 60
VISION = {
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 3e-2,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 42,
    "layer_norm_eps": 1e-2,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 40,
    "layer_norm_epsilon": 1e-2,
}


class Kind(NamedTuple):
    """A pair of encoder and decoder.

    Args:
        encoder: configuration of the encoder; with its width.
        decoder: configuration of the decoder.
        special: the tokenizer's special tokens.
        begin: id of the token that a caption begins with.
        end: id of the one that ends it.
        padding: id of the padding token.
    """

    encoder: Any
    decoder: Any
    special: tuple[str, ...]
    begin: int
    end: int
    padding: int


END_OF_TEXT = ("<|endoftext|>",)
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
VIT, DEIT = transformers.ViTConfig, transformers.DeiTConfig
GPT2_DECODER = transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0)
KINDS = {
    "ViT + GPT-2": Kind(VIT(**VISION, hidden_size=32), GPT2_DECODER, END_OF_TEXT, 0, 0, 0),
    "ViT + GPT-2, projected": Kind(VIT(**VISION, hidden_size=40, qkv_bias=False), GPT2_DECODER, END_OF_TEXT, 0, 0, 0),
    "DeiT + GPT-2": Kind(DEIT(**VISION, hidden_size=32), GPT2_DECODER, END_OF_TEXT, 0, 0, 0),
    "ViT + BERT": Kind(VIT(**VISION, hidden_size=32), transformers.BertConfig(**BERT, pad_token_id=0), (), 2, 3, 0),
    "ViT + RoBERTa": Kind(
        VIT(**VISION, hidden_size=40), transformers.RobertaConfig(**BERT, pad_token_id=1), ROBERTA_SPECIAL, 0, 2, 1
    ),
}
PLAIN = "ViT + GPT-2"


class Reference(NamedTuple):
    """A model of transformers, with what prepares its inputs."""

    model: Any
    images: Any
    words: Any
    kind: Kind

    def pixels(self, photo: Path) -> Tensor:
        """A photo as the model takes it."""
        return self.images(Image.open(photo), return_tensors="pt").pixel_values

    @torch.inference_mode()
    def written(self, photo: Path, prompt: str) -> tuple[list[int], str]:
        """What it writes about a photo, greedily: the ids behind the first up to the end, and the text."""
        begun = torch.tensor([[self.kind.begin, *self.words(prompt, add_special_tokens=False).input_ids]])
        ids = self.model.generate(
            self.pixels(photo),
            decoder_input_ids=begun,
            max_new_tokens=GREEDY.max_tokens,
            repetition_penalty=GREEDY.repetition_penalty,
            do_sample=False,
        )[0]
        tokens, end = ids.tolist()[1:], self.kind.end
        text = self.words.decode(ids, skip_special_tokens=True).strip()
        return tokens[: tokens.index(end)] if end in tokens else tokens, text


def tokenizer(folder: Path, special: tuple[str, ...]) -> Any:
    """A tokenizer of the reference: byte-level pairs with these special tokens, or BERT's whole words without any."""
    if not special:
        return transformers.BertTokenizer(wordpiece(folder, VOCABULARY).get_vocab())
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        show_progress=False,
    )
    backend.train_from_iterator([f"{one} {other} {one}" for one in WORDS for other in WORDS], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = backend.model.save(str(folder))
    kind = transformers.GPT2Tokenizer if special == END_OF_TEXT else transformers.RobertaTokenizer
    return kind(vocabulary, merges)


def made(folder: Path, row: str, *, tied: bool = True, seed: int = 0) -> Reference:
    """A small random pair, saved with its tokenizer and image processor."""
    kind = KINDS[row]
    decoder = type(kind.decoder)(**kind.decoder.to_dict() | {"tie_word_embeddings": tied})
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(kind.encoder, decoder)
    model = random_(transformers.VisionEncoderDecoderModel(config=config), seed)
    if not tied:
        with torch.no_grad():
            model.decoder.get_output_embeddings().weight[kind.end].mul_(3)  # so that some captions end by themselves
    model.generation_config.decoder_start_token_id = kind.begin
    model.generation_config.bos_token_id = 7  # counts only where there is no first token of the decoder's
    model.generation_config.eos_token_id = kind.end
    model.generation_config.pad_token_id = kind.padding
    images = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    reference = Reference(model, images, tokenizer(folder, kind.special), kind)
    for part in (model, images, reference.words):
        part.save_pretrained(folder)
    return reference


@pytest.mark.parametrize("row", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits(row: str, tied: bool, tmp_path: Path, close: Close) -> None:
    reference = made(tmp_path, row, tied=tied)
    model = mm.load(tmp_path, "cpu").model
    given = torch.cat([reference.pixels(photo) for photo in PHOTOS[:3]])
    norm = model.vision.normalize
    tokens, real = padded(padding=reference.kind.padding)
    for rows in (1, 3):
        with torch.inference_mode():
            expected = reference.model(given[:rows], tokens[:rows], decoder_attention_mask=real[:rows].long()).logits
            about = model.about(model.image_tokens(given[:rows] * norm.std + norm.mean))
            ours = model.decoder.logits(model.decoder(tokens[:rows], padding=real[:rows], context=about.context))
        close(row.split(",")[0], ours[real[:rows]], expected[real[:rows]])


@pytest.mark.parametrize("row", KINDS)
def test_captions_of_photos(row: str, tmp_path: Path) -> None:
    captions: list[str] = []
    ended = 0
    for seed in range(2):
        reference = made(tmp_path, row, tied=False, seed=seed)
        model = mm.load(tmp_path, "cpu")
        assert model.family == row.split(",")[0] and model.capabilities == ("caption",) and model.languages == ("en",)
        pairs = [(photo, prompt) for photo in PHOTOS for prompt in PROMPTS]
        expected = [reference.written(*pair)[1] for pair in pairs]
        photos, prompts = (list(given) for given in zip(*pairs, strict=True))
        together = model.caption(photos, prompt=prompts, config=GREEDY, batch_size=5)
        assert [caption.text for caption in together] == expected
        assert [model.caption(p, prompt=t, config=GREEDY)[0].text for p, t in pairs] == expected
        captions += expected
        ended += sum(caption.complete for caption in together)
    assert len(set(captions)) > len(captions) / 2 and 0 < ended < len(captions), (len(set(captions)), ended)


@pytest.mark.parametrize("row", KINDS)
@pytest.mark.parametrize("cached", [True, False])
def test_captions_token_by_token(row: str, cached: bool, tmp_path: Path) -> None:
    reference = made(tmp_path, row, tied=False, seed=1)
    loaded = load_model(tmp_path)
    words, model = loaded.tokenizer, loaded.model
    for photo in PHOTOS:
        pixels = to_pixels(ImageTransform(loaded.transform)(read_image(photo)))[None]
        for prompt in PROMPTS:
            with torch.inference_mode():
                about = model.about(model.image_tokens(pixels))
            first = [[words.languages["en"], *words.encode([prompt])[0]]]
            caption = generate(model.decoder, about, first, GREEDY, end=words.end, fill=words.padding, cached=cached)
            assert caption[0].tokens == reference.written(photo, prompt)[0]


def change(path: Path, *place: str, **values: Any) -> None:
    """Sets values of a JSON file, at a place in it."""
    whole = json.loads(path.read_text())
    part = whole
    for name in place:
        part = part[name]
    part.update(values)
    path.write_text(json.dumps(whole))


def test_what_older_checkpoints_hold(tmp_path: Path) -> None:
    """Earlier versions of transformers saved masks and tied weights too, and special tokens elsewhere."""
    made(tmp_path, PLAIN)
    expected = mm.load(tmp_path, "cpu").caption(PHOTOS, config=GREEDY)
    weights = load_file(tmp_path / "model.safetensors")
    more = {"decoder.lm_head.weight": weights["decoder.transformer.wte.weight"].clone()}
    more["encoder.embeddings.mask_token"] = torch.zeros(1, 1, 32)
    for number in range(2):
        for attention in ("attn", "crossattention"):
            block = f"decoder.transformer.h.{number}.{attention}"
            more |= {f"{block}.bias": torch.ones(1, 1, 40, 40), f"{block}.masked_bias": torch.tensor(-1e4)}
    save_file(weights | more, tmp_path / "model.safetensors")
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    change(tmp_path / "config.json", decoder_start_token_id=0, eos_token_id=0, pad_token_id=0)
    old = {"feature_extractor_type": "ViTFeatureExtractor", "image_processor_type": None, "size": 32}
    change(tmp_path / "preprocessor_config.json", **old)
    assert mm.load(tmp_path, "cpu").caption(PHOTOS, config=GREEDY) == expected
    more["decoder.lm_head.weight"][5, 5] += 1
    save_file(weights | more, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"decoder\.lm_head\.weight differs from decoder\.transformer\.wte\.weight"
    ):
        mm.load(tmp_path, "cpu")


USUAL: dict[str, dict[str, Any]] = {
    "encoder": {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "qkv_bias": True, "num_channels": 3},
    "decoder": {"is_decoder": True, "add_cross_attention": True, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("row", ["ViT + GPT-2", "ViT + BERT"])
def test_what_a_configuration_leaves_out(row: str, tmp_path: Path) -> None:
    made(tmp_path, row)
    path = tmp_path / "config.json"
    for place, values in USUAL.items():
        change(path, place, **values)
    expected = load_model(tmp_path).architecture
    for place, values in USUAL.items():
        change(path, place, **dict.fromkeys(values))
    assert load_model(tmp_path).architecture == expected


def test_captions_begin_with_the_first_of_a_text_where_nothing_else_is_said(tmp_path: Path) -> None:
    made(tmp_path, "ViT + BERT")
    expected = mm.load(tmp_path, "cpu").caption(PHOTOS, config=GREEDY)
    change(tmp_path / "generation_config.json", decoder_start_token_id=None, bos_token_id=None)
    change(tmp_path / "config.json", "decoder", bos_token_id=2)
    assert mm.load(tmp_path, "cpu").caption(PHOTOS, config=GREEDY) == expected


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        ("encoder", {"model_type": "swin"}, r"config\.json, encoder: model_type is 'swin'; mm knows 'vit', 'deit'"),
        ("decoder", {"model_type": "xglm"}, "decoder: model_type is 'xglm'; mm knows 'gpt2', 'bert', 'roberta'"),
        ("decoder", {"add_cross_attention": False}, "add_cross_attention is False; mm knows True"),
        ("decoder", {"is_decoder": False}, "is_decoder is False; mm knows True"),
        ("decoder", {"cross_attention_hidden_size": 40}, "cross_attention_hidden_size is 40; mm knows None"),
        ("encoder", {"image_size": 64}, "images of 32 pixels, but the model's config.json says 64"),
        ("encoder", {"num_hidden_layers": 1}, r"unexpected encoder\.encoder\.layer\.1\.attention"),
    ],
)
def test_what_mm_does_not_do_is_refused(place: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    made(tmp_path, "ViT + GPT-2, projected")
    change(tmp_path / "config.json", place, **values)
    with pytest.raises(CheckpointError, match=message):
        mm.load(tmp_path, "cpu")
