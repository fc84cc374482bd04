"""Vision encoders: from pixels to image tokens.

Every encoder has ``width`` (D of its tokens), ``prefix_tokens`` (how many tokens come before those of the patches),
``has_summary`` (whether the first of these sums up the whole image) and two halves, ``frozen`` and ``tokens``, whose
composition is ``forward``. What ``frozen`` returns doesn't change while the encoder trains, so that training may keep
it instead of computing it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.errors import UsageError
from mm.layers import Block


class Normalize(nn.Module):
    """Shifts and scales pixels per channel, as the encoder's weights expect.

    Args:
        mean: three numbers, subtracted from pixels in [0, 1].
        std: three numbers, divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) in [0, 1] to the same shape, normalized."""
        return (pixels - self.mean) / self.std


def _timm_model(name: str, **kwargs: Any) -> Any:
    if not timm.is_model(name):  # asked first: create_model would fetch a name like hf-hub:owner/model
        close = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        hint = f"; some that exist: {', '.join(close)}" if close else ""
        raise UsageError(f"timm has no vision model named {name!r}{hint}")
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    except Exception as error:  # each family of timm checks its arguments in its own way
        options = ", ".join(f"{key} {value}" for key, value in kwargs.items())
        raise UsageError(f"timm can't build {name!r}{' with ' if options else ''}{options}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _vit(name: str, image_size: int) -> Any:
    try:
        return _timm_model(name, img_size=image_size)
    except UsageError as error:
        if isinstance(error.__cause__, TypeError):
            raise UsageError(
                f"timm's {name!r} isn't a ViT with an image size; a convolutional network is the stem of a hybrid ViT: "
                "set hybrid_blocks to 1 or more"
            ) from error
        raise


class TimmViT(nn.Module):
    """A vision transformer of timm; its tokens include the class token where it has one.

    Args:
        model: of timm.
        name: what it is called, for messages.
        image_size: side of the square input in pixels.
        mean: per-channel mean of the pixels its weights expect.
        std: per-channel standard deviation likewise.
        keep_pool: keep the attention that pools its tokens into one, for ``pool``.

    Raises:
        UsageError: its features aren't a sequence of tokens.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        image_size: int,
        mean: Iterable[float],
        std: Iterable[float],
        *,
        keep_pool: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.model = model
        if getattr(self.model, "attn_pool", None) is not None and not keep_pool:
            self.model.attn_pool = None  # pools tokens into one; here all of them are used
        self.width: int = self.model.num_features
        self.prefix_tokens: int = getattr(self.model, "num_prefix_tokens", 0)
        self.has_summary: bool = getattr(self.model, "has_class_token", self.prefix_tokens == 1)
        with torch.no_grad():
            try:
                shape = self.model.eval().forward_features(torch.zeros(1, 3, image_size, image_size)).shape
            except (AssertionError, RuntimeError, ValueError) as error:
                raise UsageError(
                    f"timm's {name!r} can't see {image_size} x {image_size} pixels: {_line(error)}"
                ) from error
        if len(shape) != 3:
            raise UsageError(
                f"timm's {name!r} gives features of shape {tuple(shape)}, not tokens; use it as a hybrid's stem"
            )
        self.model.train()

    @classmethod
    def named(cls, name: str, image_size: int, mean: Iterable[float], std: Iterable[float]) -> TimmViT:
        """Builds a model of timm by its name, such as ``vit_base_patch16_224``.

        Raises:
            UsageError: timm has no such model, or its features aren't a sequence of tokens.
        """
        return cls(_vit(name, image_size), name, image_size, mean, std)

    def pool(self, tokens: Tensor) -> Tensor:
        """Maps (B, P, D) image tokens to the (B, D) that its own attention pools them into."""
        return self.model.attn_pool(tokens)

    def frozen(self, pixels: Tensor) -> Tensor:
        """Returns (B, 3, H, W) ``pixels`` as they are: nothing of it is frozen."""
        return pixels

    def tokens(self, frozen: Tensor) -> Tensor:
        """Maps what ``frozen`` returned to (B, P, D) image tokens."""
        tokens = self.model.forward_features(self.normalize(frozen))
        norm = getattr(self.model, "fc_norm", None)  # the only norm at the end of networks that pool by a mean
        return tokens if norm is None else norm(tokens)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels in [0, 1] to (B, P, D) image tokens."""
        return self.tokens(self.frozen(pixels))


class ConvStem(nn.Module):
    """A convolutional network of timm, as a list of stages of which the first may be frozen.

    Batch normalization always uses its stored statistics: those of pretrained weights are better than a small batch's.

    Args:
        name: timm's name of a network that is a plain sequence of stages, such as ``tf_efficientnet_lite2``.
        frozen_stages: how many stages, from the first, get no gradient; -1 for all.

    Raises:
        UsageError: timm has no such model, or it isn't a sequence of stages.
    """

    def __init__(self, name: str, frozen_stages: int = 0) -> None:
        super().__init__()
        model = _timm_model(name).eval()
        stages: list[tuple[str, nn.Module]] = []
        for child_name, child in model.named_children():
            if child_name in ("global_pool", "classifier", "fc", "head", "head_drop"):
                break
            parts = child.named_children() if isinstance(child, nn.Sequential) else [("", child)]
            stages += [(f"{child_name}_{part_name}".rstrip("_"), part) for part_name, part in parts]
        self.stages = nn.Sequential()
        for stage_name, stage in stages:
            self.stages.add_module(stage_name, stage)
        self.width: int = model.num_features
        with torch.no_grad():
            probe = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
            try:
                features = self.stages(probe)
                expected = model.forward_features(probe)  # NaN where weights are yet to be read into their memory
                same = features.shape[:2] == (1, self.width) and features.shape == expected.shape
                same = same and torch.allclose(features, expected, rtol=0, atol=0, equal_nan=True)
            except Exception:  # networks that aren't such a sequence fail in many ways
                same = False
        if not same:
            raise UsageError(f"timm's {name!r} is not a plain sequence of stages, so it can't be a hybrid's stem")
        self.freeze(frozen_stages)

    def freeze(self, stages: int) -> None:
        """Lets the first stages get no gradient, and all others one; -1 for all stages."""
        self.frozen_stages = len(self.stages) if stages < 0 else min(stages, len(self.stages))
        self.stages.requires_grad_(True)
        self.stages[: self.frozen_stages].requires_grad_(False)

    def train(self, mode: bool = True) -> ConvStem:
        """Keeps batch normalization on its stored statistics, whatever the mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def frozen(self, pixels: Tensor) -> Tensor:
        """Runs the frozen stages on normalized (B, 3, H, W) pixels."""
        with torch.no_grad():
            return _run(self.stages[: self.frozen_stages], pixels)

    def forward(self, frozen: Tensor) -> Tensor:
        """Runs the other stages on what ``frozen`` returned: (B, C, H', W')."""
        return _run(self.stages[self.frozen_stages :], frozen)


