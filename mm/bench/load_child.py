"""Processes of their own: one loads for three epochs and watches its memory, one only gets the first batch."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from mm.bench.load_processes import used_memory

BEGIN = time.perf_counter()
EPOCHS = 3
LOOKS = 8
"""How often memory is looked at in an epoch, at least where it has so many batches."""


def watch_memory(sources: list[str], batch_size: int, workers: int) -> list[list[int | None]]:
    """Loads a few epochs with mm; gives the memory at several times of each."""
    data = _open(sources, batch_size, workers)
    seen: list[list[int | None]] = []
    for _ in range(EPOCHS):
        loader = data.train_dataloader()
        every = max(1, len(loader) // LOOKS)
        seen.append([used_memory() for number, _ in enumerate(loader) if number % every == every - 1])
    return seen


def watch_start(sources: list[str], batch_size: int, workers: int) -> dict[str, float]:
    """Gets the first batch with mm; gives the seconds of each step: importing, looking through shards, loading."""
    import mm.bench.load_sides  # noqa: F401

    moments = [time.perf_counter()]
    data = _open(sources, batch_size, workers)
    moments.append(time.perf_counter())
    next(iter(data.train_dataloader()))
    moments.append(time.perf_counter())
    steps = zip(("import", "setup", "first batch"), moments, [BEGIN, *moments], strict=False)
    return {name: end - begin for name, end, begin in steps}


def _open(sources: list[str], batch_size: int, workers: int) -> Any:
    from mm.bench.load_sides import open_own

    return open_own(sources, batch_size, workers)


def main(action: str, batch_size: str, workers: str, *sources: str) -> None:
    """Does one of them, and prints what it saw as JSON."""
    work = {"memory": watch_memory, "start": watch_start}[action]
    print(json.dumps(work(list(sources), int(batch_size), int(workers))))


if __name__ == "__main__":
    main(*sys.argv[1:])
