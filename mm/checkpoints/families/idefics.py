"""IDEFICS (arXiv:2306.16527), an open Flamingo (arXiv:2204.14198): LLaMA with gated cross-attention in between."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mm.checkpoints.convert import Converted, HubFolder, Names, Settings, Source, joined, layer, same
from mm.checkpoints.families.decoders import FREQUENCIES, llama_names, llama_numbers
from mm.checkpoints.families.vision import clip_vision, vit_numbers
from mm.checkpoints.preprocessing import read_preprocessing
from mm.errors import CheckpointError
from mm.models import Parts

IMAGE, AROUND_IMAGE, END_OF_UTTERANCE = "<image>", "<fake_token_around_image>", "<end_of_utterance>"
VISION_DEFAULTS: dict[str, Any] = {
    "patch_size": 14,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "intermediate_size": 5120,
}
"""What a vision encoder takes where its configuration is silent and other families take something else."""
UNUSED = (*FREQUENCIES, "*.position_ids", "model.vision_model.post_layernorm.*")


def convert_idefics(hub: HubFolder) -> Converted:
    """Converts an ``IdeficsForVisionText2Text``."""
    vision = _vision_numbers(hub)
    resampler = _resampler_numbers(hub.config, vision["width"])
    decoder = _decoder_numbers(hub.config)
    names = clip_vision("model.vision_model", vision["blocks"], final_norm=False)
    if resampler is not None:
        names |= _resampler_names(resampler)
    names |= _decoder_names(decoder, hub.config.get("additional_vocab_size", 0) > 0)
    parts = Parts(vision, decoder, connector=resampler)
    copies = {}
    if decoder["tied"]:
        copies["lm_head.weight"] = "model.embed_tokens.weight"
        copies["lm_head.additional_fc.weight"] = "model.embed_tokens.additional_embedding.weight"
    return Converted("IDEFICS", parts, names, _special(hub), UNUSED, copies)


def _vision_numbers(hub: HubFolder) -> dict[str, Any]:
    """Gives the numbers of the vision encoder, whose last norm the rest of the model doesn't see."""
    settings = hub.config.part("vision_config")
    named = {"hidden_size": settings.get("embed_dim", 768)}
    _, mean, std = read_preprocessing(hub.folder, settings.get("image_size", 224))
    numbers = vit_numbers(Settings({**settings.values, **named}, settings.source), mean, std, **VISION_DEFAULTS)
    return numbers | {"pre_norm": True, "final_norm": False}


def _resampler_numbers(config: Settings, width: int) -> dict[str, Any] | None:
    """Gives the numbers of the resampler, or None for a model without one."""
    if not config.get("use_resampler", False):
        return None
    settings = config.part("perceiver_config")
    return {
        "preset": "resampler",
        "blocks": settings.get("resampler_depth", 6),
        "latents": settings.get("resampler_n_latents", 64),
        "heads": settings.get("resampler_n_heads", 16),
        "head_width": settings.get("resampler_head_dim", 96),
        "hidden": 4 * width,
        "head_norms": settings.get("qk_layer_norms_perceiver", False),
    }


def _decoder_numbers(config: Settings) -> dict[str, Any]:
    """Gives the numbers of the language model; additional tokens stand behind its own."""
    numbers = llama_numbers(config)
    gates = {"float": 1, "vector": numbers["width"]}
    return numbers | {
        "vocabulary": numbers["vocabulary"] + config.get("additional_vocab_size", 0),
        "cross": "gated",
        "cross_every": config.get("cross_layer_interval", 1),
        "gate_width": gates[config.one_of("alpha_type", "float", gates)],
        "cross_head_norms": config.get("qk_layer_norms", False),
        "dropout": config.get("dropout", 0.0),
    }


