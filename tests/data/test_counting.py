from __future__ import annotations

from mm.data.counting import add_counts, counter


def test_a_count_that_is_not_known_makes_the_sum_unknown() -> None:
    assert (add_counts([]), add_counts([2, 0, 3]), add_counts([2, None, 3])) == (0, 5, None)


def test_more_is_added_to_what_was_done() -> None:
    shown: list[tuple[int, int | None]] = []
    add = counter(lambda done, total: shown.append((done, total)), 5)
    add(2)
    add(0)
    add(3)
    assert shown == [(2, 5), (2, 5), (5, 5)]
