"""ROUGE-L over a corpus of captions, as the COCO caption toolkit computes it."""

from __future__ import annotations

from collections.abc import Sequence

# Weight of recall against precision in the F-measure; the value that the toolkit uses.
_BETA = 1.2


def rouge_l(references: Sequence[Sequence[Sequence[str]]], candidates: Sequence[Sequence[str]]) -> float:
    """Mean ROUGE-L: the F-measure of the longest common subsequence, with the best precision and the best recall.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL 2004 workshop.

    Args:
        references: for each image, the tokens of each of its reference captions (at least one).
        candidates: for each image, the tokens of its generated caption.

    Returns:
        The mean over images, in [0, 1].
    """
    scores = [
        _image_score([tokens or [""] for tokens in image_references], candidate or [""])
        for image_references, candidate in zip(references, candidates, strict=True)
    ]
    return sum(scores) / len(scores)


def _image_score(references: Sequence[Sequence[str]], candidate: Sequence[str]) -> float:
    # An empty caption counts as one empty token, in the toolkit and here.
    common = [_common_subsequence_length(reference, candidate) for reference in references]
    precision = max(common) / len(candidate)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one column of the table per step as the bits of an integer.

    Hyyrö, "Bit-Parallel LCS-length Computation Revisited", AWOCA 2004.
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        matches = row & positions.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(first) - row.bit_count()