def _resampler_names(numbers: dict[str, Any]) -> Names:
    """Gives the sources of the resampler, whose blocks are pairs of an attention and a feed-forward network."""
    theirs = "model.perceiver_resampler"
    names = {"connector.latents": same(f"{theirs}.latents")} | layer("connector.norm", f"{theirs}.layer_norm")
    for number in range(numbers["blocks"]):
        mine = f"connector.blocks.{number}"
        attention, network = (f"{theirs}.blocks.{number}.{part}" for part in range(2))
        names |= layer(f"{mine}.context_norm", f"{attention}.context_layer_norm")
        names |= layer(f"{mine}.latents_norm", f"{attention}.latents_layer_norm")
        for projection in ("query", "key", "value"):
            called = f"{attention}.{projection[0]}_proj"
            names |= layer(f"{mine}.attention.{projection}", called, bias=False)
        names |= layer(f"{mine}.attention.output", f"{attention}.output_proj", bias=False)
        if numbers["head_norms"]:
            names |= layer(f"{mine}.attention.query_norm", f"{attention}.q_layer_norm")
            names |= layer(f"{mine}.attention.key_norm", f"{attention}.k_layer_norm")
        names |= layer(f"{mine}.feed_forward_norm", f"{network}.ln")
        names |= layer(f"{mine}.feed_forward.up", f"{network}.fc", bias=False)
        names |= layer(f"{mine}.feed_forward.down", f"{network}.c_proj", bias=False)
    return names


def _decoder_names(numbers: dict[str, Any], additional: bool) -> Names:
    """Gives the sources of the language model.

    Args:
        numbers: of its preset.
        additional: whether tokens were added, which have tables of their own.
    """
    names = llama_names("text_decoder", "model", numbers["blocks"])
    tables = {"embedding.weight": ("model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight")}
    if not numbers["tied"]:
        tables["head.weight"] = ("lm_head.weight", "lm_head.additional_fc.weight")
    for own, (first, behind) in tables.items():
        names[f"text_decoder.{own}"] = joined(first, behind) if additional else same(first)
    every = numbers["cross_every"]
    for number in range(0, numbers["blocks"], every):
        mine = f"text_decoder.blocks.{number}.crossing"
        names |= _crossing_names(mine, f"model.gated_cross_attn_layers.{number // every}", numbers["cross_head_norms"])
    return names


def _crossing_names(mine: str, other: str, head_norms: bool) -> Names:
    """Gives the sources of a gated cross-attention; a gate of one number per unit has dimensions more in the file."""
    names: Names = {}
    for projection in ("query", "key", "value", "output"):
        called = f"{other}.cross_attn.{projection[0]}_proj"
        names |= layer(f"{mine}.attention.{projection}", called, bias=False)
    if head_norms:
        names |= layer(f"{mine}.attention.query_norm", f"{other}.cross_attn.q_layer_norm", bias=False)
        names |= layer(f"{mine}.attention.key_norm", f"{other}.cross_attn.k_layer_norm", bias=False)
    for linear in ("gate", "up", "down"):
        names |= layer(f"{mine}.feed_forward.{linear}", f"{other}.mlp.{linear}_proj", bias=False)
    names |= layer(f"{mine}.attention_norm", f"{other}.input_layernorm", bias=False)
    names |= layer(f"{mine}.feed_forward_norm", f"{other}.post_attention_layernorm", bias=False)
    for own, called in (("attention_gate", "alpha_cross_attn"), ("feed_forward_gate", "alpha_dense")):
        names[f"{mine}.{own}"] = Source((f"{other}.{called}",), Tensor.flatten)
    return names


def _special(hub: HubFolder) -> dict[str, Any]:
    """Gives the ids of special tokens. Where there is one that ends an utterance, captions end with it too."""
    close, padding = hub.token("eos_token_id"), hub.token_or_none("pad_token_id")
    marks = _added_tokens(hub)
    return {
        "padding": close if padding is None else padding,
        "end": marks.get(END_OF_UTTERANCE, close),
        "embed": None,
        "match": None,
        "languages": {"en": hub.token("bos_token_id")},
        "close": close,
        "image": marks[IMAGE],
        "around_image": marks[AROUND_IMAGE],
    }


def _added_tokens(hub: HubFolder) -> dict[str, int]:
    """Gives the ids of the tokens that were added to the tokenizer, by their names.

    Raises:
        CheckpointError: those that stand for an image in a text aren't among them.
    """
    found = hub.added_tokens
    if lacking := [name for name in (IMAGE, AROUND_IMAGE) if name not in found]:
        path = hub.folder / "tokenizer.json"
        raise CheckpointError(f"{path}: has no token {' and no '.join(lacking)}, which stands for an image in a text")
    return found
