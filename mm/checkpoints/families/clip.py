"""CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343): a vision encoder and a text encoder in one shared space."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from mm.checkpoints.convert import Converted, HubFolder, Names, Settings, Source, layer, part, same
from mm.checkpoints.families.vision import clip_vision, vit_numbers
from mm.checkpoints.preprocessing import read_preprocessing
from mm.checkpoints.tokenizers import read_tokenizer
from mm.checkpoints.weights import read_json
from mm.data.tokenizer import Tokenizer
from mm.errors import CheckpointError
from mm.models import Parts

UNUSED = ("*.position_ids", "logit_bias")
"""Patterns of tensors without a use; SigLIP's bias is the same for all texts, so that it tells none from another."""
OLD_CLIP_END = 2
"""What old configurations of CLIP call the end of a text, whatever it is; they mean the tokenizer's."""
UNKNOWN = -1
NOTHING: dict[str, Any] = {"padding": UNKNOWN, "end": UNKNOWN, "embed": None, "match": None, "languages": {}}
"""Special tokens before they are known."""


def convert_clip(hub: HubFolder) -> Converted:
    """Converts a ``CLIPModel``; the hidden state of a text's end token stands for the text."""
    text, vision = _part(hub.config, "text_config"), _part(hub.config, "vision_config")
    special = _special(hub)
    end = text.get("eos_token_id", 49407)
    if end not in (OLD_CLIP_END, special["close"]):
        raise CheckpointError(
            f"{text.source}: eos_token_id is {end}, but the tokenizer ends a text with {special['close']}"
        )
    defaults = {"patch_size": 32, "hidden_act": "quick_gelu"}
    parts = Parts(
        _vision(hub, vision, **defaults) | {"pre_norm": True},
        text_encoder=_text(text, 77, vocab_size=49408, width=512, act="quick_gelu", eps=1e-5) | {"mask": "causal"},
        embedding_width=hub.config.get("projection_dim", 512),
        image_pooling="first",
        text_pooling="last",
        image_bias=False,
        text_bias=False,
        matches=False,
    )
    names = clip_vision("vision_model", parts.vision["blocks"]) | _text_names(parts)
    names["image_projection.weight"] = same("visual_projection.weight")
    names["text_projection.weight"] = same("text_projection.weight")
    return Converted("CLIP", parts, names, special, UNUSED)


