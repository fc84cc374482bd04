"""Ranks and recall against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm.errors import DataError
from mm.metrics.retrieval import ranks, retrieval_metrics, summarize_ranks


def loop_ranks(similarity: list[list[float]], owners: list[int]) -> tuple[list[int], list[int]]:
    """The definition, one comparison at a time."""
    images, texts = range(len(similarity)), range(len(owners))
    text_to_image = []
    for t in texts:
        right = similarity[owners[t]][t]
        text_to_image.append(1 + sum(similarity[i][t] >= right for i in images if i != owners[t]))
    image_to_text = []
    for i in images:
        best = max(similarity[i][t] for t in texts if owners[t] == i)
        image_to_text.append(1 + sum(similarity[i][t] >= best for t in texts if owners[t] != i))
    return text_to_image, image_to_text


@pytest.mark.parametrize(("images", "texts"), [(1, 1), (1, 4), (2, 2), (7, 20), (30, 150), (600, 900)])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_ranks_equal_a_loop(images: int, texts: int, levels: int) -> None:
    rng = np.random.default_rng(images * levels)
    similarity = rng.integers(0, levels, (images, texts)) / 7
    owners = np.concatenate([np.arange(images), rng.integers(0, images, texts - images)])
    rng.shuffle(owners)

    found = ranks(similarity, owners)

    expected = loop_ranks(similarity.tolist(), owners.tolist())
    assert (found.text_to_image.tolist(), found.image_to_text.tolist()) == expected


def test_metrics_of_known_ranks() -> None:
    # Image 0 owns texts 0 and 1, image 1 owns text 2, image 2 owns text 3.
    similarity = np.array([[0.9, 0.1, 0.5, 0.5], [0.2, 0.3, 0.5, 0.9], [0.1, 0.2, 0.6, 0.8]])
    found = ranks(similarity, np.array([0, 0, 1, 2]))
    assert found.text_to_image.tolist() == [1, 3, 3, 2]
    assert found.image_to_text.tolist() == [1, 2, 1]
    summary = summarize_ranks(found)
    assert summary["text to image R@1"] == 25
    assert summary["text to image R@5"] == summary["image to text R@10"] == 100
    assert summary["text to image median rank"] == 2.5
    assert summary["image to text R@1"] == pytest.approx(200 / 3)
    assert summary["image to text median rank"] == 1


def test_vectors_equal_their_similarity() -> None:
    rng = np.random.default_rng(0)
    images, texts, owners = rng.normal(size=(40, 8)), rng.normal(size=(200, 8)), np.arange(200) // 5
    assert retrieval_metrics(images, texts, owners) == summarize_ranks(ranks(images @ texts.T, owners))
    assert list(retrieval_metrics(images, texts, owners)) == [
        f"{direction} {figure}"
        for direction in ("text to image", "image to text")
        for figure in ("R@1", "R@5", "R@10", "median rank")
    ]


def test_perfect_vectors() -> None:
    images = np.eye(30)
    metrics = retrieval_metrics(images, np.repeat(images, 5, axis=0), np.arange(150) // 5)
    assert {value for key, value in metrics.items() if "R@" in key} == {100}
    assert metrics["text to image median rank"] == metrics["image to text median rank"] == 1


@pytest.mark.parametrize("width", [1, 7, 64, 256, 333])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_constant_vectors_find_nothing(width: int, dtype: type) -> None:
    vector = np.random.default_rng(width).normal(size=width).astype(dtype)
    metrics = retrieval_metrics(np.tile(vector, (103, 1)), np.tile(vector, (515, 1)), np.arange(515) // 5)
    assert {value for key, value in metrics.items() if "R@" in key} == {0}
    assert metrics["text to image median rank"] == 103
    assert metrics["image to text median rank"] == 511


def test_zero_vectors_find_nothing() -> None:
    metrics = retrieval_metrics(np.zeros((20, 4)), np.zeros((100, 4)), np.arange(100) // 5)
    assert metrics["text to image R@10"] == metrics["image to text R@10"] == 0


def test_other_own_texts_do_not_count_against_an_image() -> None:
    texts = np.array([[1.0, 0.0]] * 12 + [[0.0, 1.0]])
    metrics = retrieval_metrics(np.eye(2), texts, np.array([0] * 12 + [1]))
    assert metrics["image to text R@1"] == 100


def test_tolerance_makes_near_scores_ties() -> None:
    similarity = np.array([[0.5, 0.4], [0.49, 0.6]])
    owners = np.array([0, 1])
    assert ranks(similarity, owners).text_to_image.tolist() == [1, 1]
    assert ranks(similarity, owners, tolerance=0.02).text_to_image.tolist() == [2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_equal_arrays(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.randn(12, 6).to(dtype).requires_grad_()
    texts = torch.randn(60, 6).to(dtype)
    owners = torch.arange(60) // 5
    expected = retrieval_metrics(images.detach().double().numpy(), texts.double().numpy(), owners.numpy())
    assert retrieval_metrics(images, texts, owners) == expected
    assert retrieval_metrics(images, texts, owners.int()) == expected
    assert retrieval_metrics(images.tolist(), texts.tolist(), owners.tolist()) == expected


@pytest.mark.parametrize(
    ("images", "texts", "owners", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), [0, 1], "one model"),
        (np.ones((0, 3)), np.ones((2, 3)), [0, 1], "image_vectors must be a matrix"),
        (np.ones((2, 3)), np.ones((0, 3)), [], "text_vectors must be a matrix"),
        (np.ones(3), np.ones((2, 3)), [0, 1], "image_vectors must be a matrix"),
        (np.ones((2, 3)), np.ones((2, 3)), [0], "text_image must be 2 whole numbers"),
        (np.ones((2, 3)), np.ones((2, 3)), [0.0, 1.0], "text_image must be 2 whole numbers"),
        (np.ones((2, 3)), np.ones((2, 3)), [0, 2], "text_image names image 2"),
        (np.ones((2, 3)), np.ones((2, 3)), [-1, 1], "text_image names image -1"),
        (np.ones((3, 3)), np.ones((2, 3)), [0, 2], "1 of 3 images have no text .first: 1."),
        (np.array([[1, 1], [np.nan, 1]]), np.ones((2, 2)), [0, 1], "image_vectors.*1 of 2 rows .first: 1."),
        (np.ones((2, 2)), np.array([[np.inf, 1], [1, 1]]), [0, 1], "text_vectors.*1 of 2 rows .first: 0."),
        (np.full((2, 2), 1e300), np.full((2, 2), 1e300), [0, 1], "similarity"),
    ],
)
def test_wrong_input_is_named(images: np.ndarray, texts: np.ndarray, owners: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message), np.errstate(over="ignore", invalid="ignore"):
        retrieval_metrics(images, texts, np.array(owners))
