"""The ViTs of public checkpoints, in the three layouts that they come in, as timm's ViT."""

from __future__ import annotations

from typing import Any

from mm.checkpoints.convert import Names, Settings, Source, joined, layer, same

NUMBERS: dict[str, tuple[str, Any]] = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "blocks": ("num_hidden_layers", 12),
    "hidden": ("intermediate_size", 3072),
    "activation": ("hidden_act", "gelu"),
    "eps": ("layer_norm_eps", 1e-5),
}
"""Numbers of the ``vit`` preset: what a configuration calls each, and what most families take where it is silent."""


def vit_numbers(config: Settings, mean: Any, std: Any, **defaults: Any) -> dict[str, Any]:
    """Gives the numbers of the ``vit`` preset from the configuration of a vision encoder.

    Args:
        config: the vision encoder's.
        mean: per-channel mean of pixels, from the checkpoint's preprocessing.
        std: per-channel standard deviation likewise.
        defaults: what the family takes where its configuration is silent, by the configuration's names.
    """
    config.one_of("num_channels", 3, (3,))
    numbers = {own: config.get(theirs, defaults.get(theirs, usual)) for own, (theirs, usual) in NUMBERS.items()}
    numbers["activation"] = config.activation("hidden_act", defaults.get("hidden_act", "gelu"))
    return {"preset": "vit"} | numbers | {"mean": list(mean), "std": list(std)}


def clip_vision(
    theirs: str,
    blocks: int,
    *,
    class_token: bool = True,
    pre_norm: bool = True,
    patch_bias: bool = False,
    final_norm: bool = True,
) -> Names:
    """Gives the sources of a ViT in CLIP's layout, which GIT, SigLIP and IDEFICS use too.

    Args:
        theirs: name of the vision transformer in the checkpoint.
        blocks: their number.
        class_token: whether there is one.
        pre_norm: whether embedded patches are normalized.
        patch_bias: whether the embedding of patches has a bias.
        final_norm: whether tokens are normalized behind the last block.
    """
    names = _embeddings(f"{theirs}.embeddings", class_token, patch_bias)
    names["vision.model.pos_embed"] = _batched(f"{theirs}.embeddings.position_embedding.weight")
    if pre_norm:
        names |= layer("vision.model.norm_pre", f"{theirs}.pre_layrnorm")
    for number in range(blocks):
        mine, other = f"vision.model.blocks.{number}", f"{theirs}.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            parts = [f"{other}.self_attn.{part}_proj.{kind}" for part in ("q", "k", "v")]
            names[f"{mine}.attn.qkv.{kind}"] = joined(*parts)
        names |= layer(f"{mine}.attn.proj", f"{other}.self_attn.out_proj") | _block(mine, other)
    return names | (layer("vision.model.norm", f"{theirs}.post_layernorm") if final_norm else {})


def blip_vision(theirs: str, blocks: int, *, bias: bool = True) -> Names:
    """Gives the sources of a ViT in BLIP's layout.

    Args:
        theirs: name of the vision model in the checkpoint.
        blocks: their number.
        bias: whether queries, keys and values have a bias.
    """
    names = _embeddings(f"{theirs}.embeddings", True, True)
    names["vision.model.cls_token"] = same(f"{theirs}.embeddings.class_embedding")
    names["vision.model.pos_embed"] = same(f"{theirs}.embeddings.position_embedding")
    for number in range(blocks):
        mine, other = f"vision.model.blocks.{number}", f"{theirs}.encoder.layers.{number}"
        names |= layer(f"{mine}.attn.qkv", f"{other}.self_attn.qkv", bias=bias)
        names |= layer(f"{mine}.attn.proj", f"{other}.self_attn.projection") | _block(mine, other)
    return names | layer("vision.model.norm", f"{theirs}.post_layernorm")


def vit_vision(theirs: str, blocks: int, *, bias: bool = True) -> Names:
    """Gives the sources of a ViT in the layout of ``ViTModel``.

    Args:
        theirs: name of the model in the checkpoint.
        blocks: their number.
        bias: whether queries, keys and values have a bias.
    """
    embeddings = f"{theirs}.embeddings"
    names = layer("vision.model.patch_embed.proj", f"{embeddings}.patch_embeddings.projection")
    names["vision.model.cls_token"] = same(f"{embeddings}.cls_token")
    names["vision.model.pos_embed"] = same(f"{embeddings}.position_embeddings")
    for number in range(blocks):
        mine, other = f"vision.model.blocks.{number}", f"{theirs}.encoder.layer.{number}"
        for kind in ("weight", "bias") if bias else ("weight",):
            parts = [f"{other}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            names[f"{mine}.attn.qkv.{kind}"] = joined(*parts)
        names |= layer(f"{mine}.attn.proj", f"{other}.attention.output.dense")
        names |= layer(f"{mine}.norm1", f"{other}.layernorm_before")
        names |= layer(f"{mine}.norm2", f"{other}.layernorm_after")
        names |= layer(f"{mine}.mlp.fc1", f"{other}.intermediate.dense")
        names |= layer(f"{mine}.mlp.fc2", f"{other}.output.dense")
    return names | layer("vision.model.norm", f"{theirs}.layernorm")


def _embeddings(theirs: str, class_token: bool, patch_bias: bool) -> Names:
    names = layer("vision.model.patch_embed.proj", f"{theirs}.patch_embedding", bias=patch_bias)
    if class_token:
        names["vision.model.cls_token"] = Source((f"{theirs}.class_embedding",), lambda value: value[None, None])
    return names


def _block(mine: str, other: str) -> Names:
    names: Names = {}
    for number in (1, 2):
        names |= layer(f"{mine}.norm{number}", f"{other}.layer_norm{number}")
        names |= layer(f"{mine}.mlp.fc{number}", f"{other}.mlp.fc{number}")
    return names


def _batched(name: str) -> Source:
    return Source((name,), lambda value: value[None])
