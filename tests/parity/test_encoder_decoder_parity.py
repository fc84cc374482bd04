from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from folders import padded, random_, wordpiece
from torch import Tensor

from mm.checkpoints.directory import Loaded, load_directory, save_directory
from mm.checkpoints.resolve import load_model
from mm.errors import CheckpointError
from mm.generation import GenerationConfig, generate

VOCABULARY = 60
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "en_XX", "zh_CN", "<mask>")
EN, ZH = SPECIAL.index("en_XX"), SPECIAL.index("zh_CN")
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 24,
    "decoder_start_token_id": 2,
}


def t5(folder: Path, untied: bool = False, **options: Any) -> Any:
    """A small T5; ``untied`` as public checkpoints of v1.1 are: with a map to logits of its own, and unscaled."""
    reference = random_(transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, **options)))
    if untied:
        reference.lm_head.weight = torch.nn.Parameter(0.4 * torch.randn(VOCABULARY, 32))
    reference.save_pretrained(folder)
    if untied:
        rewrite(folder, tie_word_embeddings=False, scale_decoder_outputs=None)
    wordpiece(folder, VOCABULARY, SPECIAL)
    return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


def bart(folder: Path, kind: str = "Bart", forced: int | None = None, **options: Any) -> Any:
    """A small BART, or with ``MBart`` mBART; ``forced`` is the token behind the first one."""
    config = getattr(transformers, f"{kind}Config")(**(BART | options))
    reference = random_(getattr(transformers, f"{kind}ForConditionalGeneration")(config), scale=1.5)
    torch.nn.init.normal_(reference.final_logits_bias, std=0.3)
    reference.generation_config.forced_bos_token_id = forced
    reference.save_pretrained(folder)
    wordpiece(folder, VOCABULARY, SPECIAL)
    return reference


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes values in ``config.json``; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


CASES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "t5": ("T5 v1.0", t5),
    "t5 v1.1": ("T5 v1.1", lambda folder: t5(folder, untied=True, feed_forward_proj="gated-gelu")),
    "t5 unscaled": ("T5 v1.1", lambda folder: t5(folder, feed_forward_proj="gated-silu", tie_word_embeddings=False)),
    "bart": ("BART", lambda folder: bart(folder, forced=0)),
    "bart scaled": ("BART", lambda folder: bart(folder, scale_embedding=True, activation_function="relu")),
    "bart untied": ("BART", lambda folder: bart(folder, tie_word_embeddings=False)),
    "mbart": ("mBART", lambda folder: bart(folder, "MBart", scale_embedding=True, decoder_start_token_id=ZH)),
    "mbart-50": ("mBART", lambda folder: bart(folder, "MBart", forced=ZH)),
    "mbart forced": ("mBART", lambda folder: bart(folder, "MBart", forced=ZH, decoder_start_token_id=EN)),
}
PROMPTS = {"bart": [2, 0], "bart scaled": [2], "bart untied": [2], "mbart": [ZH], "mbart-50": [2, ZH]}
PROMPTS["mbart forced"] = [EN, ZH]


