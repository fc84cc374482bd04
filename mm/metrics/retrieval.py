"""Retrieval metrics: recall at k and median rank, text to image and image to text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mm.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECALL_AT = (1, 5, 10)
# Two scores this close, as a share of the largest possible one, are a tie: the same vectors multiplied in another order
# of summation differ by less, other vectors by more.
_TIE = 1e-12
_ROWS_AT_ONCE = 256


class Ranks(NamedTuple):
    """Ranks of the right items, counted from 1 (best)."""

    text_to_image: NDArray[np.int64]
    """(T,) for each text, the rank of its image among all images."""
    image_to_text: NDArray[np.int64]
    """(B,) for each image, the rank of its best own text among its best own text and all other images' texts."""


def retrieval_metrics(image_vectors: Any, text_vectors: Any, text_image: Any) -> dict[str, float]:
    """Recall at 1, 5 and 10 and median rank in both directions, by dot product.

    Ties count against the right item, so that vectors which are all the same score no better than chance at its worst.

    Args:
        image_vectors: (B, E) array or tensor, one vector per image.
        text_vectors: (T, E) array or tensor, one vector per text; usually several texts per image.
        text_image: (T,) int, for each text the index of its image, in [0, B). Every image has at least one text.

    Returns:
        "text to image R@1", "... R@5", "... R@10" in percent of the texts, "text to image median rank" (1 is best),
        and the same for "image to text", where an image's rank is that of its best own text.

    Raises:
        DataError: if shapes don't fit, a value isn't finite, an index is out of range, or an image has no text.
    """
    images, texts = _as_floats(image_vectors, "image_vectors"), _as_floats(text_vectors, "text_vectors")
    if images.shape[1] != texts.shape[1]:
        raise DataError(
            f"image_vectors {images.shape} and text_vectors {texts.shape} differ in length: embed both with one model",
            reason="shapes differ",
        )
    largest = np.linalg.norm(images, axis=1).max(initial=0.0) * np.linalg.norm(texts, axis=1).max(initial=0.0)
    return summarize_ranks(ranks(images @ texts.T, text_image, tolerance=_TIE * float(largest)))


def ranks(similarity: Any, text_image: Any, tolerance: float = 0.0) -> Ranks:
    """Rank of each text's image and of each image's best text, given how similar they are.

    A rank is 1 plus the number of wrong items that score at least as high as the right one: ties count against it. An
    image's other own texts don't count against it.

    Args:
        similarity: (B, T) array or tensor, image by text, higher is more similar.
        text_image: (T,) int, for each text the index of its image, in [0, B). Every image has at least one text.
        tolerance: a wrong item that scores lower by no more than this is a tie too.

    Returns:
        The ranks in both directions.

    Raises:
        DataError: if shapes don't fit, a value isn't finite, an index is out of range, or an image has no text.
    """
    scores = _as_floats(similarity, "similarity")
    owners = _as_indices(text_image, *scores.shape)
    image_count, text_count = scores.shape
    own = scores[owners, np.arange(text_count)]
    best_own = np.full(image_count, -np.inf)
    np.maximum.at(best_own, owners, own)

    against_image = np.zeros(text_count, dtype=np.int64)
    against_text = np.zeros(image_count, dtype=np.int64)
    for start in range(0, image_count, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, image_count))
        wrong = owners[None, :] != rows[:, None]
        against_image += (wrong & (scores[rows] >= own[None, :] - tolerance)).sum(axis=0)
        against_text[rows] = (wrong & (scores[rows] >= best_own[rows, None] - tolerance)).sum(axis=1)
    return Ranks(text_to_image=1 + against_image, image_to_text=1 + against_text)


def summarize_ranks(found: Ranks) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, and median rank, of ranks in both directions.

    Args:
        found: ranks counted from 1.

    Returns:
        The figures, with the keys of ``retrieval_metrics``.
    """
    summary: dict[str, float] = {}
    for direction, values in (("text to image", found.text_to_image), ("image to text", found.image_to_text)):
        for k in RECALL_AT:
            summary[f"{direction} R@{k}"] = 100 * float(np.mean(values <= k))
        summary[f"{direction} median rank"] = float(np.median(values))
    return summary


def _as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of an array, a list, or a tensor on any device and of any type."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():  # NumPy has no bfloat16
            values = values.double()
        values = values.numpy()
    return np.asarray(values)


def _as_floats(values: Any, name: str) -> NDArray[np.float64]:
    array = _as_array(values)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{name} must be a matrix that isn't empty, got shape {array.shape}", reason="wrong shape")
    array = array.astype(np.float64, copy=False)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise DataError(
            f"{name} has a value that isn't finite in {bad.size} of {len(array)} rows (first: {bad[0]}): "
            "the model that made them is damaged or overflowed",
            reason="not finite",
        )
    return array


def _as_indices(text_image: Any, image_count: int, text_count: int) -> NDArray[np.int64]:
    owners = _as_array(text_image)
    if owners.shape != (text_count,) or owners.dtype.kind not in "iu":
        raise DataError(
            f"text_image must be {text_count} whole numbers, one per text, got {owners.dtype} of shape {owners.shape}",
            reason="wrong shape",
        )
    owners = owners.astype(np.int64)
    outside = owners[(owners < 0) | (owners >= image_count)]
    if outside.size:
        raise DataError(
            f"text_image names image {outside[0]}, but there are {image_count} (0 to {image_count - 1})",
            reason="index out of range",
        )
    textless = np.flatnonzero(np.bincount(owners, minlength=image_count) == 0)
    if textless.size:
        raise DataError(
            f"{textless.size} of {image_count} images have no text (first: {textless[0]}): leave those images out",
            reason="image without text",
        )
    return owners
