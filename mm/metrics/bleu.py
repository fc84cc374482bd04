"""BLEU over a corpus of captions, as the COCO caption toolkit computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mm.metrics.ngrams import MAX_ORDER, count_ngrams

# The toolkit adds these to numerators and denominators, so that an empty candidate scores nearly 0 instead of dividing
# by 0. They are part of the published scores of very short captions.
_NUMERATOR_FLOOR = 1e-15
_DENOMINATOR_FLOOR = 1e-9


def bleu(references: Sequence[Sequence[Sequence[str]]], candidates: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus, with the closest reference length in the brevity penalty.

    Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.

    Args:
        references: for each image, the tokens of each of its reference captions (at least one).
        candidates: for each image, the tokens of its generated caption.

    Returns:
        BLEU-1, BLEU-2, BLEU-3 and BLEU-4, each in [0, 1].
    """
    matched = [0] * MAX_ORDER
    possible = [0] * MAX_ORDER
    candidate_length = reference_length = 0
    for image_references, candidate in zip(references, candidates, strict=True):
        length = len(candidate)
        candidate_length += length
        reference_length += min((abs(len(ref) - length), len(ref)) for ref in image_references)[1]
        for index, count in enumerate(_clipped_matches(image_references, candidate)):
            matched[index] += count
            possible[index] += max(0, length - index)
    ratio = (candidate_length + _NUMERATOR_FLOOR) / (reference_length + _DENOMINATOR_FLOOR)
    brevity_penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores = []
    product = 1.0
    for order, (hits, total) in enumerate(zip(matched, possible, strict=True), start=1):
        product *= (hits + _NUMERATOR_FLOOR) / (total + _DENOMINATOR_FLOOR)
        scores.append(product ** (1 / order) * brevity_penalty)
    return scores


def _clipped_matches(references: Sequence[Sequence[str]], candidate: Sequence[str]) -> list[int]:
    """Per order, the candidate's n-grams found in a reference, each at most as often as in one reference."""
    matches = []
    counted_references = [count_ngrams(tokens) for tokens in references]
    for index, counts in enumerate(count_ngrams(candidate)):
        ceiling: Counter[tuple[str, ...]] = Counter()
        for counted in counted_references:
            ceiling |= counted[index]
        matches.append((counts & ceiling).total())
    return matches
