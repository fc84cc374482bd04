"""Counts of what is done and of what there is, for whoever shows how far something is."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def counter(update: Callable[[int, int | None], None], total: int | None) -> Callable[[int], None]:
    """Makes a function that is told how many more are done of one that is told how many are done in all.

    Args:
        update: called with how many are done, and how many there are.
        total: how many there are, or None where it isn't known.
    """
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        update(done, total)

    return add


def add_counts(counts: Iterable[int | None]) -> int | None:
    """The sum of counts, or None where one isn't known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
