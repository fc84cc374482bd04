"""The model that captions, embeds and matches: one vision encoder, a text encoder and a text decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.layers import KeyValues
from mm.models.text import TextTransformer


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that aren't text.

    Args:
        padding: fills sequences up to one length.
        end: ends a caption.
        embed: begins a text that is embedded.
        match: begins a text that is matched with an image.
        languages: begins a caption in this language; by language code.
    """

    padding: int
    end: int
    embed: int
    match: int
    languages: dict[str, int]


class VisionLanguageModel(nn.Module):
    """Captions, a shared embedding space and image-text matching on one vision encoder, as in BLIP (arXiv:2201.12086).

    Args:
        vision: maps (B, 3, H, W) pixels to (B, P, D) tokens, of which the first ``prefix_tokens`` aren't patches.
        text_encoder: bidirectional, with cross-attention that only matching uses.
        text_decoder: causal, with cross-attention in every block and a language-model head.
        embedding_width: E of the shared space.
        special: ids of the tokens that aren't text.
    """

    def __init__(
        self,
        vision: nn.Module,
        text_encoder: TextTransformer,
        text_decoder: TextTransformer,
        embedding_width: int,
        special: SpecialTokens,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.text_encoder = text_encoder
        self.text_decoder = text_decoder
        self.special = special
        self.embedding_width = embedding_width
        self.prefix_tokens = int(vision.prefix_tokens)  # type: ignore[arg-type]
        self.has_summary = bool(vision.has_summary)
        parts = 2 if self.has_summary else 1
        self.image_projection = nn.Linear(parts * int(vision.width), embedding_width)  # type: ignore[arg-type]
        self.text_projection = nn.Linear(text_encoder.width, embedding_width)
        self.match_head = nn.Linear(text_encoder.width, 2)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels in [0, 1] to (B, P, D) image tokens."""
        return self.vision(pixels)

    def vision_tokens(self, frozen: Tensor) -> Tensor:
        """Maps what the vision encoder's frozen part gave to (B, P, D) image tokens."""
        return self.vision.tokens(frozen)  # type: ignore[operator]

    def image_embedding(self, image_tokens: Tensor) -> Tensor:
        """Maps (B, P, D) image tokens to (B, E) float32 vectors of length 1.

        What is projected is the mean of the patches, behind the first token where that sums up the image.
        """
        pooled = image_tokens[:, self.prefix_tokens :].mean(1)
        if self.has_summary:
            pooled = torch.cat([image_tokens[:, 0], pooled], 1)
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def text_embedding(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Maps texts to the shared space.

        Args:
            tokens: (B, T) int64, text without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.

        Returns:
            (B, E) float32 vectors of length 1: the projected mean of the real tokens.
        """
        tokens, padding = _begin(self.special.embed, tokens, padding)
        hidden = self.text_encoder(tokens, padding=padding)
        weights = padding.to(hidden.dtype)[..., None]
        return F.normalize(self.text_projection((hidden * weights).sum(1) / weights.sum(1)).float(), dim=-1)

    def match_logits(self, context: Sequence[KeyValues], tokens: Tensor, padding: Tensor) -> Tensor:
        """Scores whether text and image belong together.

        Args:
            context: the images' keys and values of B images, from ``text_encoder.keys_values``.
            tokens: (B, T) int64, text without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.

        Returns:
            (B, 2) logits: no match, match.
        """
        tokens, padding = _begin(self.special.match, tokens, padding)
        hidden = self.text_encoder(tokens, padding=padding, context=context)
        return self.match_head(hidden[:, 0])

    def caption_logits(self, context: Sequence[KeyValues], language: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Predicts each token of captions from the image and the tokens before it, at the real positions alone.

        Args:
            context: the images' keys and values of B images, from ``text_decoder.keys_values``.
            language: (B,) int64, the token each caption begins with.
            tokens: (B, T) int64, captions without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.

        Returns:
            (R, V) logits, R the number of real positions counted with the first token, caption by caption.
        """
        tokens, padding = _begin(language[:, None], tokens, padding)
        hidden = self.text_decoder(tokens, context=context)
        return self.text_decoder.logits(hidden[padding])

    def caption_targets(self, tokens: Tensor, padding: Tensor, complete: Tensor) -> Tensor:
        """Gives the tokens that ``caption_logits`` is to predict: each caption and then the end token.

        Args:
            tokens: (B, T) int64, captions without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.
            complete: (B,) bool, false for captions that were cut: what follows their last token isn't known.

        Returns:
            (R,) int64; -100, which a cross-entropy ignores, at the end of captions that were cut.
        """
        begun, real = _begin(self.special.padding, tokens, padding)
        targets = begun.roll(-1, 1)
        last = real.sum(1) - 1
        targets[torch.arange(len(targets), device=targets.device), last] = torch.where(complete, self.special.end, -100)
        return targets[real]


def _begin(first: int | Tensor, tokens: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    head = tokens.new_full((len(tokens), 1), first) if isinstance(first, int) else first
    return torch.cat([head, tokens], 1), torch.cat([padding.new_ones(len(tokens), 1), padding], 1)