def texts(rows: int = 3, length: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Texts of different lengths, each ended, padded on the right."""
    tokens, real = padded(rows, length, low=7, high=VOCABULARY, padding=1)
    tokens = (tokens + seed).clamp_max(VOCABULARY - 1) if seed else tokens
    tokens = tokens.masked_fill(~real, 1)
    tokens[torch.arange(rows), real.sum(1) - 1] = 2
    return tokens, real


def write(
    loaded: Loaded, tokens: Tensor, real: Tensor, prompt: Sequence[int], penalty: float = 1.0, cached: bool = True
) -> list[list[int]]:
    """What mm writes behind the prompt, greedily."""
    model, words = loaded.model, loaded.tokenizer
    found = generate(
        model.decoder,
        model.about(tokens, real),
        [prompt] * len(tokens),
        GenerationConfig(beams=1, min_tokens=0, max_tokens=12, repetition_penalty=penalty),
        end=words.end,
        fill=words.padding,
        cached=cached,
    )
    return [row.tokens[len(prompt) - 1 :] for row in found]


def written(
    reference: Any, tokens: Tensor, real: Tensor, prompt: Sequence[int], penalty: float, **options: Any
) -> list[list[int]]:
    """What the reference writes behind the prompt: its first 12 tokens, since it forces the last of 14 to be the end.

    It doesn't cache: its cache has as many layers as the encoder, and these decoders have one more.
    """
    rows = reference.generate(
        input_ids=tokens,
        attention_mask=real.long(),
        do_sample=False,
        num_beams=1,
        max_new_tokens=14,
        use_cache=False,
        repetition_penalty=penalty,
        **options,
    ).tolist()
    assert all(row[: len(prompt)] == list(prompt) for row in rows)
    behind = [[*row[len(prompt) :], 2] for row in rows]
    return [row[: row.index(2)][:12] for row in behind]


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits(case: str, tmp_path: Path, close: Any) -> None:
    row, make = CASES[case]
    reference, model = make(tmp_path), load_model(tmp_path).model
    tokens, real = texts()
    answers, answered = texts(length=6, seed=5)
    with torch.inference_mode():
        for part in (slice(0, 1), slice(None)):
            read, mask, said, there = tokens[part], real[part], answers[part], answered[part]
            expected = reference(
                input_ids=read,
                attention_mask=mask.long(),
                decoder_input_ids=said,
                decoder_attention_mask=there.long(),
            )
            hidden = model.encoder(read, padding=mask)
            close(row, hidden[mask], expected.encoder_last_hidden_state[mask])
            decoded = model.decoder(said, padding=there, context=model.about(read, mask).context)
            close(row, model.decoder.logits(decoded)[there], expected.logits[there])


@pytest.mark.parametrize("penalty", [1.0, 2.0])
@pytest.mark.parametrize("case", CASES)
def test_greedy_texts(case: str, penalty: float, tmp_path: Path) -> None:
    reference, loaded = CASES[case][1](tmp_path), load_model(tmp_path)
    prompt = loaded.tokenizer.begin("zh" if "mbart" in case else "en")
    assert prompt == PROMPTS.get(case, [1])
    tokens, real = texts()
    found = write(loaded, tokens, real, prompt, penalty)
    assert found == written(reference, tokens, real, prompt, penalty)
    if penalty > 1:  # without, random models repeat themselves
        assert len(set(map(tuple, found))) == len(found) and len({token for row in found for token in row}) > 6
    assert write(loaded, tokens, real, prompt, penalty, cached=False) == found
    for number, length in enumerate(real.sum(1).tolist()):
        part = slice(number, number + 1)
        assert write(loaded, tokens[part, :length], real[part, :length], prompt, penalty) == [found[number]]


def table_names(reference: Any) -> list[str]:
    """The names under which a checkpoint may hold its one table of tokens."""
    prefix = "" if isinstance(reference, transformers.T5ForConditionalGeneration) else "model."
    parts = [f"{prefix}{part}.weight" for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    return [*parts, "lm_head.weight"]


@pytest.mark.parametrize("case", ["t5", "bart", "mbart"])
@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (1,), (2,), (3,), (1, 3)])
def test_the_table_of_tokens_may_have_any_of_its_names(case: str, kept: Sequence[int], tmp_path: Path) -> None:
    """Old checkpoints repeat it, and files without repetition keep whichever name comes first."""
    reference = CASES[case][1](tmp_path)
    state = dict(reference.state_dict())
    names = table_names(reference)
    assert all(torch.equal(state[name], state[names[0]]) for name in names)
    for number, name in enumerate(names):
        if number not in kept:
            del state[name]
    if case == "t5":  # never used, but there
        state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 4)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = load_model(tmp_path).model
    assert model.encoder.embedding.weight is model.decoder.embedding.weight and model.decoder.head.weight is None
    assert torch.equal(model.encoder.embedding.weight, reference.get_input_embeddings().weight)


def test_a_model_directory_holds_a_shared_table_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    CASES["mbart-50"][1](tmp_path / "hub")
    first = load_model(tmp_path / "hub")
    save_directory(tmp_path / "own", first.model, first.tokenizer, first.architecture, "", family=first.family)
    names = load_file(tmp_path / "own" / "model.safetensors").keys()
    assert "encoder.embedding.weight" in names and "decoder.embedding.weight" not in names
    again = load_directory(tmp_path / "own")
    assert again.family == "mBART" and again.tokenizer.begin("zh") == [2, ZH]
    tokens, real = texts()
    assert write(again, tokens, real, [2, ZH]) == write(first, tokens, real, [2, ZH])


def test_a_bias_of_logits_that_is_missing_is_zero(tmp_path: Path) -> None:
    reference = CASES["bart"][1](tmp_path)
    state = {name: value for name, value in reference.state_dict().items() if name != "final_logits_bias"}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    bias = load_model(tmp_path).model.decoder.head.bias
    assert bias.shape == (VOCABULARY,) and not bias.any()


def test_languages_may_be_pieces_of_the_vocabulary_alone(tmp_path: Path) -> None:
    CASES["mbart"][1](tmp_path)
    path = tmp_path / "tokenizer.json"
    described = json.loads(path.read_text())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] != "zh_CN"]
    path.write_text(json.dumps(described))
    assert load_model(tmp_path).tokenizer.languages == {"en": EN, "zh": ZH}
    pieces = [[name, 0.0] for name in described["model"]["vocab"]]
    described["model"] = {"type": "Unigram", "unk_id": 3, "vocab": pieces}
    path.write_text(json.dumps(described))
    assert load_model(tmp_path).tokenizer.languages == {"en": EN, "zh": ZH}


def test_an_mbart_without_languages_begins_as_its_configuration_says(tmp_path: Path) -> None:
    bart(tmp_path, "MBart")
    wordpiece(tmp_path, VOCABULARY, ("<s>", "<pad>", "</s>", "<unk>"))
    assert load_model(tmp_path).tokenizer.begin("en") == [2]


def test_contradictions_are_named(tmp_path: Path) -> None:
    t5(tmp_path / "t5")
    (tmp_path / "t5" / "generation_config.json").unlink()
    rewrite(tmp_path / "t5", decoder_start_token_id=None)
    with pytest.raises(CheckpointError, match="has no decoder_start_token_id, which decoding needs"):
        load_model(tmp_path / "t5")
    rewrite(tmp_path / "t5", feed_forward_proj="gated-tanh")
    with pytest.raises(CheckpointError, match="feed_forward_proj is 'gated-tanh'; mm knows 'gelu'"):
        load_model(tmp_path / "t5")
    bart(tmp_path / "bart")
    rewrite(tmp_path / "bart", decoder_layers=4, encoder_ffn_dim=41)
    with pytest.raises(CheckpointError, match=r"missing model.decoder.layers.3.encoder_attn.k_proj.bias"):
        load_model(tmp_path / "bart")
    rewrite(tmp_path / "bart", decoder_layers=3)
    with pytest.raises(CheckpointError, match=r"encoder.blocks.0.feed_forward.up.weight has shape \(41, 32\)"):
        load_model(tmp_path / "bart")
