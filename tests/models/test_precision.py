from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import timm
import tiny
import torch
from torch import Tensor, nn

from mm.errors import OptionError
from mm.layers.inference import Int8Linear, PackedLinear
from mm.models import DualEncoder, OpenClip, TextTransformer, VisionLanguageModel
from mm.models import precision as precisions
from mm.models.precision import PRECISIONS, Precision, available, choose, fastest, halve, prepare
from mm.models.presets.connectors import resampler
from mm.models.presets.tables import TEXT

CPU = torch.device("cpu")
WORDS = tiny.tokenizer()
ERRORS: dict[str, float] = {"float32": 1e-5, "bfloat16": 5e-2, "int8": 1e-1}
SIZES: dict[str, Any] = {"vocabulary": 61, "width": 32, "heads": 4, "blocks": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "mm": {"preset": "mm", "max_tokens": 20},
    "bert": {"preset": "bert", "hidden": 64, "max_tokens": 20, "mask": "causal"},
    "bert with its own head": {"preset": "bert", "hidden": 64, "max_tokens": 20, "mask": "causal", "tied": False},
    "gpt2": {"preset": "gpt2", "max_tokens": 20},
    "llama, grouped queries": {"preset": "llama", "hidden": 64, "max_tokens": 20, "key_value_heads": 2},
    "llama, gates": {"preset": "llama", "hidden": 64, "max_tokens": 20, "cross": "gated", "cross_head_norms": True},
    "falcon": {"preset": "falcon", "max_tokens": 20},
    "t5": {"preset": "t5", "hidden": 64},
    "t5, gated": {"preset": "t5", "hidden": 64, "gated": True, "head_width": 6, "tied": False},
    "bart": {"preset": "bart", "hidden": 64, "max_tokens": 20},
}


@pytest.fixture(scope="module", params=DECODERS)
def make_decoder(request: pytest.FixtureRequest) -> Callable[[], TextTransformer]:
    def make() -> TextTransformer:
        torch.manual_seed(0)
        numbers = SIZES | {"context_width": 24} | DECODERS[request.param]
        decoder: TextTransformer = TEXT[numbers.pop("preset")](**numbers).eval()
        with torch.no_grad():
            for name, value in decoder.named_parameters():
                if name.endswith("_gate"):
                    value.fill_(0.5)
        return decoder

    return make


def run(decoder: TextTransformer) -> Tensor:
    """Logits of three texts about images, the last two tokens from the cache."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 5, 24, generator=generator)
    tokens = torch.randint(61, (3, 7), generator=generator)
    with torch.inference_mode():
        context, cache = decoder.keys_values(image.to(decoder.embedding.weight.dtype)), decoder.cache(3, 7)
        hidden = [decoder(part, context=context, cache=cache) for part in (tokens[:, :5], tokens[:, 5:])]
        return decoder.logits(torch.cat(hidden, 1))


def distance(x: Tensor, y: Tensor) -> float:
    """The length of a difference, as a share of the second vector's."""
    return float((x.float() - y.float()).norm() / y.float().norm())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_decoder_gives_about_the_same_logits(
    make_decoder: Callable[[], TextTransformer], precision: Precision
) -> None:
    decoder = make_decoder()
    expected = run(decoder)
    prepare(decoder, precision)
    given = run(decoder)
    assert given.dtype == torch.float32
    assert distance(given, expected) < ERRORS[precision]
    assert precision == "float32" or not torch.equal(given, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_linear_map_stays_as_it_was(make_decoder: Callable[[], TextTransformer], precision: Precision) -> None:
    decoder = make_decoder()
    prepare(decoder, precision)
    kind = Int8Linear if precision == "int8" else PackedLinear
    assert not any(type(module) is nn.Linear for module in decoder.modules())
    assert decoder.head is not None and isinstance(decoder.head.prepared, kind)
    attention: Any = decoder.blocks[0].attention
    shared = 2 * attention.key_value_heads * attention.head_width
    assert isinstance(attention.joint, kind)
    assert attention.joint.out_features == attention.heads * attention.head_width + shared
    weights = [value for name, value in decoder.named_parameters() if value.ndim == 2]
    tables = [decoder.embedding.weight, decoder.positions, decoder.relative and decoder.relative.weight]
    assert {id(value) for value in weights} == {id(table) for table in tables if table is not None}


def test_a_model_in_bfloat16_gives_float32_logits(make_decoder: Callable[[], TextTransformer]) -> None:
    """What ``prepare`` makes of a model on a GPU, on the CPU."""
    decoder = make_decoder()
    expected = run(decoder)
    halve(decoder)
    given = run(decoder)
    assert decoder.embedding.weight.dtype == torch.bfloat16
    assert given.dtype == torch.float32
    assert 0 < distance(given, expected) < ERRORS["bfloat16"]
    assert (given != given.bfloat16()).any()
    if decoder.rotary is not None:
        assert decoder.rotary.frequencies.dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_of_images_equals_its_parts(precision: Precision) -> None:
    model = tiny.model(WORDS)
    prepare(model, precision)
    pixels = torch.rand(5, 3, 32, 32)
    with torch.inference_mode():
        whole = model.image_tokens(pixels)
        parts = torch.cat([model.image_tokens(one) for one in pixels.split(1)])
    assert distance(parts, whole) < {"float32": 1e-6, "bfloat16": 1e-2, "int8": 1e-2}[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_towers_of_other_libraries_and_a_resampler_can_be_prepared(precision: Precision) -> None:
    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 300, "width": 32, "heads": 2, "layers": 1},
    }
    encoder = DualEncoder(
        open_clip.CLIP(**config), OpenClip(config, (0.5,) * 3, (0.5,) * 3), tiny.special(WORDS)
    ).eval()
    connector = resampler(24, blocks=1, latents=3, heads=2, head_width=4, hidden=24, head_norms=True).eval()
    pixels, tokens, image = torch.rand(2, 3, 32, 32), torch.randint(5, 99, (2, 6)), torch.randn(2, 5, 24)
    with torch.inference_mode():

        def results() -> list[Tensor]:
            text = encoder.text_embedding(tokens, torch.ones_like(tokens, dtype=torch.bool))
            return [encoder.image_tokens(pixels), text, connector(image)]

        expected = results()
        prepare(encoder, precision)
        prepare(connector, precision)
        given = results()
    for one, wanted in zip(given, expected, strict=True):
        assert distance(one, wanted) < ERRORS[precision]


