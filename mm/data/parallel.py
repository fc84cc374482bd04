"""Work on many shards at once, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mm.errors import DataError

Given = TypeVar("Given")
Made = TypeVar("Made")

_MUCH = 1 << 26  # bytes; what is read in the time that processes take to start


def map_in_processes(
    function: Callable[[Given], Made], items: Sequence[Given], workers: int | None = None
) -> Iterator[Made]:
    """Applies a function to items in several processes.

    Args:
        function: it can be pickled, and so can what it takes and gives.
        items: what it is applied to.
        workers: how many processes, as many as this one may use CPUs if None; one, or a single item, needs none.

    Yields:
        What the function gives for each item, in the items' order; an exception of it is raised in the item's place.

    Raises:
        DataError: a process was killed.
    """
    workers = min(workers or usable_cpus(), len(items))
    if workers < 2:
        yield from map(function, items)
        return
    # Processes are spawned: forking one that has threads, as a progress bar does, can leave locks held for good.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupt)
    try:
        with _without_main_module():
            results = pool.map(function, items)
        yield from results
    except BrokenProcessPool:
        raise DataError("a process that reads shards was killed; is there enough memory?", "process killed") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keeps processes that are spawned from running the user's script again, which they have no need of."""
    main = sys.modules["__main__"]
    names = ("__file__", "__spec__")
    hidden: dict[str, Any] = {name: main.__dict__.pop(name) for name in names if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def process_count(shards: Sequence[Path]) -> int:
    """How many processes to read shards in: as many as there are CPUs, or one where there is little to read."""
    return 1 if sum(map(file_size, shards)) < _MUCH else usable_cpus()


def file_size(path: Path) -> int:
    """The size of a file in bytes; 0 where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cpus or 1


def _ignore_interrupt() -> None:
    """Leaves Ctrl-C to the process that waits for the results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
