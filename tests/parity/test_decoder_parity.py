from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from folders import padded, random_, wordpiece
from safetensors.torch import load_file, save_file

from mm.checkpoints.resolve import load_model
from mm.errors import CheckpointError
from mm.generation import GenerationConfig, generate
from mm.models.presets.falcon import falcon
from mm.models.text import Conditioning, TextTransformer

SPECIAL: dict[str, Any] = {"vocab_size": 60, "bos_token_id": 2, "eos_token_id": 3}
SIZES = SPECIAL | {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROPE = {"default": {"rope_type": "default"}, "linear": {"rope_type": "linear", "factor": 3.0}, "llama3": LLAMA3}
KINDS: dict[str, tuple[Any, Any]] = {
    "GPT-2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    "LLaMA": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "Falcon": (transformers.FalconConfig, transformers.FalconForCausalLM),
}
NUMBERS: dict[str, dict[str, Any]] = {
    "GPT-2": SPECIAL | {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 24},
    "LLaMA": SIZES | {"intermediate_size": 48},
    "Falcon": SIZES,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT-2", {}),
    "gpt2 untied": ("GPT-2", {"tie_word_embeddings": False, "n_inner": 48, "activation_function": "relu"}),
    "gpt2 eps": ("GPT-2", {"layer_norm_epsilon": 0.1}),
    "llama": ("LLaMA", {"rms_norm_eps": 0.1}),
    "llama grouped": ("LLaMA", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama wide heads": ("LLaMA", {"num_key_value_heads": 1, "head_dim": 16, "attention_bias": True}),
    "llama base": ("LLaMA", {"rope_parameters": ROPE["default"] | {"rope_theta": 100.0}}),
    "llama linear": ("LLaMA", {"rope_parameters": ROPE["linear"]}),
    "llama llama3": ("LLaMA", {"rope_parameters": ROPE["llama3"], "head_dim": 16}),
    "falcon": ("Falcon", {}),
    "falcon biases": ("Falcon", {"bias": True, "ffn_hidden_size": 48, "layer_norm_epsilon": 0.1}),
    "falcon two norms": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False}),
    "falcon one norm": (
        "Falcon",
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "num_kv_heads": 2, "bias": True},
    ),
    "falcon grouped": ("Falcon", {"new_decoder_architecture": True, "rope_parameters": {"rope_theta": 100.0}}),
    "falcon in turn": ("Falcon", {"parallel_attn": False, "bias": True}),
    "falcon all heads": ("Falcon", {"parallel_attn": False, "multi_query": False}),
}


def made(folder: Path, row: str, **numbers: Any) -> Any:
    """Writes a checkpoint of a reference with these numbers, and gives the reference."""
    config, kind = KINDS[row]
    reference = random_(kind(config(**deepcopy(NUMBERS[row] | numbers))))
    reference.save_pretrained(folder)
    wordpiece(folder, 60)
    return reference


def rewritten(folder: Path, remove: tuple[str, ...] = (), **values: Any) -> None:
    """Changes values of a checkpoint's configuration."""
    path = folder / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in remove}
    path.write_text(json.dumps(config | values))


def decoder(folder: Path) -> TextTransformer:
    return load_model(folder).model.decoder


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gives a text, texts padded on the right, and on the left: (B, T) tokens and (B, T) bool each."""
    tokens, real = padded()
    return [(tokens[:1], real[:1]), (tokens, real), (tokens.flip(1), real.flip(1))]


def reference_logits(reference: Any, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    places = (real.long().cumsum(1) - 1).clamp_min(0)
    return reference(input_ids=tokens, attention_mask=real.long(), position_ids=places).logits


@torch.inference_mode()
def compare(row: str, reference: Any, model: TextTransformer, close: Callable[..., None]) -> None:
    """Compares the logits of every batch at real tokens."""
    for tokens, real in batches():
        ours = model.logits(model(tokens, padding=real))
        close(row, ours[real], reference_logits(reference, tokens, real)[real])


def greedy(model: TextTransformer, prompts: list[list[int]], end: int, cached: bool = True) -> list[list[int]]:
    """Gives what is written behind each prompt's first token."""
    about, config = Conditioning(len(prompts)), GenerationConfig(min_tokens=0, max_tokens=10)
    return [row.tokens for row in generate(model, about, prompts, config, end=end, fill=0, cached=cached)]


