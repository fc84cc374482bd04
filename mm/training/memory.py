"""How the C library hands out large blocks of memory."""

from __future__ import annotations

import ctypes
import ctypes.util

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_large_allocations() -> None:
    """Lets glibc keep freed memory of up to 1 GiB instead of returning each large block to the system.

    Activations of a training step on a CPU are many large blocks. Fetched from the system anew in each step, every
    page of them faults once, which can take as long as the arithmetic. Does nothing on other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for parameter, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 1 << 26)):
        mallopt(parameter, value)
