"""The numbers that say how a model of mm is built, as they stand in a config file and in a model's ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mm.errors import UsageError
from mm.models.language import LanguageModel
from mm.models.presets import CONNECTORS, TEXT, VISION, build_part, complete
from mm.models.text import TextTransformer
from mm.models.vision_language import SpecialTokens, VisionLanguageModel


@dataclass(frozen=True)
class Architecture:
    """A vision encoder, a text encoder and a text decoder, as mm-tiny has them.

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

    def parts(self) -> Parts:
        """Gives the same as a description of parts.

        Raises:
            UsageError: a number is out of range.
        """
        _check(self)
        shared = {"width": self.width, "heads": self.heads, "dropout": self.dropout}
        vision = {
            "preset": "timm",
            "name": self.vision,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "hybrid_blocks": self.hybrid_blocks,
            "frozen_stages": self.frozen_stages,
            "pooled_dropout": self.pooled_dropout,
        }
        text = {"preset": "mm", "max_tokens": self.max_tokens} | shared
        return Parts(
            vision=vision | shared,
            text_encoder=text | {"blocks": self.encoder_blocks, "mask": "bidirectional", "head": False},
            text_decoder=text | {"blocks": self.decoder_blocks, "mask": "causal"},
            embedding_width=self.embedding_width,
            share_embedding=True,
        )


@dataclass(frozen=True)
class Parts:
    """Any vision encoder with any text encoder and decoder; each part is a preset's name and numbers.

    Args:
        vision: a preset of vision encoders.
        text_decoder: a preset of text transformers; None for a model that doesn't write.
        text_encoder: likewise; None for a model without a shared space.
        connector: a preset of connectors, between vision encoder and text decoder; None for none.
        sees: the text decoder sees the image by ``cross``-attention or as a ``prefix``, or gives an ``answer`` to a
            question that the text encoder has read.
        embedding_width: E of the shared space.
        image_pooling: ``mean``, ``first`` or ``pool``; see ``VisionLanguageModel``.
        text_pooling: ``mean``, ``first`` or ``last``.
        image_bias: whether the projection of images has a bias; None for no projection.
        text_bias: likewise of texts.
        matches: whether a head tells matching texts from others.
        text_length: length that embedded texts are padded to; None for none.
        share_embedding: whether text encoder and decoder share their token embedding.
    """

    vision: dict[str, Any]
    text_decoder: dict[str, Any] | None = None
    text_encoder: dict[str, Any] | None = None
    connector: dict[str, Any] | None = None
    sees: str = "cross"
    embedding_width: int = 256
    image_pooling: str = "mean"
    text_pooling: str = "mean"
    image_bias: bool | None = True
    text_bias: bool | None = True
    matches: bool = True
    text_length: int | None = None
    share_embedding: bool = False

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.vision.get("image_size", 224))

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text, with its special tokens."""
        return min(int(part.get("max_tokens", 512)) for part in (self.text_encoder, self.text_decoder) if part)


@dataclass(frozen=True)
class TextParts:
    """A language model; each part is a preset's name and numbers.

    Args:
        encoder: a preset of text transformers, bidirectional; None for none.
        decoder: likewise, causal; None for none.
        share_embedding: whether they share their token embedding.
    """

    encoder: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    share_embedding: bool = False

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text, with its special tokens."""
        return min(int(part.get("max_tokens", 512)) for part in (self.encoder, self.decoder) if part)


