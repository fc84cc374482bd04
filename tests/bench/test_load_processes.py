from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mm.bench.load_processes import used_memory, used_seconds

CLOCK = 100


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process, a worker, and one that has just ended."""
    monkeypatch.setattr(
        "mm.bench.load_processes.multiprocessing.active_children",
        lambda: [SimpleNamespace(pid=11), SimpleNamespace(pid=12)],
    )
    monkeypatch.setattr("mm.bench.load_processes.os.sysconf", lambda name: CLOCK)
    for name, memory, ticks in (("self", 300, 250), ("11", 20, 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "smaps_rollup").write_text(f"7f-7f rollup\nRss: 900 kB\nPss: {memory} kB\nPss_Dirty: 1 kB\n")
        numbers = " ".join(str(number) for number in range(3, 14))
        (tmp_path / name / "stat").write_text(f"{name} (a (b) c) {numbers} {ticks} {2 * ticks} 999 999\n")
    return tmp_path


def test_memory_and_seconds_of_all_processes_add_up(processes: Path) -> None:
    assert used_memory(processes) == 320 * 1024
    assert used_seconds(processes) == 3 * 300 / CLOCK


@pytest.mark.parametrize("used", [used_memory, used_seconds])
def test_where_the_system_does_not_tell(used: Callable[[Path], object], tmp_path: Path) -> None:
    assert used(tmp_path) is None


def test_this_process_uses_both() -> None:
    before = used_seconds()
    if before is None:
        assert used_memory() is None
        return
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after, memory = used_seconds(), used_memory()
    assert after is not None and 0.05 < after - before < 5
    assert memory is not None and memory > 10 << 20
