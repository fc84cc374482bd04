"""Vision encoders: a preset for those of timm by name, and one for any plain ViT."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from mm.layers import ACTIVATIONS
from mm.models.presets.blocks import block
from mm.models.vision import ConvStem, HybridViT, TimmViT


def vision_encoder(
    name: str,
    *,
    image_size: int = 224,
    mean: Iterable[float] = (0.5, 0.5, 0.5),
    std: Iterable[float] = (0.5, 0.5, 0.5),
    hybrid_blocks: int = 0,
    width: int = 256,
    heads: int = 8,
    frozen_stages: int = 0,
    dropout: float = 0.0,
    pooled_dropout: float = 0.0,
) -> TimmViT | HybridViT:
    """Builds a vision encoder of timm without pretrained weights.

    Args:
        name: a ViT of timm; with ``hybrid_blocks``, the convolutional network of timm that is the stem.
        image_size: side of the square input in pixels.
        mean: per-channel mean of the pixels that the weights expect.
        std: per-channel standard deviation likewise.
        hybrid_blocks: transformer blocks on top of a convolutional stem; 0 for a plain ViT.
        width: D of those blocks.
        heads: N of those blocks.
        frozen_stages: stages of the stem, from the first, that aren't trained; -1 for all.
        dropout: probability of dropping a unit in those blocks while training.
        pooled_dropout: likewise of the stem's pooled features.

    Raises:
        UsageError: timm has no such model, or it can't be used in this role.
    """
    if not hybrid_blocks:
        return TimmViT.named(name, image_size, mean, std)
    stem = ConvStem(name, frozen_stages)
    blocks = [block(width, heads, dropout=dropout) for _ in range(hybrid_blocks)]
    return HybridViT(
        stem, blocks, width, -(-image_size // 32), mean, std, dropout=dropout, pooled_dropout=pooled_dropout
    )


def vit(
    image_size: int,
    patch_size: int,
    width: int,
    heads: int,
    blocks: int,
    *,
    hidden: int | None = None,
    activation: str = "gelu",
    eps: float = 1e-6,
    bias: bool = True,
    pre_norm: bool = False,
    patch_bias: bool | None = None,
    class_token: bool = True,
    registers: int = 0,
    final_norm: bool = True,
    attention_pool: bool = False,
    mean: Iterable[float] = (0.5, 0.5, 0.5),
    std: Iterable[float] = (0.5, 0.5, 0.5),
) -> TimmViT:
    """Builds a ViT of any size (arXiv:2010.11929), as ViT, BLIP, GIT, CLIP, SigLIP and IDEFICS have.

    Args:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        width: D.
        heads: N.
        blocks: their number.
        hidden: width inside the feed-forward networks; None for four times D.
        activation: of the feed-forward networks.
        eps: of the norms.
        bias: whether queries, keys and values have a bias.
        pre_norm: normalize embedded patches before the first block (CLIP).
        patch_bias: whether the embedding of patches has a bias; None for where there is no ``pre_norm``.
        class_token: whether a class token precedes the patches.
        registers: further tokens behind the class token, as the one that DeiT was distilled with.
        final_norm: whether tokens are normalized behind the last block (IDEFICS's aren't).
        attention_pool: whether a learned query pools the tokens (SigLIP).
        mean: per-channel mean of the pixels that the weights expect.
        std: per-channel standard deviation likewise.

    Raises:
        ValueError: an unknown activation.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: {', '.join(ACTIVATIONS)}")
    model: Any = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        num_heads=heads,
        depth=blocks,
        mlp_ratio=((hidden or 4 * width) + 0.5) / width,  # timm rounds the product down
        qkv_bias=bias,
        pre_norm=pre_norm,
        class_token=class_token,
        reg_tokens=registers,
        global_pool="map" if attention_pool else "token" if class_token else "avg",
        final_norm=final_norm,
        fc_norm=False,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=eps),
        act_layer=_activation(activation),
        embed_layer=partial(PatchEmbed, bias=not pre_norm if patch_bias is None else patch_bias),
    )
    return TimmViT(model, f"ViT of {image_size} pixels", image_size, mean, std, keep_pool=attention_pool)


def _activation(name: str) -> Callable[..., nn.Module]:
    class Activation(nn.Module):
        """An activation of ``mm.layers`` as a module, which timm asks for."""

        def __init__(self, inplace: bool = False) -> None:
            super().__init__()

        def forward(self, x: Any) -> Any:
            return ACTIVATIONS[name](x)

    return Activation
