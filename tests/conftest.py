"""Makes the helpers in this folder importable from every test, and gives each test process one thread.

What mm remembers of shards goes into a folder of the test's own, and not into the user's.

Tests of ``tests/parity`` note how far a model's outputs are from the reference's; the summary has a line for each row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run on all cores already, one process each

DIFFERENCE = "largest difference"


@pytest.fixture(autouse=True, scope="session")
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests and the processes that they start keep what they remember of shards."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MM_CACHE"] = str(folder)
    return folder


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
