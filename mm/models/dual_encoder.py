"""Two towers and one shared space: any CLIP model of open_clip."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mm.errors import UsageError
from mm.models.vision import Normalize
from mm.models.vision_language import SpecialTokens, enclose


@dataclass(frozen=True)
class OpenClip:
    """How a model of open_clip is built.

    Args:
        config: open_clip's own description of it: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and what else it has.
        mean: per-channel mean of the pixels that its weights expect.
        std: per-channel standard deviation likewise.
    """

    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.config["vision_cfg"].get("image_size", 224))

    @property
    def max_tokens(self) -> int:
        """The tokens of a text, with its special tokens and the padding."""
        return int(self.config["text_cfg"].get("context_length", 77))


class DualEncoder(nn.Module):
    """A CLIP model (Radford et al., arXiv:2103.00020): it embeds images and texts and does nothing else.

    Args:
        model: a model of open_clip, with ``encode_image`` and ``encode_text``.
        architecture: how it was built.
        special: ids of the tokens that aren't text.
    """

    # What a ``VisionLanguageModel`` says of itself too.
    capabilities: tuple[str, ...] = ("embed",)
    embeds = True
    text_encoder = text_decoder = None

    def __init__(self, model: nn.Module, architecture: OpenClip, special: SpecialTokens) -> None:
        super().__init__()
        self.normalize = Normalize(architecture.mean, architecture.std)
        self.model: Any = model
        self.special = special
        self.text_length = architecture.max_tokens
        self.embedding_width = int(architecture.config["embed_dim"])

    @property
    def vision(self) -> nn.Module:
        """The image tower."""
        return self.model.visual

    def text_parameters(self) -> list[nn.Parameter]:
        """Gives the weights of the text tower: all but those of the image tower, and of how similarities count."""
        others = ("visual.", "logit_scale", "logit_bias")
        return [value for name, value in self.model.named_parameters() if not name.startswith(others)]

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of what similarities are multiplied with."""
        return self.model.logit_scale

    @property
    def text_room(self) -> int:
        """The most tokens of a text, special tokens not counted."""
        return self.text_length - (self.special.embed is not None) - (self.special.close is not None)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels in [0, 1] to (B, 1, E): the image tower makes one token of an image."""
        return self.model.encode_image(self.normalize(pixels))[:, None]

    def image_embedding(self, image_tokens: Tensor) -> Tensor:
        """Maps (B, 1, E) image tokens to (B, E) float32 vectors of length 1."""
        return F.normalize(image_tokens[:, 0].float(), dim=-1)

    def whole_texts(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Gives texts as the text tower reads them: between their special tokens, and padded to one length.

        Args:
            tokens: (B, T) int64, text without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.
        """
        tokens, _ = enclose(self.special, self.special.embed, tokens, padding)
        return F.pad(tokens, (0, self.text_length - tokens.shape[1]), value=self.special.padding)

    def text_embedding(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Maps texts, given as for ``whole_texts``, to (B, E) float32 vectors of length 1."""
        return F.normalize(self.model.encode_text(self.whole_texts(tokens, padding)).float(), dim=-1)


def build_dual_encoder(architecture: OpenClip, special: SpecialTokens) -> DualEncoder:
    """Builds a model of open_clip, without pretrained weights.

    Args:
        architecture: how.
        special: ids of the tokens that aren't text.

    Raises:
        UsageError: open_clip can't build it.
    """
    import open_clip
    import timm

    config = deepcopy(architecture.config)
    try:
        text, vision = config["text_cfg"], config["vision_cfg"]
        if "timm_model_name" in vision:
            vision["timm_model_pretrained"] = False
            if not timm.is_model(vision["timm_model_name"]):  # asked first: timm would fetch a name like hf-hub:a/b
                raise UsageError(f"architecture.config: timm has no model {vision['timm_model_name']!r}")
        if "hf_model_name" in text:
            text["hf_model_pretrained"] = False
        custom = config.pop("custom_text", False) or "hf_model_name" in text
        captions = custom and "multimodal_cfg" in config
        kind = open_clip.CoCa if captions else open_clip.CustomTextCLIP if custom else open_clip.CLIP
        return DualEncoder(kind(**config), architecture, special)
    except (AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"architecture.config: open_clip can't build it ({reason})") from error