def reference_greedy(reference: Any, prompts: list[list[int]], end: int) -> list[list[int]]:
    """Gives the same of a reference, whose prompts are padded on the left."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": end, "pad_token_id": 0}
    rows = reference.generate(tokens, attention_mask=real, **options)[:, longest:].tolist()
    written = [row[: row.index(end)] if end in row else row for row in rows]
    return [[*prompt[1:], *row] for prompt, row in zip(prompts, written, strict=True)]


PROMPTS = [[2, 7, 31, 12, 9], [2], [2, 40, 8]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, tmp_path: Path, close: Any) -> None:
    row, numbers = VARIANTS[variant]
    reference = made(tmp_path, row, **numbers)
    compare(row, reference, decoder(tmp_path), close)


@pytest.mark.parametrize("variant", ["gpt2", "llama grouped", "llama llama3", "falcon", "falcon two norms"])
def test_greedy_search_writes_what_the_reference_writes(variant: str, tmp_path: Path) -> None:
    row, numbers = VARIANTS[variant]
    reference = made(tmp_path, row, **numbers)
    model = decoder(tmp_path)
    whole = reference_greedy(reference, PROMPTS, 3)
    written = [tokens[len(prompt) - 1 :] for tokens, prompt in zip(whole, PROMPTS, strict=True)]
    assert min(len(set(tokens)) for tokens in written) > 1, "the reference writes one token over and over"
    for end in (3, written[0][3]):
        expected = reference_greedy(reference, PROMPTS, end)
        assert greedy(model, PROMPTS, end) == expected
        assert greedy(model, PROMPTS, end, cached=False) == expected
        assert [greedy(model, [prompt], end)[0] for prompt in PROMPTS] == expected
    assert len(expected[0]) < len(PROMPTS[0]) - 1 + 10, "no text ended by itself"


def test_a_gpt2_without_prefix_and_with_masks_and_the_tied_map(tmp_path: Path, close: Any) -> None:
    reference = made(tmp_path, "GPT-2")
    path = tmp_path / "model.safetensors"
    weights = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    assert "wte.weight" in weights
    weights |= {"lm_head.weight": weights["wte.weight"].clone()}
    for number in range(2):
        weights[f"h.{number}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
        weights[f"h.{number}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, path)
    compare("GPT-2", reference, decoder(tmp_path), close)

    weights["lm_head.weight"] += 1
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from wte\.weight"):
        decoder(tmp_path)


@pytest.mark.parametrize("kind", ROPE)
def test_a_llama_of_an_old_configuration(kind: str, tmp_path: Path, close: Any) -> None:
    reference = made(tmp_path, "LLaMA", rope_parameters=ROPE[kind] | {"rope_theta": 500.0})
    scaling = {"type" if name == "rope_type" else name: value for name, value in ROPE[kind].items()}
    rewritten(
        tmp_path,
        ("rope_parameters", "head_dim", "num_key_value_heads"),
        rope_theta=500.0,
        rope_scaling=None if kind == "default" else scaling,
    )
    path = tmp_path / "model.safetensors"
    wavelengths = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(load_file(path) | wavelengths, path)
    compare("LLaMA", reference, decoder(tmp_path), close)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GPT-2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
    ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("GPT-2", {"add_cross_attention": True}, "add_cross_attention is True"),
    ("GPT-2", {"activation_function": "mish"}, "activation_function is 'mish'"),
    ("LLaMA", {"mlp_bias": True}, "mlp_bias is True"),
    ("LLaMA", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("LLaMA", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling: type is 'dynamic'"),
    ("LLaMA", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: rope_type is 'yarn'"),
    ("LLaMA", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor is None; it must be above 0"),
    ("LLaMA", {"rope_parameters": LLAMA3 | {"factor": 0}}, "rope_parameters: factor is 0; it must be above 0"),
    ("Falcon", {"alibi": True}, "alibi is True"),
    ("Falcon", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: type is 'linear'"),
    ("Falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn is False"),
    ("Falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn is 3"),
    ("Falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn is 2"),
    ("Falcon", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads is 2"),
]


@pytest.mark.parametrize(("row", "values", "message"), REFUSED)
def test_other_settings_are_refused(row: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    made(tmp_path, row)
    rewritten(tmp_path, **values)
    with pytest.raises(CheckpointError) as raised:
        decoder(tmp_path)
    assert message in str(raised.value) and str(tmp_path / "config.json") in str(raised.value)


def test_a_falcon_whose_weights_are_of_another_arrangement(tmp_path: Path) -> None:
    made(tmp_path, "Falcon")
    rewritten(tmp_path, multi_query=False, num_kv_heads=4)
    with pytest.raises(CheckpointError, match=r"contradict config\.json: .*h\.0\.self_attention\.query_key_value"):
        decoder(tmp_path)


def test_special_tokens(tmp_path: Path) -> None:
    made(tmp_path, "GPT-2", pad_token_id=0)
    expected = {"padding": 0, "end": 3, "embed": None, "match": None, "languages": {"en": 2}, "close": None}
    assert expected.items() <= load_model(tmp_path).tokenizer.special.items()
    rewritten(tmp_path, bos_token_id=None, pad_token_id=None)
    (tmp_path / "generation_config.json").unlink()
    expected |= {"padding": 3, "languages": {"en": 3}}
    assert expected.items() <= load_model(tmp_path).tokenizer.special.items()


def palm(model: TextTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """Computes the (T, V) logits of PaLM (arXiv:2204.02311) for (T,) tokens, one head and one position at a time."""
    weights = model.state_dict()
    embedding, count = weights["embedding.weight"], len(tokens)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]

    def turned(head: torch.Tensor) -> torch.Tensor:
        half = head.shape[1] // 2
        angles = torch.outer(torch.arange(count), 10000.0 ** -(torch.arange(half) / half))
        turned = torch.complex(head[:, :half], head[:, half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], 1)

    x = embedding[tokens]
    for number in range(len(model.blocks)):
        block = f"blocks.{number}"
        h = norm(x, f"{block}.attention_norm")
        queries, keys, values, output, gate, up, down = (
            weights[f"{block}.{name}.weight"]
            for name in (
                *(f"attention.{name}" for name in ("query", "key", "value", "output")),
                *(f"feed_forward.{name}" for name in ("gate", "up", "down")),
            )
        )
        key, value = turned(h @ keys.T), h @ values.T
        heads = []
        for query in queries.split(len(keys)):
            query = turned(h @ query.T)
            rows = [F.softmax(key[: t + 1] @ query[t] / len(keys) ** 0.5, 0) @ value[: t + 1] for t in range(count)]
            heads.append(torch.stack(rows))
        attended = torch.cat(heads, 1) @ output.T
        gates = h @ gate.T
        x = x + attended + (gates * gates.sigmoid() * (h @ up.T)) @ down.T
    return norm(x, "norm") @ embedding.T


def palm_style() -> TextTransformer:
    model = random_(falcon(60, 32, 4, 2, 24, hidden=48, key_value_heads=1, gated=True, activation="silu"))
    for name, value in model.named_parameters():
        if name.endswith("norm.bias"):
            value.data.zero_()  # PaLM's norms have none
    return model


@torch.inference_mode()
def test_the_falcon_preset_gives_palm(close: Any) -> None:
    model = palm_style()
    assert not [name for name in model.state_dict() if name.endswith(".bias") and "norm" not in name]
    for tokens, real in batches():
        ours = model.logits(model(tokens, padding=real))
        for row, there in enumerate(real):
            close("PaLM", ours[row, there], palm(model, tokens[row, there]))


@torch.inference_mode()
def test_palm_writes_what_its_logits_say() -> None:
    model = palm_style()
    expected = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(10):
            tokens.append(int(palm(model, torch.tensor(tokens))[-1].argmax()))
        expected.append(tokens[1:])
    assert greedy(model, PROMPTS, 60) == greedy(model, PROMPTS, 60, cached=False) == expected