def test_shared_parts_stay_shared() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.Sequential(shared), shared, nn.Linear(8, 8))
    prepare(model, "float32")
    assert model[0] is model[1][0] is model[2] and model[0] is not model[3]


def test_a_network_that_multiplies_with_the_weights_itself_keeps_them() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("beit_base_patch16_224", img_size=32, depth=1, embed_dim=32, num_heads=2).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model.forward_features(pixels)
        prepare(model, "int8")
        given = model.forward_features(pixels)
    assert type(model.blocks[0].attn.qkv) is nn.Linear
    assert type(model.blocks[0].attn.proj) is Int8Linear
    assert 0 < distance(given, expected) < ERRORS["int8"]


def test_a_model_can_be_prepared_for_captions_and_for_matching() -> None:
    model = tiny.model(WORDS)
    pixels, tokens = torch.rand(2, 3, 32, 32), torch.randint(5, len(WORDS), (2, 6))
    padding = torch.ones_like(tokens, dtype=torch.bool)

    def results(model: VisionLanguageModel) -> list[Tensor]:
        image = model.image_tokens(pixels)
        captions = model.caption_logits(model.about(image), torch.tensor([4, 5]), tokens, padding)
        matches = model.match_logits(model.encoder.keys_values(image), tokens, padding)
        return [captions, matches, model.image_embedding(image), model.text_embedding(tokens, padding)]

    with torch.inference_mode():
        expected = results(model)
        prepare(model, "float32")
        for given, wanted in zip(results(model), expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


def test_what_a_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "_packs", lambda: False)
    assert available(CPU) == ("float32",)
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(OptionError, match="precision 'int8' can't be used on this cpu; choose float32"):
        prepare(model, "int8")
    prepare(model, "float32")
    assert type(model[0]) is nn.Linear


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(OptionError, match="precision 'int4' is not one of auto, float32, bfloat16, int8"):
        choose("int4", (), nn.Linear(8, 8), CPU)


def test_auto_is_the_quickest_of_those_that_a_model_passed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def probe(candidates: tuple[Precision, ...], outputs: int, inputs: int) -> Precision:
        asked.append((candidates, outputs, inputs))
        return candidates[-1]

    monkeypatch.setattr(precisions, "_probe", probe)
    monkeypatch.setattr(precisions, "available", lambda device: PRECISIONS)
    model = nn.Sequential(nn.Linear(8, 9), nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 32))
    assert choose("auto", (), model, CPU) == "float32" and not asked
    assert choose("bfloat16", (), model, CPU) == "bfloat16" and not asked
    assert choose("auto", ("int8",), model, CPU) == "int8"
    assert asked == [(("float32", "int8"), 32, 16)]


def test_the_probe_finds_the_quickest_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    slowness = {"float32": 3.0, "bfloat16": 1.0, "int8": 2.0}
    clock = [0.0]

    class Timed(nn.Module):
        def __init__(self, precision: str) -> None:
            super().__init__()
            self.precision = precision

        def forward(self, x: Tensor) -> Tensor:
            clock[0] += 1e-5 * slowness[self.precision] * len(x)
            return x

    monkeypatch.setattr(precisions, "_linear", lambda weight, bias, precision: Timed(precision))
    monkeypatch.setattr(precisions.time, "perf_counter", lambda: clock[0])
    assert fastest(PRECISIONS, (64, 31), CPU) == "bfloat16"
    assert 0.1 < clock[0] < 1
