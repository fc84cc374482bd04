from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm.data.parallel import map_in_processes, process_count, usable_cpus
from mm.errors import DataError, ShardError


def double(number: int) -> tuple[int, int]:
    time.sleep(0.05 * (number == 0))  # the first is the last to be ready
    return 2 * number, os.getpid()


def fail_at_two(number: int) -> int:
    if number == 2:
        raise ShardError(f"number {number} is bad", "bad", 512)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_keep_their_order() -> None:
    results = list(map_in_processes(double, range(8), 2))
    assert [number for number, _ in results] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert os.getpid() not in {process for _, process in results}


def test_one_worker_or_item_needs_no_process() -> None:
    for items, workers in ((range(3), 1), (range(1), 4)):
        assert {process for _, process in map_in_processes(double, items, workers)} == {os.getpid()}
    assert list(map_in_processes(double, [])) == []


def test_an_error_comes_in_its_place() -> None:
    results = map_in_processes(fail_at_two, range(4), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ShardError, match="number 2 is bad") as caught:
        next(results)
    assert (caught.value.reason, caught.value.offset) == ("bad", 512)


def test_a_killed_process_is_an_error() -> None:
    with pytest.raises(DataError, match="was killed"):
        list(map_in_processes(die, range(4), 2))


def test_processes_start_only_where_there_is_much_to_read(tmp_path: Path) -> None:
    paths = [tmp_path / "a.tar", tmp_path / "b.tar", tmp_path / "missing.tar"]
    for path in paths[:2]:
        path.write_bytes(b"")
    assert process_count(paths) == 1
    os.truncate(paths[0], 1 << 30)  # takes no space
    assert process_count(paths) == usable_cpus() >= 1


def test_a_script_is_not_run_again(tmp_path: Path) -> None:
    """As it would be where processes are spawned and nothing guards its main part."""
    script = tmp_path / "script.py"
    script.write_text(
        "from mm.data.parallel import map_in_processes\nprint('once', sorted(map_in_processes(abs, [-1, -2, -3], 2)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "once [1, 2, 3]\n"
