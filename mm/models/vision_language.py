"""The model that captions, embeds and matches: one vision encoder, a text encoder and a text decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.models.interleaved import sees_last_image
from mm.models.text import Conditioning, Context, TextTransformer

Sees = Literal["cross", "prefix", "answer"]
ImagePooling = Literal["mean", "first", "pool"]
TextPooling = Literal["mean", "first", "last"]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that aren't text.

    Args:
        padding: fills sequences up to one length.
        end: ends a caption.
        embed: begins a text that is embedded; None for nothing.
        match: begins a text that is matched with an image, or a question; None for nothing.
        languages: begins a caption in this language; by language code.
        close: ends a text that is embedded or matched; None for nothing.
        start: comes before the token of the language where a decoder writes; None for nothing.
        image: stands for an image within a text; None where the model reads none there.
        around_image: comes before such a token and behind it; None for nothing.
    """

    padding: int
    end: int
    embed: int | None
    match: int | None
    languages: dict[str, int]
    close: int | None = None
    start: int | None = None
    image: int | None = None
    around_image: int | None = None

    @property
    def image_marks(self) -> tuple[int, ...]:
        """The tokens that stand for an image within a text; none where the model reads no images there."""
        around = () if self.around_image is None else (self.around_image,)
        return () if self.image is None else (*around, self.image, *around)