def _run(stages: nn.Sequential, x: Tensor) -> Tensor:
    """Runs stages; without gradients on a CPU a few images at a time.

    Early stages have large activations: those of four images stay within a processor's cache, thirty-two take twice as
    long.
    """
    if not len(stages) or x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return stages(x)
    return torch.cat([stages(part) for part in x.contiguous(memory_format=torch.channels_last).split(4)])


class HybridViT(nn.Module):
    """A convolutional stem whose feature map is the patches of a few transformer blocks (ViT, arXiv:2010.11929).

    The first token sums up the image: it is a normalized linear map of the stem's pooled features, which pretraining on
    ImageNet made to tell images apart, and passes the blocks by.

    Args:
        stem: the convolutional network.
        blocks: transformer blocks of width D.
        width: D.
        grid: side of the stem's feature map, in patches, that position embeddings are learned for.
        mean: per-channel mean of the pixels the stem's weights expect.
        std: per-channel standard deviation likewise.
        dropout: probability of dropping a unit of the stem's features while training.
        pooled_dropout: likewise of its pooled features.
    """

    prefix_tokens = 1
    has_summary = True

    def __init__(
        self,
        stem: ConvStem,
        blocks: Iterable[Block],
        width: int,
        grid: int,
        mean: Iterable[float],
        std: Iterable[float],
        *,
        dropout: float = 0.0,
        pooled_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.normalize = Normalize(mean, std)
        self.stem = stem
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(stem.width, width)
        self.summary = nn.Sequential(
            nn.LayerNorm(stem.width), nn.Dropout(pooled_dropout), nn.Linear(stem.width, width), nn.LayerNorm(width)
        )
        self.positions = nn.Parameter(torch.randn(1, width, grid, grid) * 0.02)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def frozen(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels in [0, 1] to the feature map of the stem's frozen stages: (B, C, H', W')."""
        return self.stem.frozen(self.normalize(pixels))

    def tokens(self, frozen: Tensor) -> Tensor:
        """Maps what ``frozen`` returned to (B, 1 + P, D) image tokens; positions are interpolated to other sizes."""
        features = self.stem(frozen)
        positions: Tensor = self.positions
        if features.shape[-2:] != positions.shape[-2:]:
            positions = F.interpolate(positions, features.shape[-2:], mode="bicubic")
        x = self.project(self.dropout(features.flatten(2).transpose(1, 2))) + positions.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return torch.cat([self.summary(features.mean((2, 3)))[:, None], self.norm(x)], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels in [0, 1] to (B, 1 + P, D) image tokens."""
        return self.tokens(self.frozen(pixels))
