"""CIDEr-D over a corpus of captions, as the COCO caption toolkit computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mm.metrics.ngrams import MAX_ORDER, count_ngrams

# Standard deviation of the length penalty, in tokens.
_SIGMA = 6.0
_SCALE = 10.0

NGram = tuple[str, ...]


class _Vector(NamedTuple):
    """A caption as tf-idf weights: one mapping and one norm per n-gram order, and the length for the penalty."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    length: int


def cider_d(references: Sequence[Sequence[Sequence[str]]], candidates: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D, with document frequencies from the given references.

    Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015.

    Args:
        references: for each image, the tokens of each of its reference captions (at least one).
        candidates: for each image, the tokens of its generated caption.

    Returns:
        The mean over images, in [0, 10]. It is 0 for a single image, whose n-grams are all in every document.
    """
    counted = [[count_ngrams(tokens) for tokens in image_references] for image_references in references]
    document_frequency: Counter[NGram] = Counter()
    for image_counts in counted:
        document_frequency.update({ngram for counts in image_counts for order in counts for ngram in order})
    log_images = math.log(len(references))
    idf = {ngram: log_images - math.log(frequency) for ngram, frequency in document_frequency.items()}

    total = 0.0
    for image_counts, candidate in zip(counted, candidates, strict=True):
        vector = _vector(count_ngrams(candidate), idf, log_images)
        similarities = [_similarity(vector, _vector(counts, idf, log_images)) for counts in image_counts]
        total += _SCALE * sum(similarities) / len(similarities)
    return total / len(references)


def _vector(counts: list[Counter[NGram]], idf: dict[NGram, float], unseen_idf: float) -> _Vector:
    weights = [{ngram: count * idf.get(ngram, unseen_idf) for ngram, count in order.items()} for order in counts]
    norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in weights]
    # The toolkit measures length in bigrams, which decides the penalty of captions of one token or none.
    return _Vector(weights, norms, counts[1].total())


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Mean over orders of the clipped cosine, damped by the difference in length."""
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * _SIGMA**2))
    cosines = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if our_norm and their_norm:
            overlap = sum(
                min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in ours.items() if ngram in theirs
            )
            cosines += overlap / (our_norm * their_norm)
    return penalty * cosines / MAX_ORDER
