"""How things are measured: in turn, by medians, and what the machine itself can do."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from mm.errors import MMError
from mm.models.precision import Precision, prepare

T = TypeVar("T")
K = TypeVar("K")
READ = 1 << 28
"""Bytes that are read to measure the bandwidth: far more than any cache holds."""
SIDE = 1536
"""Rows and columns of the matrices that are multiplied to measure the rate."""
TRIES, ENOUGH = 10, 1.0
"""How often the machine is measured, and after how many seconds that is enough."""
PEAK = "VmHWM:"


def in_turn(works: Mapping[K, Callable[[], T]], repeats: int, tick: Callable[[int], None]) -> dict[K, list[T]]:
    """Does several works in turn, so that what slows the machine down for a while slows all of them.

    Args:
        works: name to what is done.
        repeats: how many rounds.
        tick: called with 1 after each work.

    Returns:
        For each name what the work gave in each round.
    """
    results: dict[K, list[T]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            results[name].append(work())
            tick(1)
    return results


def median(values: Sequence[float]) -> float:
    """Gives the value in the middle."""
    return statistics.median(values)


def least_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Gives the shortest time of several that a work took, which the machine can do it in."""
    taken: list[float] = []
    while len(taken) < TRIES and sum(taken) < ENOUGH:
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def read_bandwidth(device: torch.device) -> float:
    """Measures the bytes per second that are read from memory, by the quicker of two ways to pass over many."""
    side = int((READ // 4) ** 0.5)
    matrix, vector = torch.ones(side, side, device=device), torch.ones(side, device=device)
    return matrix.nbytes / min(least_seconds(work, device) for work in (lambda: matrix @ vector, matrix.max))


@torch.inference_mode()
def multiply_rate(precision: Precision, device: torch.device) -> float:
    """Measures the operations per second of a linear map that is prepared for a precision, as a model's are."""
    layer = nn.Sequential(nn.Linear(SIDE, SIDE, device=device))
    prepare(layer, precision)
    halved = device.type == "cuda" and precision == "bfloat16"
    x = torch.rand(SIDE, SIDE, device=device).to(torch.bfloat16 if halved else torch.float32)
    return 2 * SIDE**3 / least_seconds(lambda: layer(x), device)


def run_child(module: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Runs a module in a process of its own.

    Args:
        module: its name.
        arguments: its arguments.
        variables: environment variables that differ from this process's.

    Returns:
        The last line that it printed.

    Raises:
        MMError: it failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        raise MMError(f"{module} {' '.join(arguments)}: failed ({lines[-1] if lines else done.returncode})")
    return done.stdout.splitlines()[-1]


def peak_of_child(module: str, arguments: Sequence[str]) -> int | None:
    """Runs a module in a process of its own.

    Args:
        module: its name; it prints the most memory in bytes that it used, as the last line.
        arguments: its arguments.

    Returns:
        What it printed; None where it couldn't tell.

    Raises:
        MMError: it failed.
    """
    printed = run_child(module, arguments)
    return int(printed) if printed.isdigit() else None


def own_peak(device: torch.device, status: Path = Path("/proc/self/status")) -> int | None:
    """Gives the most memory in bytes that this process used: the device's on a GPU, else resident in main memory.

    Args:
        device: where the work was done.
        status: what Linux says about the process.

    Returns:
        The bytes; None where the system doesn't tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not status.is_file():
        return None
    found = [line.split() for line in status.read_text(encoding="ascii", errors="replace").splitlines()]
    return next((1024 * int(words[1]) for words in found if words and words[0] == PEAK), None)
