"""The three losses of BLIP (Li et al., arXiv:2201.12086): contrastive, matching, language modelling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.errors import OptionError

NEVER = -torch.inf


@dataclass(frozen=True)
class Losses:
    """How much each loss counts; 0 leaves it out.

    Args:
        contrastive: weight of the image-text contrastive loss (ITC).
        matching: weight of the image-text matching loss (ITM).
        captioning: weight of the language-modelling loss (LM).
        match_pairs: pairs of a batch that the matching loss sees, each with two hard negatives; 0 for one per image.
        smoothing: label smoothing of the language-modelling loss.

    Raises:
        OptionError: a number is out of range, or no loss counts.
    """

    contrastive: float = 1.0
    matching: float = 1.0
    captioning: float = 1.0
    match_pairs: int = 0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("contrastive", "matching", "captioning", "match_pairs"):
            if getattr(self, name) < 0:
                raise OptionError(f"losses.{name} must be at least 0, not {getattr(self, name)}")
        if not (self.contrastive or self.matching or self.captioning):
            raise OptionError("losses.contrastive, losses.matching and losses.captioning can't all be 0")
        if not 0 <= self.smoothing < 1:
            raise OptionError(f"losses.smoothing must be at least 0 and below 1, not {self.smoothing}")


def similarities(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Scaled similarity of every image with every text, in float32 under autocast too: three digits aren't enough.

    Args:
        images: (B, E) unit vectors.
        texts: (M, E) unit vectors.
        scale: () inverse temperature.

    Returns:
        (B, M).
    """
    with torch.autocast(images.device.type, enabled=False):
        return scale * images @ texts.T


def contrastive_loss(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Image-text contrastive loss (ITC) in both directions, with several texts per image.

    Each pair that belongs together competes with the pairs that don't; other texts of the same image are left out.

    Args:
        images: (B, E) unit vectors.
        texts: (M, E) unit vectors.
        same: (B, M) bool, true where the text describes the image; at least one in each column.
        scale: () inverse temperature.

    Returns:
        () mean of both directions.
    """
    similarity = similarities(images, texts, scale)
    negative = similarity.masked_fill(same, NEVER)
    to_text = torch.logaddexp(similarity, negative.logsumexp(1, keepdim=True)) - similarity
    to_image = torch.logaddexp(similarity, negative.logsumexp(0, keepdim=True)) - similarity
    return (to_text[same].mean() + to_image[same].mean()) / 2


def hard_negatives(similarity: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Draws for each pair a wrong image and a wrong text, the likelier the more similar they are.

    Args:
        similarity: (n, n) scaled similarity of n images with n texts, the pairs on the diagonal.
        same: (n, n) bool, true where image and text belong together.

    Returns:
        (n,) image for each text, and (n,) text for each image; where there is no wrong one, the pair's own.
    """
    weights = similarity.detach().float().nan_to_num().masked_fill(same, NEVER)  # the loss tells of what isn't finite
    alone = torch.eye(len(same), dtype=torch.bool, device=same.device)

    def draw(scores: Tensor, none: Tensor) -> Tensor:
        return scores.masked_fill(none & alone, 0.0).softmax(1).multinomial(1)[:, 0]

    image = draw(weights.T, same.T.all(1, keepdim=True))
    text = draw(weights, same.all(1, keepdim=True))
    return image, text


def matching_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Image-text matching loss (ITM).

    Args:
        logits: (B, 2): no match, match.
        matched: (B,) bool.
    """
    return F.cross_entropy(logits.float(), matched.long())


def caption_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Language-modelling loss (LM): cross-entropy with label smoothing (Szegedy et al., arXiv:1512.00567).

    Args:
        logits: (R, V).
        targets: (R,) int64.
        smoothing: share of the probability spread over the vocabulary.
    """
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
