"""From what loading took to figures, and from figures to tables and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mm.bench.load import Loaded, Speed
from mm.bench.load_data import Collection
from mm.bench.load_sides import OWN, OWN_DEFAULT
from mm.bench.measure import median
from mm.bench.plot import HEIGHT, WIDTH, require_matplotlib
from mm.bench.report import MIB, Table
from mm.data.parallel import usable_cpus

OWN_SIDES = (OWN, OWN_DEFAULT)
START_STEPS = ("import", "setup", "first batch")


def figures(found: Loaded) -> dict[str, Any]:
    """Gives everything that was found as plain data."""
    return {
        "processors": usable_cpus(),
        "repeats": found.plan.repeats,
        "collections": [_collection(one) for one in found.collections],
        "speeds": _speeds(found),
        "stages": [
            {"images": images, "side": side, "stage": stage, "ms": ms, "share": ms / sum(each.values())}
            for (images, side), each in found.stages.items()
            for stage, ms in each.items()
        ],
        "memory": [max((size for size in seen if size), default=None) for seen in found.memory],
        "starts": [{"start": name, "shards": found.plan.many, **each} for name, each in found.starts.items()],
    }


def _collection(one: Collection) -> dict[str, Any]:
    files = list((one.folder / "all").iterdir())
    size = sum(file.stat().st_size for file in files) / len(files)
    return {"images": one.name, "count": one.images, "shards": len(one.shards), "bytes": size, "batch": one.batch_size}


def _speeds(found: Loaded) -> list[dict[str, Any]]:
    rows = []
    for (images, workers, side), runs in found.speeds.items():
        speeds = [run.images for run in runs]
        row: dict[str, Any] = {"images": images, "workers": workers, "side": side, "per_second": median(speeds)}
        row |= {"least": min(speeds), "most": max(speeds), "processor": _processor(runs)}
        if side not in OWN_SIDES:
            own = found.speeds[images, workers, OWN]
            row["ratio"] = median([run.images for run in own]) / row["per_second"]
            if row["processor"]:
                row["processor_ratio"] = row["processor"] / (_processor(own) or row["processor"])
        rows.append(row)
    return rows


def _processor(runs: Sequence[Speed]) -> float | None:
    """Gives the median of the milliseconds on processors."""
    known = [run.processor for run in runs if run.processor is not None]
    return median(known) if known else None


def tables(found: dict[str, Any]) -> list[Table]:
    """Makes tables of what ``figures`` gave."""
    return [
        Table(
            "The images",
            ("images", "number", "shards", "size of a file", "batch"),
            [
                (row["images"], row["count"], row["shards"], f"{row['bytes'] / 1000:.1f} kB", row["batch"])
                for row in found["collections"]
            ],
        ),
        Table(
            f"From shards to batches, {found['processors']} processor cores: medians of {found['repeats']}",
            ("images", "workers", "side", "images/s", "from", "to", "mm / side", "CPU ms/image", "side / mm"),
            [_speed_cells(row) for row in found["speeds"]],
        ),
        Table(
            "Time for each image by stage, in one thread",
            ("images", "side", "stage", "ms", "share"),
            [
                (row["images"], row["side"], row["stage"], f"{row['ms']:.3f}", f"{row['share']:.0%}")
                for row in found["stages"]
            ],
        ),
        Table(
            "Memory of mm with its workers: the most in each epoch",
            ("epoch", "memory"),
            [(n, None if size is None else f"{size / MIB:.0f} MiB") for n, size in enumerate(found["memory"], 1)],
        ),
        Table(
            "From start to the first batch of mm, in seconds",
            ("start", "shards", "import", "setup", "first batch", "whole process"),
            [
                (row["start"], row["shards"], *(f"{row[name]:.2f}" for name in START_STEPS), f"{row['process']:.2f}")
                for row in found["starts"]
            ],
        ),
    ]


def _speed_cells(row: dict[str, Any]) -> tuple[object, ...]:
    ratio, cost = (f"{row[name]:.2f}x" if name in row else None for name in ("ratio", "processor_ratio"))
    speeds = [f"{row[name]:.1f}" for name in ("per_second", "least", "most")]
    processor = None if row["processor"] is None else f"{row['processor']:.2f}"
    return (row["images"], row["workers"], row["side"], *speeds, ratio, processor, cost)


def draw(found: dict[str, Any]) -> bytes:
    """Draws what ``figures`` gave: speeds and stages; gives a PNG file.

    Raises:
        UsageError: matplotlib is missing.
    """
    pyplot = require_matplotlib()
    names = [row["images"] for row in found["collections"]]
    figure, axes = pyplot.subplots(2, len(names), figsize=(WIDTH, 2 * HEIGHT), layout="constrained", squeeze=False)
    for column, name in enumerate(names):
        _draw_speeds(axes[0][column], name, [row for row in found["speeds"] if row["images"] == name])
        _draw_stages(axes[1][column], name, [row for row in found["stages"] if row["images"] == name])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
    return file.getvalue()


def _draw_speeds(axes: Any, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Draws a bar for each side and number of workers."""
    sides, workers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("side", "workers"))
    width = 0.8 / len(workers)
    for number, count in enumerate(workers):
        mine = [row for row in rows if row["workers"] == count]
        places = [place + number * width for place in range(len(mine))]
        speeds = [row["per_second"] for row in mine]
        errors = [[row["per_second"] - row["least"] for row in mine], [row["most"] - row["per_second"] for row in mine]]
        axes.bar(places, speeds, width, yerr=errors, label=f"{count} worker{'s' if count > 1 else ''}")
    axes.set(xticks=range(len(sides)), ylabel="images per second", title=name)
    axes.set_xticklabels(sides)
    axes.legend()


def _draw_stages(axes: Any, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the stages of each side above each other."""
    sides, kinds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("side", "stage"))
    below = dict.fromkeys(sides, 0.0)
    for kind in kinds:
        mine = {row["side"]: row["ms"] for row in rows if row["stage"] == kind}
        axes.bar(list(mine), list(mine.values()), 0.5, bottom=[below[side] for side in mine], label=kind)
        below |= {side: below[side] + ms for side, ms in mine.items()}
    axes.set(ylabel="ms for each image", title=f"{name}: stages")
    axes.legend()
