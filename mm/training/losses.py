"""The three losses of BLIP (Li et al., arXiv:2201.12086): contrastive, matching, language modelling."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -torch.inf


class Negatives(NamedTuple):
    """Images and texts of earlier batches, which a batch competes with besides its own.

    Args:
        images: (Q, E) unit vectors.
        texts: (R, E) unit vectors.
        same_images: (Q, M) bool, true where a text of the batch describes the image after all.
        same_texts: (B, R) bool, true where the text describes an image of the batch after all.
    """

    images: Tensor
    texts: Tensor
    same_images: Tensor
    same_texts: Tensor


def contrastive_loss(
    images: Tensor, texts: Tensor, same: Tensor, scale: Tensor, more: Negatives | None = None
) -> Tensor:
    """Image-text contrastive loss (ITC) in both directions, with several texts per image.

    Each pair that belongs together competes with the pairs that don't; other texts of the same image are left out.

    Args:
        images: (B, E) unit vectors.
        texts: (M, E) unit vectors.
        same: (B, M) bool, true where the text describes the image; at least one in each column.
        scale: () inverse temperature.
        more: further negatives.

    Returns:
        () mean of both directions.
    """
    similarity = scale * images @ texts.T
    negative = similarity.masked_fill(same, NEVER)
    wrong_texts, wrong_images = negative, negative
    if more is not None:
        further_texts = (scale * images @ more.texts.T).masked_fill(more.same_texts, NEVER)
        further_images = (scale * more.images @ texts.T).masked_fill(more.same_images, NEVER)
        wrong_texts, wrong_images = torch.cat([negative, further_texts], 1), torch.cat([negative, further_images], 0)
    to_text = torch.logaddexp(similarity, wrong_texts.logsumexp(1, keepdim=True)) - similarity
    to_image = torch.logaddexp(similarity, wrong_images.logsumexp(0, keepdim=True)) - similarity
    return (to_text[same].mean() + to_image[same].mean()) / 2


class NegativeMemory:
    """Vectors of the latest batches, kept as further negatives (cross-batch memory: Wang et al., arXiv:1912.06798).

    Args:
        capacity: how many images are kept, each with its texts.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: dict[str, Tensor] = {}

    def negatives(self, index: Tensor, rows: Tensor) -> Negatives | None:
        """Gives what is kept, as seen from a batch.

        Args:
            index: (B,) int64, which images of the data set the batch has.
            rows: (M,) int64, the image in the batch that each text belongs to.

        Returns:
            None as long as nothing is kept.
        """
        if not self._kept:
            return None
        kept = {name: value.to(index.device) for name, value in self._kept.items()}
        return Negatives(
            kept["images"],
            kept["texts"],
            kept["index"][:, None] == index[rows][None, :],
            index[:, None] == kept["text_index"][None, :],
        )

    def add(self, images: Tensor, texts: Tensor, index: Tensor, rows: Tensor) -> None:
        """Keeps a batch's vectors and forgets the oldest.

        Args:
            images: (B, E) unit vectors.
            texts: (M, E) unit vectors.
            index: (B,) int64, which images of the data set they are.
            rows: (M,) int64, the image in the batch that each text belongs to.
        """
        room = {"images": self.capacity, "index": self.capacity}
        room |= dict.fromkeys(("texts", "text_index"), self.capacity * len(rows) // len(index))
        new = {"images": images.detach(), "texts": texts.detach(), "index": index, "text_index": index[rows]}
        self._kept = {
            name: torch.cat([self._kept[name].to(value.device), value] if self._kept else [value])[-room[name] :]
            for name, value in new.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what is kept."""
        return dict(self._kept)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what ``state_dict`` gave."""
        self._kept = dict(state) if self.capacity else {}


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