def convert_siglip(hub: HubFolder) -> Converted:
    """Converts a ``SiglipModel``; texts are padded to one length, and the last position stands for the text."""
    text, vision = hub.config.part("text_config"), hub.config.part("vision_config")
    vision.one_of("vision_use_head", True, (True,))
    numbers = _vision(hub, vision, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    encoder = _text(text, 64, vocab_size=32000, width=768, act="gelu_pytorch_tanh", eps=1e-6)
    parts = Parts(
        numbers | {"class_token": False, "attention_pool": True},
        text_encoder=encoder | {"mask": "bidirectional"},
        embedding_width=numbers["width"],
        image_pooling="pool",
        text_pooling="last",
        image_bias=None,
        matches=False,
        text_length=encoder["max_tokens"],
    )
    special = _special(hub) | {"padding": _padding(hub)}
    blocks = parts.vision["blocks"]
    names = clip_vision("vision_model", blocks, class_token=False, pre_norm=False, patch_bias=True)
    names |= _text_names(parts) | layer("text_projection", "text_model.head") | _pool_names("vision_model.head")
    return Converted("SigLIP", parts, names, special, UNUSED)


def _part(config: Settings, name: str) -> Settings:
    """Gives the configuration of a tower; where old checkpoints have a second one, that one counts."""
    return config.part(f"{name}_dict" if config.values.get(f"{name}_dict") else name)


def _vision(hub: HubFolder, config: Settings, **defaults: Any) -> dict[str, Any]:
    _, mean, std = read_preprocessing(hub.folder, config.get("image_size", 224))
    return vit_numbers(config, mean, std, **defaults)


def _text(config: Settings, max_tokens: int, *, vocab_size: int, width: int, act: str, eps: float) -> dict[str, Any]:
    """Gives the numbers of a text encoder, with those that the family takes where its configuration is silent."""
    width = config.get("hidden_size", width)
    return {
        "preset": "gpt2",
        "vocabulary": config.get("vocab_size", vocab_size),
        "width": width,
        "heads": config.get("num_attention_heads", width // 64),
        "blocks": config.get("num_hidden_layers", 12),
        "max_tokens": config.get("max_position_embeddings", max_tokens),
        "hidden": config.get("intermediate_size", 4 * width),
        "head": False,
        "activation": config.activation("hidden_act", act),
        "eps": config.get("layer_norm_eps", eps),
        "dropout": 0.0,
    }


def _text_names(parts: Parts) -> Names:
    """Gives the sources of a text encoder, and of the scale of similarities."""
    assert parts.text_encoder is not None
    names = {
        "logit_scale": Source(("logit_scale",), lambda value: value.reshape(())),
        "text_encoder.embedding.weight": same("text_model.embeddings.token_embedding.weight"),
        "text_encoder.positions": same("text_model.embeddings.position_embedding.weight"),
    }
    for number in range(parts.text_encoder["blocks"]):
        mine, other = f"text_encoder.blocks.{number}", f"text_model.encoder.layers.{number}"
        for own, theirs in {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}.items():
            names |= layer(f"{mine}.attention.{own}", f"{other}.self_attn.{theirs}")
        names |= layer(f"{mine}.attention_norm", f"{other}.layer_norm1")
        names |= layer(f"{mine}.feed_forward.up", f"{other}.mlp.fc1")
        names |= layer(f"{mine}.feed_forward.down", f"{other}.mlp.fc2")
        names |= layer(f"{mine}.feed_forward_norm", f"{other}.layer_norm2")
    return names | layer("text_encoder.norm", "text_model.final_layer_norm")


def _pool_names(theirs: str) -> Names:
    """Gives the sources of the attention that pools image tokens.

    Args:
        theirs: its name in the checkpoint.
    """
    own = "vision.model.attn_pool"
    names = {f"{own}.latent": same(f"{theirs}.probe")}
    for kind in ("weight", "bias"):
        fused = f"{theirs}.attention.in_proj_{kind}"
        names[f"{own}.q.{kind}"] = part(fused, 0, 3)
        names[f"{own}.kv.{kind}"] = Source((fused,), _keys_values)
    names |= layer(f"{own}.proj", f"{theirs}.attention.out_proj") | layer(f"{own}.norm", f"{theirs}.layernorm")
    return names | layer(f"{own}.mlp.fc1", f"{theirs}.mlp.fc1") | layer(f"{own}.mlp.fc2", f"{theirs}.mlp.fc2")


def _keys_values(fused: Tensor) -> Tensor:
    return fused[len(fused) // 3 :]


def _special(hub: HubFolder) -> dict[str, Any]:
    """Gives the special tokens, which are the tokenizer's: many configurations name others.

    Raises:
        CheckpointError: the tokenizer puts no token behind a text, or several on a side of it.
    """
    front, behind = _tokenizer(hub).frame()
    if len(front) > 1 or len(behind) != 1 or behind[0] == UNKNOWN:
        raise CheckpointError(
            f"{hub.folder}: the tokenizer puts {len(front)} tokens before a text and not a single one behind it"
        )
    end = behind[0]
    return NOTHING | {"padding": end, "end": end, "embed": front[0] if front else None, "close": end}


def _padding(hub: HubFolder) -> int:
    """Gives the id of the token that fills texts up, which ``tokenizer_config.json`` names.

    Raises:
        CheckpointError: it is none of the tokenizer's special tokens.
    """
    path = hub.folder / "tokenizer_config.json"
    named = (read_json(path).get("pad_token") if path.is_file() else None) or "</s>"
    text = named.get("content") if isinstance(named, dict) else named
    for token in json.loads(_tokenizer(hub).to_json())["added_tokens"]:
        if token["content"] == text:
            return int(token["id"])
    raise CheckpointError(f"{path}: pad_token is {text!r}, which is no special token of the tokenizer")


def _tokenizer(hub: HubFolder) -> Tokenizer:
    return read_tokenizer(hub.folder, NOTHING)
