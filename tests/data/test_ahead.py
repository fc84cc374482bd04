from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mm.data.ahead import map_ahead


def test_results_keep_the_order_of_items_though_later_ones_are_ready_first() -> None:
    second_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_done.wait(10)
        if number == 1:
            second_done.set()
        return number * number

    assert list(map_ahead(work, range(50), workers=2, ahead=4)) == [number * number for number in range(50)]


def test_work_goes_on_while_results_are_used() -> None:
    started = [threading.Event() for _ in range(4)]

    def work(number: int) -> int:
        started[number].set()
        return number

    results = map_ahead(work, range(4), workers=1, ahead=3)
    assert next(results) == 0
    assert started[1].wait(10) and started[2].wait(10)
    assert list(results) == [1, 2, 3]


def test_no_more_items_are_taken_than_may_wait() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), ahead=5)
    assert next(results) == 0 and len(taken) == 5
    assert next(results) == 1 and len(taken) == 6
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 6


def test_an_error_is_raised_in_its_item_s_place() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise ValueError("the third")
        return number

    results = map_ahead(work, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_nothing_to_do() -> None:
    assert list(map_ahead(str, [])) == []
