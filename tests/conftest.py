"""Makes the helpers in this folder importable from every test, and gives each test process one thread.

No test depends on chance, or on the tests that ran before it in the same process: random numbers begin anew for each
test and fixture, and hypothesis tries the same examples each time (others with ``--hypothesis-profile default``).

What mm remembers of shards goes into a folder of the test's own, and not into the user's.

Tests of ``tests/parity`` note how far a model's outputs are from the reference's; the summary has a line for each row.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run on all cores already, one process each
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

DIFFERENCE = "largest difference"


def seed(name: str = "") -> None:
    """Begins the random numbers of everything that is imported anew.

    Args:
        name: others for each name.
    """
    number = zlib.crc32(name.encode())
    random.seed(number)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(number)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Makes what a fixture draws the same whichever test needs it first."""
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Makes what a test draws the same whatever ran before it."""
    seed()


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
