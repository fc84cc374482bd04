"""How well texts fit an image, as a model itself sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.data.tokenizer import Tokenizer
from mm.generation import Generated, GenerationConfig
from mm.generation.ranking import Rank
from mm.generation.stopping import StopStrings
from mm.models import VisionLanguageModel


def encode_texts(model: VisionLanguageModel, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Turns texts into what a model's text encoder reads.

    Returns:
        (B, T) int64 token ids, padded on the right, and (B, T) bool, true at real ones.
    """
    device = next(model.parameters()).device
    whole = [tokenizer.tidy(text) for text in texts]
    tokens, padding = tokenizer.pad(tokenizer.encode(whole, model.text_room))
    return torch.from_numpy(tokens).to(device), torch.from_numpy(padding).to(device)


def match_texts(model: VisionLanguageModel, image: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
    """Gives the (M,) float32 probabilities that texts describe an image.

    Args:
        model: with a head that tells matching texts from others.
        image: (P, D) its tokens.
        tokens: (M, T) int64, the texts.
        padding: (M, T) bool, true at real tokens.
    """
    context = model.encoder.keys_values(image[None]).expand(len(tokens))
    return model.match_logits(context, tokens, padding).float().softmax(-1)[:, 1]


def compare_texts(model: VisionLanguageModel, image: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
    """Gives the (M,) cosines of texts and an image in the shared space; the arguments are those of ``match_texts``."""
    return model.text_embedding(tokens, padding) @ model.image_embedding(image[None])[0]


def rank_by_image(
    model: VisionLanguageModel, tokenizer: Tokenizer, config: GenerationConfig, image_tokens: Tensor, lead: int
) -> Rank | None:
    """Gives what captions of images are ranked by, where that takes the images; else None.

    Args:
        model: what judges.
        tokenizer: its tokenizer.
        config: for ``rank_by``.
        image_tokens: (B, P, D) tokens of the images.
        lead: tokens of each caption's prompt that aren't part of its text.
    """
    score = {"match": match_texts, "similarity": compare_texts}.get(config.rank_by)
    if score is None:
        return None

    stops = StopStrings(config.stop, tokenizer)

    def rank(found: Sequence[Sequence[Generated]]) -> list[list[float]]:
        scores = []
        for image, captions in zip(image_tokens, found, strict=True):
            rows, prompts = zip(
                *((one.tokens[lead - 1 :], one.tokens[lead - 1 : one.begun]) for one in captions), strict=True
            )
            texts = [text for text, _ in stops.decode(rows, prompts)]
            scores.append(score(model, image, *encode_texts(model, tokenizer, texts)).tolist())
        return scores

    return rank
