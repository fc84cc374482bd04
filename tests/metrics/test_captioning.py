"""BLEU, ROUGE-L and CIDEr-D equal those of the COCO caption toolkit on the same tokens."""

from __future__ import annotations

import random
import time

import pytest

from mm.errors import DataError, OptionError, UsageError
from mm.metrics.captioning import score_captions
from mm.metrics.rouge import rouge_l
from mm.metrics.tokenize import tokenize

WORDS = ["a", "dog", "cat", "man", "woman", "runs", "sits", "on", "in", "the", "red", "blue", "grass", "water", "ball"]
KEYS = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]

References = dict[str, list[str]]
Candidates = dict[str, str]


def corpus(
    seed: int, images: int, lengths: tuple[int, int], words: list[str] = WORDS, separator: str = " "
) -> tuple[References, Candidates]:
    """Random captions; candidates are partly copies and partly cut or repeated references."""
    rng = random.Random(seed)

    def caption() -> list[str]:
        return rng.choices(words, k=rng.randint(*lengths))

    references: References = {}
    candidates: Candidates = {}
    for i in range(images):
        own = [caption() for _ in range(rng.randint(1, 6))]
        own.append(own[0])
        candidate = rng.choice([own[0], own[-1][:2], own[0] * 2, caption(), caption(), []])
        references[f"image {i}"] = [separator.join(tokens) for tokens in own]
        candidates[f"image {i}"] = separator.join(candidate)
    return references, candidates


def toolkit_scores(references: References, candidates: Candidates, language: str) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = {key: [" ".join(tokenize(text, language)) for text in texts] for key, texts in references.items()}
    answers = {key: [" ".join(tokenize(text, language))] for key, text in candidates.items()}
    scores = [
        *Bleu(4).compute_score(truth, answers, verbose=0)[0],
        Rouge().compute_score(truth, answers)[0],
        Cider().compute_score(truth, answers)[0],
    ]
    return dict(zip(KEYS, map(float, scores), strict=True))


@pytest.mark.parametrize(
    ("images", "lengths"),
    [(200, (4, 14)), (60, (0, 3)), (60, (1, 1)), (40, (10, 40)), (2, (3, 8)), (1, (3, 8)), (300, (0, 20))],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_coco_toolkit(seed: int, images: int, lengths: tuple[int, int]) -> None:
    references, candidates = corpus(seed, images, lengths)
    references["full"], candidates["full"] = ["the red ball in the water"], "the red ball in the grass"
    scores = score_captions(references, candidates)
    assert list(scores) == KEYS
    assert scores == pytest.approx(toolkit_scores(references, candidates, "en"), abs=1e-9)


def test_equals_the_coco_toolkit_on_untokenized_text() -> None:
    references = {
        "1": ["A man's dog, in a T-shirt, isn't here.", "A dog (black) runs!", "A dog (black) runs!"],
        "2": ["Two kids at 5 p.m. in the U.S.", "Children play.", ""],
        "3": ["...", "A red-and-white bus & a car"],
    }
    candidates = {"1": "A dog isn't here", "2": "two children at the U.S. in the afternoon", "3": "."}
    expected = toolkit_scores(references, candidates, "en")
    assert score_captions(references, candidates) == pytest.approx(expected, abs=1e-9)
    assert expected["CIDEr"] > 0.1


def test_equals_the_coco_toolkit_in_chinese() -> None:
    references, candidates = corpus(7, 80, (0, 12), words=list("一只狗在草地上奔跑两个男人红色，。"), separator="")
    scores = score_captions(references, candidates, "zh")
    assert scores == pytest.approx(toolkit_scores(references, candidates, "zh"), abs=1e-9)
    assert scores["BLEU-2"] > 0.01, "characters would not match if captions were not split"


def test_perfect_captions_score_the_most() -> None:
    references = {str(i): [f"{word} picture {i} {word}"] for i, word in enumerate(WORDS)}
    scores = score_captions(references, {key: texts[0] for key, texts in references.items()})
    assert scores == pytest.approx(dict.fromkeys(KEYS, 1.0) | {"CIDEr": 10.0})


def test_empty_candidates_score_nothing() -> None:
    references, candidates = corpus(3, 20, (3, 9))
    scores = score_captions(references, dict.fromkeys(candidates, ""))
    assert scores == pytest.approx(dict.fromkeys(KEYS, 0.0), abs=1e-9)


def test_order_of_candidates_does_not_matter() -> None:
    references, candidates = corpus(4, 30, (3, 9))
    backwards = dict(reversed(candidates.items()))
    assert score_captions(references, backwards) == score_captions(references, candidates)


def test_captions_may_come_in_a_tuple() -> None:
    assert score_captions({"a": ("a dog", "a cat")}, {"a": "a dog"})["BLEU-2"] == pytest.approx(1)


def test_longest_common_subsequence_against_a_table() -> None:
    rng = random.Random(0)
    for _ in range(200):
        first, second = (rng.choices("abcd", k=rng.randint(1, 90)) for _ in range(2))
        row = [0] * (len(second) + 1)
        for x in first:
            row = row[:1] + [
                max(up_left + 1 if x == y else 0, up, 0) for up_left, up, y in zip(row, row[1:], second, strict=False)
            ]
            for j in range(1, len(row)):
                row[j] = max(row[j], row[j - 1])
        precision, recall = row[-1] / len(first), row[-1] / len(second)
        expected = 2.44 * precision * recall / (recall + 1.44 * precision) if row[-1] else 0.0
        assert rouge_l([[second]], [first]) == pytest.approx(expected)


def test_a_thousand_images_take_seconds() -> None:
    rng = random.Random(1)
    words = [f"word{i}" for i in range(2000)]
    references = {str(i): [" ".join(rng.choices(words, k=11)) for _ in range(5)] for i in range(1000)}
    candidates = {key: texts[2] for key, texts in references.items()}
    start = time.process_time()
    score_captions(references, candidates)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({}, {}, "no reference captions"),
        ({"a": ["x"], "b": ["y"]}, {"a": "x"}, "1 without a candidate .first: 'b'"),
        ({"a": ["x"]}, {"a": "x", "c": "y"}, "1 without references .first: 'c'"),
        ({"a": ["x"]}, {"c": "y"}, "'a'.*'c'"),
        ({"a": []}, {"a": "x"}, "references of image 'a'"),
        ({"a": "a dog"}, {"a": "x"}, "references of image 'a'"),
        ({"a": ["x", None]}, {"a": "x"}, "references of image 'a'"),
        ({"a": ["x"]}, {"a": None}, "candidate of image 'a'"),
        ({"a": ["x"]}, {"a": ["x"]}, "candidate of image 'a'"),
    ],
)
def test_wrong_captions_are_named(references: References, candidates: Candidates, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        score_captions(references, candidates)
    assert "\n" not in str(caught.value)
    assert caught.value.reason != "unusable"


def test_wrong_options_are_found_before_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    references, candidates = {"a": ["x"]}, {"a": "x"}
    with pytest.raises(OptionError, match="'fr'"):
        score_captions(references, candidates, "fr")
    with pytest.raises(OptionError, match=r"'ROUGE'.*METEOR, SPICE"):
        score_captions(references, candidates, java=["ROUGE"])
    with pytest.raises(OptionError, match=r"METEOR.*'zh'"):
        score_captions(references, candidates, "zh", java=["METEOR"])
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("mm.metrics.captioning.tokenize", lambda *_: pytest.fail("scored before checking"))
    with pytest.raises(UsageError, match="needs Java"):
        score_captions(references, candidates, java=["METEOR"])
