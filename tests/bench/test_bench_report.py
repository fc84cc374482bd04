from __future__ import annotations

import pytest
import torch

from mm.bench.checkpoint import SMALL
from mm.bench.comparison import OWN, PEER, Plan, Side, Timing, Timings
from mm.bench.limits import Machine, decoding_limit, vision_limit
from mm.bench.peers import Captioned, Case
from mm.bench.report import figures, same_captions, tables

CASE = Case(2, 3, 4)
PEER_SIDE, EXACT, INT8 = Side(PEER, "float32"), Side(OWN, "float32"), Side(OWN, "int8")


@pytest.fixture
def found() -> Timings:
    """Made-up timings of one case."""
    machine = Machine(2e9, {"float32": 1e9, "int8": 4e9})
    timings = Timings(Plan(SMALL, (CASE,), 5, (1, 2), (2, 4), (CASE,), torch.device("cpu")), machine)
    timings.cases[CASE] = {
        PEER_SIDE: Timing([[1, 2], [3, 4]], 1.0, 3.0, 4.0),
        EXACT: Timing([[1, 2], [3, 4]], 0.5, 1.5, 2.0),
        INT8: Timing([[1, 2], [3, 5]], 0.25, 0.75, 1.0),
    }
    timings.curves["images"] = {EXACT: [Timing([], 0.1, 0.2, 0.3), Timing([], 0.2, 0.3, 0.5)]}
    timings.memory[CASE] = {PEER_SIDE: 4 << 20, EXACT: 2 << 20, INT8: None}
    return timings


def test_a_timing_takes_medians() -> None:
    runs = [Captioned([[1]], vision, decoding) for vision, decoding in ((1.0, 9.0), (2.0, 2.0), (7.0, 1.0))]
    assert Timing.of(runs) == Timing([[1]], 2.0, 2.0, 8.0)


def test_figures(found: Timings) -> None:
    data = figures(found)
    peer, exact, int8 = data["cases"]
    assert "ratio" not in peer and peer["tokens_per_second"] == 2.0
    assert (exact["ratio"], exact["same"], exact["captions"]) == (2.0, 2, 2)
    assert (int8["ratio"], int8["same"], int8["tokens_per_second"]) == (4.0, 1, 8.0)
    limit = data["limits"][1]
    assert limit["vision_times"] == pytest.approx(0.5 / vision_limit(SMALL, 2, "float32", found.machine))
    assert limit["decoding_times"] == pytest.approx(1.5 / decoding_limit(SMALL, CASE, "float32", found.machine))
    assert data["limits"][2]["vision_limit"] == pytest.approx(limit["vision_limit"] / 4)
    assert [row.get("ratio") for row in data["memory"]] == [None, 0.5, None]
    (curve,) = data["curves"]
    assert (curve["by"], curve["counts"], curve["seconds"]) == ("images", [1, 2], [0.3, 0.5])
    assert (curve["constant"], curve["each"]) == (pytest.approx(0.1), pytest.approx(0.2))


def test_tables(found: Timings) -> None:
    found.skipped["CoCa"] = "doesn't run"
    made = {table.title: table for table in tables(figures(found))}
    assert all(len(row) == len(table.columns) for table in made.values() for row in table.rows)
    times = made["BLIP captioning: medians of 5"]
    assert times.rows[1] == ("batch 2, beam 3", "mm float32", "2.000", "2.00x", "0.500", "1.500", "4.0", "2 of 2")
    assert times.rows[0][3] is None
    memory = made["Peak memory of a process that captions once"]
    assert [row[2:] for row in memory.rows] == [("4 MiB", None), ("2 MiB", "0.50x"), (None, None)]
    curve = made["mm float32 by images: 100.0 ms + 200.0 ms for each image, at most 0.0% off"]
    assert curve.rows == [(1, "0.300", "300.0 ms"), (2, "0.500", "250.0 ms")]
    assert made["Left out"].rows == [("CoCa", "doesn't run")]


def test_what_was_not_measured_has_no_table(found: Timings) -> None:
    found.memory.clear()
    titles = " ".join(table.title for table in tables(figures(found)))
    assert "Peak memory" not in titles and "Left out" not in titles and "CoCa" not in titles


def test_captions_are_compared_over_the_length_that_both_have() -> None:
    assert same_captions([[1, 2, 3], [4, 5, 6]], [[1, 2], [4, 6]]) == 1
