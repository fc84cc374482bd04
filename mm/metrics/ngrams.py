"""Counting the n-grams of a caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4


def count_ngrams(tokens: Sequence[str], max_order: int = MAX_ORDER) -> list[Counter[tuple[str, ...]]]:
    """How often each n-gram occurs, one counter per order.

    Args:
        tokens: the caption's tokens.
        max_order: the longest n-gram to count, in tokens.

    Returns:
        Counters for orders 1 to ``max_order``, in that order.
    """
    return [
        Counter(zip(*(tokens[start:] for start in range(order)), strict=False)) for order in range(1, max_order + 1)
    ]
