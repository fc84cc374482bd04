"""CoCa (arXiv:2205.01917) in open_clip's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mm.checkpoints.convert import Names, layer, part, same, transposed
from mm.models import Parts


def coca_parts(config: Mapping[str, Any], mean: Iterable[float], std: Iterable[float]) -> Parts:
    """Gives the parts of a CoCa.

    Args:
        config: open_clip's description of it.
        mean: per-channel mean of the pixels that its weights expect.
        std: per-channel standard deviation likewise.
    """
    text, decoder, vision = config["text_cfg"], config["multimodal_cfg"], config["vision_cfg"]
    quick = bool(config.get("quick_gelu", False))
    shared = {
        "vocabulary": text.get("vocab_size", 49408),
        "width": text.get("width", 512),
        "max_tokens": text.get("context_length", 77),
        "activation": "quick_gelu" if quick else "gelu",
    }
    return Parts(
        vision={
            "preset": "open_clip",
            "embed_dim": config["embed_dim"],
            "vision_cfg": dict(vision),
            "image_size": vision.get("image_size", 224),
            "quick_gelu": quick,
            "mean": list(mean),
            "std": list(std),
        },
        connector={"preset": "none", "skip": 1},
        text_encoder={
            "preset": "coca_encoder",
            "heads": text.get("heads", 8),
            "blocks": text.get("layers", 12),
            "hidden": int(shared["width"] * text.get("mlp_ratio", 4.0)),
            "eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
            "padding": text.get("pad_id", 0),
        }
        | shared,
        text_decoder={
            "preset": "coca_decoder",
            "heads": decoder.get("heads", 8),
            "blocks": decoder.get("layers", 12),
        }
        | shared,
        embedding_width=config["embed_dim"],
        image_pooling="first",
        text_pooling="first",
        image_bias=False,
        text_bias=False,
        matches=False,
        text_length=shared["max_tokens"],
    )


def coca_names(parts: Parts, tensors: Iterable[str]) -> Names:
    """Gives the sources of a CoCa's tensors; those that encoder and decoder share stand there twice.

    Args:
        parts: its parts.
        tensors: names of all of the checkpoint's tensors: those of the image tower stay as they are.
    """
    assert parts.text_encoder is not None and parts.text_decoder is not None
    inside = [name for name in tensors if name.startswith("visual.") and name != "visual.proj"]
    names = {f"vision.model.{name.removeprefix('visual.')}": same(name) for name in inside}
    names["image_projection.weight"] = transposed("visual.proj")
    names["text_projection.weight"] = transposed("text.text_projection")
    names["logit_scale"] = same("logit_scale")
    names["text_encoder.class_token"] = same("text.cls_emb")
    names |= layer("text_encoder.norm", "text.ln_final") | layer("text_decoder.norm", "text_decoder.ln_final")
    names["text_decoder.head.weight"] = transposed("text_decoder.text_projection")
    below = parts.text_encoder["blocks"]
    for own in ("text_encoder", "text_decoder"):
        names[f"{own}.embedding.weight"] = same("text.token_embedding.weight")
        names[f"{own}.positions"] = same("text.positional_embedding")
        for number in range(below):
            names |= _block(f"{own}.blocks.{number}", f"text.transformer.resblocks.{number}")
    for number in range(parts.text_decoder["blocks"]):
        mine = f"text_decoder.blocks.{below + number}"
        names |= _block(mine, f"text_decoder.resblocks.{number}")
        names |= _block(f"{mine}.crossing", f"text_decoder.cross_attn.{number}")
        names |= layer(f"{mine}.crossing.context_norm", f"text_decoder.cross_attn.{number}.ln_1_kv")
    return names


def _block(mine: str, other: str) -> Names:
    """Gives the sources of an attention and a feed-forward network with their norms."""
    names = layer(f"{mine}.attention_norm", f"{other}.ln_1") | layer(f"{mine}.feed_forward_norm", f"{other}.ln_2")
    for number, projection in enumerate(("query", "key", "value")):
        for kind in ("weight", "bias"):
            names[f"{mine}.attention.{projection}.{kind}"] = part(f"{other}.attn.in_proj_{kind}", number, 3)
    names |= layer(f"{mine}.attention.output", f"{other}.attn.out_proj")
    return (
        names
        | layer(f"{mine}.feed_forward.up", f"{other}.mlp.c_fc")
        | layer(f"{mine}.feed_forward.down", f"{other}.mlp.c_proj")
    )
