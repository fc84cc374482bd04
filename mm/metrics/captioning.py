"""Caption metrics over a set of images: BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D, and on request METEOR and SPICE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mm.errors import DataError
from mm.metrics.bleu import bleu
from mm.metrics.cider import cider_d
from mm.metrics.java import JAVA_METRICS, require_java_metrics
from mm.metrics.rouge import rouge_l
from mm.metrics.tokenize import tokenize


def score_captions(
    references: Mapping[str, Sequence[str]],
    candidates: Mapping[str, str],
    language: str = "en",
    *,
    java: Sequence[str] = (),
) -> dict[str, float]:
    """Score one generated caption per image against its reference captions, as the COCO caption toolkit does.

    Args:
        references: image key to its reference captions, untokenized, at least one each.
        candidates: image key to its generated caption, untokenized; the same keys. An empty caption scores 0.
        language: how to tokenize: "en" or "zh".
        java: further metrics that run in Java, for English only: any of "METEOR" and "SPICE".

    Returns:
        "BLEU-1" to "BLEU-4" and "ROUGE-L" in [0, 1], "CIDEr" (CIDEr-D) in [0, 10], and the metrics named in ``java``.

    Raises:
        DataError: if nothing is given, the keys differ, an image has no reference, or a caption isn't text.
        OptionError: if the language or a metric is unknown, or a metric doesn't fit the language.
        UsageError: if Java, or what a metric in ``java`` needs beside it, is missing; before anything is scored.
    """
    _check(references, candidates)
    require_java_metrics(java, language)
    keys = list(references)
    reference_tokens = [[tokenize(text, language) for text in references[key]] for key in keys]
    candidate_tokens = [tokenize(candidates[key], language) for key in keys]
    scores = {f"BLEU-{n}": score for n, score in enumerate(bleu(reference_tokens, candidate_tokens), start=1)}
    scores["ROUGE-L"] = rouge_l(reference_tokens, candidate_tokens)
    scores["CIDEr"] = cider_d(reference_tokens, candidate_tokens)
    for name in java:
        scores[name] = JAVA_METRICS[name](references, candidates)
    return scores


def _check(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> None:
    if not references:
        raise DataError("no reference captions to score against: give at least one image", reason="no captions")
    if references.keys() != candidates.keys():
        unscored = [key for key in references if key not in candidates]
        unknown = [key for key in candidates if key not in references]
        parts = [f"{len(unscored)} without a candidate (first: {unscored[0]!r})"] if unscored else []
        parts += [f"{len(unknown)} without references (first: {unknown[0]!r})"] if unknown else []
        raise DataError(
            f"references and candidates name different images: {', '.join(parts)}; give both for each image",
            reason="keys differ",
        )
    for key, captions in references.items():
        if isinstance(captions, str) or not captions or not all(isinstance(text, str) for text in captions):
            raise DataError(
                f"references of image {key!r} must be a non-empty list of texts, got {captions!r:.80}",
                reason="no references",
            )
        if not isinstance(candidates[key], str):
            raise DataError(
                f"candidate of image {key!r} must be one text, got {candidates[key]!r:.80}", reason="not a caption"
            )