class VisionLanguageModel(nn.Module):
    """Captions, a shared embedding space and image-text matching on one vision encoder, as in BLIP (arXiv:2201.12086).

    Without a text encoder it only captions; without a text decoder it only embeds and, with cross-attention, matches.

    Args:
        vision: maps (B, 3, H, W) pixels to (B, P, D) tokens, of which the first ``prefix_tokens`` aren't patches.
        text_encoder: with cross-attention that only matching uses; or None.
        text_decoder: causal, with a language-model head; or None.
        embedding_width: E of the shared space.
        special: ids of the tokens that aren't text.
        connector: maps image tokens to those that the text decoder sees; None for the same.
        sees: the decoder sees the image by ``cross``-attention or as a ``prefix`` in front of the text; or it gives an
            ``answer`` to a question by cross-attention to the text encoder, which has seen question and image.
        image_pooling: what of an image is projected: the ``mean`` of its patches, the ``first`` token, or what the
            vision encoder's own ``pool`` makes of all.
        text_pooling: what of a text is projected: the ``mean``, the ``first`` or the ``last`` of its tokens.
        projections: whether image and text pass a linear map into the shared space, and whether that has a bias.
        matches: whether there is a head that tells matching texts from others.
        text_length: length that embedded texts are padded to, the padding being seen; None for no such length.
    """

    def __init__(
        self,
        vision: nn.Module,
        text_encoder: TextTransformer | None,
        text_decoder: TextTransformer | None,
        embedding_width: int,
        special: SpecialTokens,
        *,
        connector: nn.Module | None = None,
        sees: Sees = "cross",
        image_pooling: ImagePooling = "mean",
        text_pooling: TextPooling = "mean",
        projections: tuple[bool | None, bool | None] = (True, True),
        matches: bool = True,
        text_length: int | None = None,
    ) -> None:
        super().__init__()
        seeing: Any = vision
        self.vision = seeing
        self.text_encoder = text_encoder
        self.text_decoder = text_decoder
        self.connector = connector
        self.special = special
        self.sees = sees
        self.image_pooling, self.text_pooling = image_pooling, text_pooling
        self.embedding_width = embedding_width
        self.text_length = text_length
        self.prefix_tokens = int(seeing.prefix_tokens)
        self.embeds = text_encoder is not None and sees != "answer"
        self.has_summary = bool(seeing.has_summary) and image_pooling == "mean"
        image_bias, text_bias = projections
        self.image_projection = self.text_projection = self.match_head = None
        if text_encoder is not None and self.embeds:
            parts = 2 if self.has_summary else 1
            if image_bias is not None:
                self.image_projection = nn.Linear(parts * int(seeing.width), embedding_width, bias=image_bias)
            if text_bias is not None:
                self.text_projection = nn.Linear(text_encoder.width, embedding_width, bias=text_bias)
            if matches:
                self.match_head = nn.Linear(text_encoder.width, 2)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def encoder(self) -> TextTransformer:
        """The text encoder of a model that has one."""
        assert self.text_encoder is not None, "this model has no text encoder"
        return self.text_encoder

    @property
    def decoder(self) -> TextTransformer:
        """The text decoder of a model that has one."""
        assert self.text_decoder is not None, "this model has no text decoder"
        return self.text_decoder

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do: ``caption``, follow the example of ``shots``, ``embed``, ``match``, ``ask``."""
        can = {
            "caption": self.text_decoder is not None and self.sees != "answer",
            "shots": self.text_decoder is not None and self.sees == "cross" and self.special.image is not None,
            "embed": self.embeds,
            "match": self.match_head is not None,
            "ask": self.sees == "answer",
        }
        return tuple(name for name, able in can.items() if able)

    @property
    def text_room(self) -> int:
        """The most tokens of a text that is embedded or matched, special tokens not counted."""
        special = self.special
        first = special.embed is not None or special.match is not None
        return self.encoder.max_tokens - first - (special.close is not None)

    @property
    def caption_room(self) -> int:
        """The most tokens of a caption that is written, those that it begins with not counted."""
        return self.decoder.max_tokens - 1 - (self.special.start is not None) - len(self.special.image_marks)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels in [0, 1] to (B, P, D) image tokens."""
        return self.vision(pixels)

    def vision_tokens(self, frozen: Tensor) -> Tensor:
        """Maps what the vision encoder's frozen part gave to (B, P, D) image tokens."""
        return self.vision.tokens(frozen)

    def image_embedding(self, image_tokens: Tensor) -> Tensor:
        """Maps (B, P, D) image tokens to (B, E) float32 vectors of length 1.

        Where the mean of the patches is projected, it stands behind the first token if that sums up the image.
        """
        if self.image_pooling == "mean":
            pooled = image_tokens[:, self.prefix_tokens :].mean(1)
            if self.has_summary:
                pooled = torch.cat([image_tokens[:, 0], pooled], 1)
        else:
            pooled = image_tokens[:, 0] if self.image_pooling == "first" else self.vision.pool(image_tokens)
        if self.image_projection is not None:
            pooled = self.image_projection(pooled)
        return F.normalize(pooled.float(), dim=-1)

    def text_embedding(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Maps texts to the shared space.

        Args:
            tokens: (B, T) int64, text without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.

        Returns:
            (B, E) float32 vectors of length 1: the projection of what ``text_pooling`` says.
        """
        tokens, padding = enclose(self.special, self.special.embed, tokens, padding)
        if self.text_length is not None:
            tokens = F.pad(tokens, (0, self.text_length - tokens.shape[1]), value=self.special.padding)
            padding = torch.ones_like(tokens, dtype=torch.bool)
        hidden = self.encoder(tokens, padding=padding)
        if self.text_pooling == "mean":
            weights = padding.to(hidden.dtype)[..., None]
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        else:
            last = (
                padding.sum(1) - 1
                if self.text_pooling == "last"
                else padding.new_zeros(padding.shape[0], dtype=torch.int64)
            )
            pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return F.normalize(pooled.float(), dim=-1)

    def match_logits(self, context: Context, tokens: Tensor, padding: Tensor) -> Tensor:
        """Scores whether text and image belong together.

        Args:
            context: the images' keys and values of B images, from ``text_encoder.keys_values``.
            tokens: (B, T) int64, text without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.

        Returns:
            (B, 2) logits: no match, match.
        """
        assert self.match_head is not None, "this model doesn't match"
        tokens, padding = enclose(self.special, self.special.match, tokens, padding)
        hidden = self.encoder(tokens, padding=padding, context=context)
        return self.match_head(hidden[:, 0])

    def about(self, image_tokens: Tensor) -> Conditioning:
        """Prepares (B, P, D) image tokens once for the text decoder: what captions are about."""
        seen = self.seen_tokens(image_tokens)
        if self.sees == "prefix":
            return Conditioning(len(seen), prefix=seen)
        if "shots" in self.capabilities:
            opening = self.opening(torch.zeros(len(seen), dtype=torch.int64, device=seen.device))
            return self.about_interleaved(seen[:, None], opening)
        return Conditioning(len(seen), context=self.decoder.keys_values(seen))

    def seen_tokens(self, image_tokens: Tensor) -> Tensor:
        """Maps (B, P, D) image tokens to those that the text decoder sees: what the connector makes of them."""
        return image_tokens if self.connector is None else self.connector(image_tokens)

    def about_interleaved(self, seen: Tensor, tokens: Tensor) -> Conditioning:
        """Prepares several images within each text once for the text decoder; a token sees the last one before it.

        Args:
            seen: (B, M, P, D) what ``seen_tokens`` gave for the M images of each text.
            tokens: (B, T) int64, the texts from their beginning up to the last image at least; what follows sees what
                the last of them sees.
        """
        assert self.special.image is not None, "this model reads no images within a text"
        sees = sees_last_image(tokens, seen.shape[1], self.special.image, self.special.close)
        context = self.decoder.keys_values(seen.flatten(1, 2))
        mask = sees.repeat_interleave(seen.shape[2], 2)[:, None]
        return Conditioning(len(seen), context=context._replace(mask=mask))

    def about_question(self, image_tokens: Tensor, tokens: Tensor, padding: Tensor) -> Conditioning:
        """Prepares questions about images once for the text decoder: what answers are about.

        Args:
            image_tokens: (B, P, D).
            tokens: (B, T) int64, questions without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.
        """
        tokens, padding = enclose(self.special, self.special.match, tokens, padding)
        hidden = self.encoder(tokens, padding=padding, context=self.encoder.keys_values(image_tokens))
        return Conditioning(len(tokens), context=self.decoder.keys_values(hidden, padding))

    def caption_logits(self, about: Conditioning, language: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Predicts each token of captions from the image and the tokens before it, at the real positions alone.

        Args:
            about: what the captions are about, from ``about``.
            language: (B,) int64, the token each caption begins with.
            tokens: (B, T) int64, captions without special tokens, padded on the right.
            padding: (B, T) bool, true at real tokens.

        Returns:
            (R, V) logits, R the number of real positions counted with the first token, caption by caption.
        """
        opening = self.opening(language)
        hidden = self.decoder(torch.cat([opening, tokens], 1), context=about.context, prefix=about.prefix)
        return self.decoder.logits(hidden[:, opening.shape[1] - 1 :][F.pad(padding, (1, 0), value=True)])

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

    def opening(self, language: Tensor) -> Tensor:
        """Gives the (B, T) tokens that captions begin with, for the (B,) tokens of their languages.

        Where the model reads images within the text, that is the mark of the image too.
        """
        start = () if self.special.start is None else (self.special.start,)
        parts = [language.new_tensor(ids).expand(len(language), -1) for ids in (start, self.special.image_marks)]
        return torch.cat([parts[0], language[:, None], parts[1]], 1)


def enclose(special: SpecialTokens, first: int | None, tokens: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Puts a text's first token before it and the closing one behind it, where the model has them.

    Args:
        special: ids of the tokens that aren't text.
        first: the first token; None for none.
        tokens: (B, T) int64, text without special tokens, padded on the right.
        padding: (B, T) bool, true at real tokens.

    Returns:
        Both, one token longer for each that is put there.
    """
    if special.close is not None:  # a batch's size is its shape's here: an exported model has no len
        rows, length = torch.arange(tokens.shape[0], device=tokens.device), padding.sum(1)
        tokens = torch.cat([tokens, torch.full_like(tokens[:, :1], special.padding)], 1)
        padding = torch.cat([padding, padding.new_zeros(padding.shape[0], 1)], 1)
        tokens[rows, length] = special.close
        padding[rows, length] = True
    return (tokens, padding) if first is None else _begin(first, tokens, padding)


def _begin(first: int | Tensor, tokens: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    rows = tokens.shape[0]
    head = tokens.new_full((rows, 1), first) if isinstance(first, int) else first
    return torch.cat([head, tokens], 1), torch.cat([padding.new_ones(rows, 1), padding], 1)
