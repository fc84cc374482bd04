"""Work done ahead in threads, while what came before is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def map_ahead(
    function: Callable[[Given], Made], items: Iterable[Given], *, workers: int = 2, ahead: int = 8
) -> Iterator[Made]:
    """Applies a function to items in threads, ahead of whoever takes the results, which keep the items' order.

    Threads are enough for what the function does outside Python: reading files, decoding and scaling images. Items are
    taken in the caller's thread, only as many as are worked on.

    Args:
        function: must not depend on the order of its calls.
        items: what it is applied to.
        workers: how many threads.
        ahead: the most results that wait to be taken, those in work included.

    Yields:
        What the function gives for each item; an exception of it is raised in the item's place.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
