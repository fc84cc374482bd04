"""Makes the helpers in this folder importable from every test, and gives each test process one thread.

Tests of ``tests/parity`` note how far a model's outputs are from the reference's; the summary has a line for each row.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run on all cores already, one process each

DIFFERENCE = "largest difference"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the largest difference that was seen of each row, from all test processes."""
    largest: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == DIFFERENCE:
                    row, difference = value
                    largest[row] = max(difference, largest.get(row, 0.0))
    if largest:
        terminalreporter.section("parity with reference implementations, float32")
        for row in sorted(largest):
            terminalreporter.write_line(f"{row:<28} largest difference {largest[row]:.1e}")
