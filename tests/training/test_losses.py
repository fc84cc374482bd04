from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mm.training.losses import (
    caption_loss,
    contrastive_loss,
    hard_negatives,
    matching_loss,
    similarities,
)

OWNER = torch.tensor([0, 2, 1, 0, 3, 0, 2, 4])  # the image of each of eight texts
SAME = torch.arange(5)[:, None] == OWNER[None, :]


def vectors(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(size, 6, generator=generator), dim=1) for size in sizes]


def by_pairs(images: torch.Tensor, texts: torch.Tensor, same: torch.Tensor, scale: float) -> float:
    """Every pair on its own: against all texts of other images, and all images that the text isn't of."""
    sums, pairs = 0.0, 0
    for i in range(len(images)):
        for j in range(len(texts)):
            if not same[i, j]:
                continue
            own = math.exp(scale * float(images[i] @ texts[j]))
            texts_against = [texts[k] for k in range(len(texts)) if not same[i, k]]
            images_against = [images[k] for k in range(len(images)) if not same[k, j]]
            for_texts = sum(math.exp(scale * float(images[i] @ text)) for text in texts_against)
            for_images = sum(math.exp(scale * float(image @ texts[j])) for image in images_against)
            sums -= math.log(own / (own + for_texts)) + math.log(own / (own + for_images))
            pairs += 1
    return sums / pairs / 2


@pytest.mark.parametrize("scale", [1.0, 14.0])
def test_contrastive_loss_is_the_formula(scale: float) -> None:
    images, texts = vectors(5, 8)
    found = contrastive_loss(images, texts, SAME, torch.tensor(scale))
    assert float(found) == pytest.approx(by_pairs(images, texts, SAME, scale), rel=1e-5)


def test_a_batch_of_one_image_has_nothing_to_learn_and_no_nan() -> None:
    images, texts = vectors(1, 3)
    images.requires_grad_()
    texts.requires_grad_()
    loss = contrastive_loss(images, texts, torch.ones(1, 3, dtype=torch.bool), torch.tensor(14.0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert images.grad.isfinite().all() and not images.grad.any() and not texts.grad.any()


def test_hard_negatives_never_match_and_favour_the_similar() -> None:
    torch.manual_seed(0)
    owner = torch.tensor([0, 0, 1, 2, 3])
    same = owner[:, None] == owner[None, :]
    similarity = torch.randn(5, 5)
    similarity[0] = torch.tensor([9.0, 9.0, 0.0, 4.0, 0.0])
    drawn = []
    for _ in range(400):
        image, text = hard_negatives(similarity, same)
        assert not same[image, torch.arange(5)].any() and not same[torch.arange(5), text].any()
        drawn.append(int(text[0]))
    expected = torch.tensor([0.0, 4.0, 0.0]).softmax(0).tolist()
    for choice, share in zip((2, 3, 4), expected, strict=True):
        assert drawn.count(choice) / 400 == pytest.approx(share, abs=0.08)


def test_without_a_wrong_one_a_pair_draws_its_own() -> None:
    same = torch.ones(3, 3, dtype=torch.bool)
    image, text = hard_negatives(torch.randn(3, 3), same)
    assert image.tolist() == text.tolist() == [0, 1, 2]


def test_matching_loss_is_cross_entropy() -> None:
    logits = torch.tensor([[1.0, 3.0], [0.5, -1.0]])
    expected = [math.log(1 + math.exp(1 - 3)), math.log(1 + math.exp(-1 - 0.5))]
    found = matching_loss(logits, torch.tensor([True, False]))
    assert float(found) == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_caption_loss_is_smoothed_cross_entropy(smoothing: float) -> None:
    logits, targets = vectors(4)[0] * 3, torch.tensor([1, 0, 5, 2])
    log_probabilities = logits.log_softmax(1)
    own = -log_probabilities[torch.arange(4), targets]
    spread = -log_probabilities.mean(1)
    expected = ((1 - smoothing) * own + smoothing * spread).mean()
    torch.testing.assert_close(caption_loss(logits, targets, smoothing), expected)


def test_similarities_stay_exact_under_autocast() -> None:
    images, texts = vectors(5, 8)
    scale = torch.tensor(30.0)
    expected = 30 * images @ texts.T
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarities(images, texts, scale), expected)
        loss = contrastive_loss(images, texts, SAME, scale)
    assert torch.equal(loss, contrastive_loss(images, texts, SAME, scale))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_hard_negatives_of_similarities_that_are_not_finite(value: float) -> None:
    """Which a loss then tells of; the draw itself doesn't fail."""
    same = torch.eye(4, dtype=torch.bool)
    image, text = hard_negatives(torch.full((4, 4), value), same)
    assert not (image == torch.arange(4)).any() and not (text == torch.arange(4)).any()
