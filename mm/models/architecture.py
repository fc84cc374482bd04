"""The numbers that say how a model of mm is built, as they stand in a config file and in a model's ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mm.errors import UsageError
from mm.layers import Block
from mm.models.presets import block, vision_encoder
from mm.models.text import TextTransformer
from mm.models.vision_language import SpecialTokens, VisionLanguageModel


@dataclass(frozen=True)
class Architecture:
    """A vision encoder, a text encoder and a text decoder.

    Args:
        vision: a ViT of timm; with ``hybrid_blocks``, the convolutional network of timm that is a hybrid ViT's stem.
        hybrid_blocks: transformer blocks on the stem; 0 for a plain ViT.
        image_size: side of the square input in pixels.
        mean: per-channel mean of the pixels that the vision weights expect.
        std: per-channel standard deviation likewise.
        width: D of all transformer blocks.
        heads: N of all transformer blocks.
        encoder_blocks: blocks of the text encoder.
        decoder_blocks: blocks of the text decoder.
        embedding_width: E of the shared space.
        max_tokens: the most tokens of a text, with its first token.
        dropout: probability of dropping a unit while training.
        pooled_dropout: likewise of a hybrid ViT's pooled features.
        frozen_stages: stages of the stem, from the first, that are never trained; -1 for all.
    """

    vision: str = "tf_efficientnet_lite2"
    hybrid_blocks: int = 2
    image_size: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    width: int = 256
    heads: int = 8
    encoder_blocks: int = 3
    decoder_blocks: int = 3
    embedding_width: int = 256
    max_tokens: int = 64
    dropout: float = 0.1
    pooled_dropout: float = 0.3
    frozen_stages: int = 0


def build(architecture: Architecture, vocabulary: int, special: SpecialTokens) -> VisionLanguageModel:
    """Builds the model with random weights; its two text transformers share their token embedding.

    Args:
        architecture: its numbers.
        vocabulary: V, number of tokens.
        special: ids of the tokens that aren't text.

    Raises:
        UsageError: a number is out of range, or timm lacks the vision model.
    """
    a = architecture
    _check(a)
    vision = vision_encoder(
        a.vision,
        image_size=a.image_size,
        mean=a.mean,
        std=a.std,
        hybrid_blocks=a.hybrid_blocks,
        width=a.width,
        heads=a.heads,
        frozen_stages=a.frozen_stages,
        dropout=a.dropout,
        pooled_dropout=a.pooled_dropout,
    )
    embedding = nn.Embedding(vocabulary, a.width)
    nn.init.normal_(embedding.weight, std=0.02)

    def stack(blocks: int) -> list[Block]:
        return [block(a.width, a.heads, context_width=vision.width, dropout=a.dropout) for _ in range(blocks)]

    encoder = TextTransformer(embedding, stack(a.encoder_blocks), a.max_tokens, "bidirectional", dropout=a.dropout)
    decoder = TextTransformer(embedding, stack(a.decoder_blocks), a.max_tokens, "causal", head=True, dropout=a.dropout)
    return VisionLanguageModel(vision, encoder, decoder, a.embedding_width, special)


def _check(architecture: Architecture) -> None:
    a = architecture
    least = dict.fromkeys(("width", "heads", "encoder_blocks", "decoder_blocks", "image_size", "embedding_width"), 1)
    for name, lowest in (least | {"hybrid_blocks": 0, "max_tokens": 2, "frozen_stages": -1}).items():
        if getattr(a, name) < lowest:
            raise UsageError(f"architecture.{name} must be at least {lowest}, not {getattr(a, name)}")
    if a.width % a.heads:
        raise UsageError(f"architecture.width {a.width} must be a multiple of architecture.heads {a.heads}")
    for name in ("dropout", "pooled_dropout"):
        if not 0 <= getattr(a, name) < 1:
            raise UsageError(f"architecture.{name} must be at least 0 and below 1, not {getattr(a, name)}")
    for name in ("mean", "std"):
        if len(getattr(a, name)) != 3:
            raise UsageError(f"architecture.{name} must be three numbers, one per channel, not {getattr(a, name)}")
    if not all(value > 0 for value in a.std):
        raise UsageError(f"architecture.std must be above 0, not {a.std}")