def build(architecture: Architecture | Parts, vocabulary: int, special: SpecialTokens) -> VisionLanguageModel:
    """Builds a vision-language model with random weights.

    Args:
        architecture: its numbers.
        vocabulary: V, number of tokens, where a part doesn't say its own.
        special: ids of the tokens that aren't text.

    Raises:
        UsageError: a number is out of range, a preset is unknown, or timm lacks the vision model.
    """
    parts = architecture.parts() if isinstance(architecture, Architecture) else architecture
    for name, known in (("sees", ("cross", "prefix", "answer")), ("image_pooling", ("mean", "first", "pool"))):
        if getattr(parts, name) not in known:
            raise UsageError(f"architecture.{name} is {getattr(parts, name)!r}: {', '.join(known)}")
    if parts.text_pooling not in ("mean", "first", "last"):
        raise UsageError(f"architecture.text_pooling is {parts.text_pooling!r}: mean, first, last")
    if parts.text_encoder is None and parts.text_decoder is None:
        raise UsageError("architecture has neither text_encoder nor text_decoder: nothing to do with an image")
    vision = build_part("architecture.vision", VISION, parts.vision)
    connector, seen = None, int(vision.width)
    if parts.connector is not None:
        role = "architecture.connector"
        given = _missing(parts.connector, image_width=seen, width=(parts.text_decoder or {}).get("width"))
        connector = build_part(role, CONNECTORS, complete(role, CONNECTORS, parts.connector, **given))
        seen = int(connector.width)
    if parts.sees == "prefix" and seen != (parts.text_decoder or {}).get("width"):
        raise UsageError(
            f"architecture.sees is prefix, but image tokens are {seen} wide and the text decoder isn't; "
            "set architecture.connector to {preset: projection}"
        )
    crossing = {"cross": seen, "answer": (parts.text_encoder or {}).get("width"), "prefix": None}[parts.sees]
    encoder, decoder = _text_pair(
        (parts.text_encoder, parts.text_decoder),
        ("architecture.text_encoder", "architecture.text_decoder"),
        (int(vision.width) if parts.matches or parts.sees == "answer" else None, crossing),
        vocabulary,
        parts.share_embedding,
    )
    return VisionLanguageModel(
        vision,
        encoder,
        decoder,
        parts.embedding_width,
        special,
        connector=connector,
        sees=parts.sees,  # type: ignore[arg-type]
        image_pooling=parts.image_pooling,  # type: ignore[arg-type]
        text_pooling=parts.text_pooling,  # type: ignore[arg-type]
        projections=(parts.image_bias, parts.text_bias),
        matches=parts.matches and parts.text_encoder is not None,
        text_length=parts.text_length,
    )


def build_language(parts: TextParts, vocabulary: int, special: SpecialTokens) -> LanguageModel:
    """Builds a language model with random weights.

    Args:
        parts: its numbers.
        vocabulary: V, number of tokens, where a part doesn't say its own.
        special: ids of the tokens that aren't text.

    Raises:
        UsageError: a number is out of range, or a preset is unknown.
    """
    if parts.encoder is None and parts.decoder is None:
        raise UsageError("architecture has neither encoder nor decoder")
    seen = (parts.encoder or {}).get("width")
    roles = ("architecture.encoder", "architecture.decoder")
    both = _text_pair((parts.encoder, parts.decoder), roles, (None, seen), vocabulary, parts.share_embedding)
    return LanguageModel(*both, special)


def _text_pair(
    descriptions: tuple[dict[str, Any] | None, dict[str, Any] | None],
    roles: tuple[str, str],
    contexts: tuple[int | None, int | None],
    vocabulary: int,
    share: bool,
) -> tuple[TextTransformer | None, TextTransformer | None]:
    """Builds text encoder and decoder, with the numbers that other parts decide."""
    embedding: nn.Embedding | None = None
    built: list[TextTransformer | None] = []
    masks = ("bidirectional", "causal")
    for description, role, context, mask in zip(descriptions, roles, contexts, masks, strict=True):
        if description is None:
            built.append(None)
            continue
        head = role.endswith("decoder") or (descriptions[1] is None and not contexts[0])
        given = _missing(description, vocabulary=vocabulary, context_width=context, mask=mask, head=head)
        whole = complete(role, TEXT, description, **given)
        if share and embedding is None:
            embedding = nn.Embedding(int(whole["vocabulary"]), int(whole.get("width", 0)))
            nn.init.normal_(embedding.weight, std=0.02)
        shared = {"embedding": embedding} if share else {}
        built.append(build_part(role, TEXT, whole, **shared, below=built[0] if built else None))
    return built[0], built[1]


def _missing(description: dict[str, Any], **given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in description}


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
