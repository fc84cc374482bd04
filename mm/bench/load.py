"""`mm bench load`: images per second from shards to batches, of every side in turn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mm.bench.load_data import Collection, make_collection, open_collection, simulate_shards
from mm.bench.load_photos import make_photos
from mm.bench.load_processes import used_seconds
from mm.bench.load_sides import SIDES, SIZE
from mm.bench.load_stages import Stages, one_thread, stages
from mm.bench.measure import in_turn, run_child

Tick = Callable[[int], None]
CHILD = "mm.bench.load_child"
FASTEST = 4000
"""Images per second that no side reaches, which says how long an epoch must be."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        repeats: how often each side is timed; the medians count.
        seconds: how long each time.
        workers: numbers of processes that load.
        small: how many images of ``SIZE`` pixels are made where none are given.
        large: how many large images are made.
        large_size: their width and height in pixels.
        small_batch: small images in a batch.
        large_batch: large images in a batch.
        staged: the most images that each stage is timed with.
        many: the number of shards that starting is timed with.
    """

    repeats: int
    seconds: float
    workers: tuple[int, ...] = (1, 2)
    small: int = 2000
    large: int = 36
    large_size: tuple[int, int] = (4000, 3000)
    small_batch: int = 64
    large_batch: int = 4
    staged: int = 300
    many: int = 10_000


def plan(repeats: int, *, quick: bool = False) -> Plan:
    """Makes the plan; a ``quick`` one has few and small images."""
    if quick:
        return Plan(min(repeats, 2), 0.2, (1,), 24, 8, (600, 450), 4, 2, 8, 12)
    return Plan(repeats, 3.0)


class Speed(NamedTuple):
    """How quick one side was.

    Args:
        images: images per second.
        processor: milliseconds on processors for each image, of all processes together; None where the system doesn't
            tell. It hardly depends on what else the machine does meanwhile.
    """

    images: float
    processor: float | None


@dataclass(frozen=True)
class Loaded:
    """All that was measured.

    Args:
        plan: what was to be measured.
        collections: the images.
        speeds: for each collection, number of workers and side the speed, each time.
        stages: for each collection and side the milliseconds for each image, by stage.
        memory: the bytes that mm with its workers used at several times of each epoch; None where the system doesn't
            tell.
        starts: for the first start and the second the seconds of each step, with very many shards.
    """

    plan: Plan
    collections: list[Collection]
    speeds: dict[tuple[str, int, str], list[Speed]] = field(default_factory=dict)
    stages: dict[tuple[str, str], Stages] = field(default_factory=dict)
    memory: list[list[int | None]] = field(default_factory=list)
    starts: dict[str, dict[str, float]] = field(default_factory=dict)


def make_collections(plan: Plan, sources: list[str] | None, folder: Path) -> list[Collection]:
    """Makes the images, or takes those of some shards for the small ones.

    Raises:
        UsageError: a source doesn't exist.
        DataError: the shards hold too few images.
    """
    if sources:
        small = open_collection(sources, folder / "given", plan.small_batch)
    else:
        photos = make_photos(plan.small, SIZE, SIZE)
        small = make_collection(f"{SIZE} px", photos, folder / "small", plan.small_batch, 4)
    width, height = plan.large_size
    photos = make_photos(plan.large, width, height)
    large = make_collection(f"{width} x {height}", photos, folder / "large", plan.large_batch, 4)
    return [small, large]


def steps(plan: Plan) -> int:
    """Counts the works of a run, for the progress bar."""
    return 2 * (plan.repeats * len(plan.workers) * len(SIDES) + 1) + 3


def measure_speed(batches: Iterator[Tensor], workers: int, seconds: float) -> Speed:
    """Measures the speed, from when each worker has given a batch.

    Args:
        batches: what is loaded; it doesn't end before the time is over.
        workers: how many processes load.
        seconds: how long it is measured at least.
    """
    for _ in range(workers):
        next(batches)
    before, begin, images = used_seconds(), time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < seconds or not images:
        images += len(next(batches))
    after = used_seconds()
    return Speed(images / taken, None if before is None or after is None else 1000 * (after - before) / images)


def compare(plan: Plan, collections: list[Collection], folder: Path, tick: Tick) -> Loaded:
    """Measures everything.

    Args:
        plan: what.
        collections: the images; memory is watched with the first.
        folder: for what is written meanwhile; it exists.
        tick: called with 1 after each work.
    """
    found = Loaded(plan, collections)
    works = {
        (one.name, workers, side): partial(_time, one, workers, side, plan.seconds)
        for one in collections
        for workers in plan.workers
        for side in SIDES
    }
    found.speeds.update(in_turn(works, plan.repeats, tick))
    for one in collections:
        found.stages.update({(one.name, side): each for side, each in stages(one, plan.staged).items()})
        tick(1)
    first = collections[0]
    arguments = ["memory", str(first.batch_size), str(max(plan.workers)), *first.sources]
    found.memory.extend(json.loads(run_child(CHILD, arguments)))
    tick(1)
    photos = list(make_photos(2, SIZE // 4, SIZE // 4))
    many = simulate_shards(photos, folder / "many", plan.many)
    cache = {"MM_CACHE": str(folder / "cache")}  # where mm remembers what it knows of shards
    for name in ("first", "second"):
        found.starts[name] = _start(many, min(64, 2 * plan.many), max(plan.workers), cache)
        tick(1)
    return found


def _time(collection: Collection, workers: int, side: str, seconds: float) -> Speed:
    often = int(seconds * FASTEST) + collection.batch_size * (workers + 1)
    batches: Any = SIDES[side](collection, workers, often)
    with closing(batches), one_thread():
        return measure_speed(batches, workers, seconds)


def _start(folder: Path, batch_size: int, workers: int, variables: dict[str, str]) -> dict[str, float]:
    begin = time.perf_counter()
    taken: dict[str, float] = json.loads(
        run_child(CHILD, ["start", str(batch_size), str(workers), str(folder)], variables)
    )
    return taken | {"process": time.perf_counter() - begin}
