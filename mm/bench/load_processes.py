"""What this process and its workers use: memory, and time on processors. Linux tells; elsewhere it isn't known."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

PROCESSES = Path("/proc")


def used_memory(processes: Path = PROCESSES) -> int | None:
    """Gives the memory in bytes of this process and its workers, shared pages divided among them.

    Args:
        processes: where Linux describes processes.
    """
    found = [
        1024 * int(line.split()[1])
        for text in _read(processes, "smaps_rollup")
        for line in text.splitlines()
        if line.startswith("Pss:")
    ]
    return sum(found) if found else None


def used_seconds(processes: Path = PROCESSES) -> float | None:
    """Gives the seconds that this process and its workers have spent on processors so far, in the system too.

    Args:
        processes: where Linux describes processes.
    """
    fields = [text.rpartition(")")[2].split() for text in _read(processes, "stat")]  # a name may hold anything
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK") if fields else None


def _read(processes: Path, name: str) -> Iterator[str]:
    for process in ("self", *(str(child.pid) for child in multiprocessing.active_children())):
        try:
            yield (processes / process / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has just ended
