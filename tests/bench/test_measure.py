from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from mm.bench.measure import in_turn, least_seconds, median, own_peak, peak_of_child
from mm.errors import MMError

CPU = torch.device("cpu")


def test_works_are_done_in_turn() -> None:
    done: list[str] = []
    ticks: list[int] = []

    def work(name: str) -> int:
        done.append(name)
        return len(done)

    results = in_turn({name: partial(work, name) for name in "abc"}, 2, ticks.append)
    assert "".join(done) == "abcabc"
    assert results == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}
    assert sum(ticks) == 6


def test_the_median_is_the_value_in_the_middle() -> None:
    assert median([9.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 100.0]) == 3.0


def test_the_shortest_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr("mm.bench.measure.time.perf_counter", lambda: next(seconds))
    monkeypatch.setattr("mm.bench.measure.TRIES", 3)
    monkeypatch.setattr("mm.bench.measure.ENOUGH", 100.0)
    assert least_seconds(lambda: None, CPU) == 2.0


def test_what_takes_long_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 5.0])
    monkeypatch.setattr("mm.bench.measure.time.perf_counter", lambda: next(seconds))
    assert least_seconds(lambda: None, CPU) == 5.0


def test_the_peak_is_what_the_system_says(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t  123 kB\nVmRSS:\t   7 kB\n")
    assert own_peak(CPU, status) == 123 * 1024
    status.write_text("Name:\tpython\n")
    assert own_peak(CPU, status) is None
    assert own_peak(CPU, tmp_path / "missing") is None


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(MMError, match=r"^mm.no_such_module a b: failed \(.*No module named"):
        peak_of_child("mm.no_such_module", ["a", "b"])
