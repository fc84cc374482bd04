from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from mm.bench.load import Loaded, Plan, Speed, make_collections, measure_speed, plan, steps
from mm.bench.load_data import Collection, make_collection
from mm.bench.load_photos import make_photos
from mm.bench.load_report import draw, figures, tables
from mm.bench.load_sides import FOLDER, OPEN_CLIP, OWN, OWN_DEFAULT, SIDES, SIZE
from mm.bench.load_stages import stages

SMALL = Plan(2, 0.1, (1,), 6, 4, (64, 48), 2, 2, 4, 3)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection("small", make_photos(6, 64, 48), tmp_path_factory.mktemp("small"), batch_size=2, shards=2)


@pytest.mark.parametrize("side", SIDES)
def test_every_side_gives_normalised_batches_for_as_long_as_asked(side: str, collection: Collection) -> None:
    batches: Any = SIDES[side](collection, 1, 20)
    with closing(batches):
        given = list(itertools.islice(batches, 9))
    assert len(given) == 9
    for batch in given:
        assert batch.shape == (2, 3, SIZE, SIZE) and batch.dtype == torch.float32
        assert -2 < batch.mean() < 2 and batch.min() < 0 < batch.max()


def test_the_speed_is_measured_when_all_workers_have_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("mm.bench.load.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("mm.bench.load.used_seconds", lambda: now[0] / 4)

    def batches() -> Iterator[torch.Tensor]:
        for seconds in (50, 70, 1, 2, 3, 100):
            now[0] += seconds
            yield torch.zeros(8)

    assert measure_speed(batches(), 2, 5.5) == Speed(24 / 6, 1000 * 1.5 / 24)
    monkeypatch.setattr("mm.bench.load.used_seconds", lambda: None)
    assert measure_speed(batches(), 0, 0.1) == Speed(8 / 50, None)


def test_stages_are_those_of_both(collection: Collection) -> None:
    threads = torch.get_num_threads()
    found = stages(collection, 4)
    assert torch.get_num_threads() == threads
    assert list(found) == [OWN, OPEN_CLIP]
    own = {"read", "decode", "resize", "colour", "collate", "captions and the rest", "transfer"}
    assert set(found[OWN]) == own and set(found[OPEN_CLIP]) == {"read", "decode", "resize", "to float", "transfer"}
    assert all(0 <= ms < 10_000 for each in found.values() for ms in each.values())


def test_plans() -> None:
    assert plan(5).workers == (1, 2) and plan(5).many == 10_000 and plan(5).large_size == (4000, 3000)
    assert plan(5, quick=True).repeats == 2 and plan(1, quick=True).repeats == 1
    assert steps(SMALL) == 2 * (2 * 1 * 4 + 1) + 3


def test_images_are_made_or_given(tmp_path: Path, collection: Collection) -> None:
    small, large = make_collections(SMALL, None, tmp_path / "a")
    assert (small.name, small.images, small.batch_size) == ("224 px", 6, 2)
    assert (large.name, large.images, large.batch_size) == ("64 x 48", 4, 2)
    given, _ = make_collections(SMALL, list(collection.sources), tmp_path / "b")
    assert given.name == collection.sources[0] and given.images == 6


@pytest.fixture
def found(collection: Collection) -> Loaded:
    """Made-up measurements."""
    loaded = Loaded(SMALL, [collection])
    for side, images, processor in ((OWN, 600.0, 2.0), (OWN_DEFAULT, 500.0, 2.5), (OPEN_CLIP, 200.0, 7.0)):
        speeds = [Speed(images + more, processor) for more in (-10, 0, 30)]
        loaded.speeds["small", 1, side] = speeds
    loaded.speeds["small", 1, FOLDER] = [Speed(300.0, None)]
    loaded.stages["small", OWN] = {"read": 1.0, "decode": 3.0}
    loaded.memory.extend([[1 << 20, 3 << 20], [2 << 20, None], [None]])
    loaded.starts["first"] = {"import": 3.0, "setup": 1.5, "first batch": 0.25, "process": 5.5}
    return loaded


def test_figures(found: Loaded) -> None:
    data = figures(found)
    own, _, peer, folder = data["speeds"]
    assert (own["per_second"], own["least"], own["most"], own["processor"]) == (600, 590, 630, 2.0)
    assert "ratio" not in own and "processor_ratio" not in own
    assert (peer["ratio"], peer["processor_ratio"]) == (3.0, 3.5)
    assert folder["ratio"] == 2.0 and folder["processor"] is None and "processor_ratio" not in folder
    assert [row["share"] for row in data["stages"]] == [0.25, 0.75]
    assert data["memory"] == [3 << 20, 2 << 20, None]
    assert data["starts"] == [
        {"start": "first", "shards": 3, "import": 3.0, "setup": 1.5, "first batch": 0.25, "process": 5.5}
    ]
    (images,) = data["collections"]
    assert (images["count"], images["shards"], images["batch"]) == (6, 2, 2) and 500 < images["bytes"] < 5000


def test_tables_and_picture(found: Loaded) -> None:
    data = figures(found)
    made = tables(data)
    assert all(len(row) == len(table.columns) for table in made for row in table.rows)
    _, speeds, stage, memory, start = made
    assert speeds.rows[2] == ("small", 1, OPEN_CLIP, "200.0", "190.0", "230.0", "3.00x", "7.00", "3.50x")
    assert speeds.rows[0][6:] == (None, "2.00", None) and speeds.rows[3][6:] == ("2.00x", None, None)
    assert stage.rows[1] == ("small", OWN, "decode", "3.000", "75%")
    assert [row[1] for row in memory.rows] == ["3 MiB", "2 MiB", None]
    assert start.rows == [("first", 3, "3.00", "1.50", "0.25", "5.50")]
    assert draw(data).startswith(b"\x89PNG")
