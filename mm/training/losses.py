"""The three losses of BLIP (Li et al., arXiv:2201.12086): contrastive, matching, language modelling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -torch.inf


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
    similarity = scale * images @ texts.T
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
    weights = similarity.detach().float().masked_fill(same, NEVER)
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
