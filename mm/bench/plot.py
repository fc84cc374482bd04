"""A picture of what was measured: the time of each case, and both curves."""

from __future__ import annotations

import io
from typing import Any

from mm.errors import UsageError

WIDTH, HEIGHT = 15, 5
"""Inches."""


def require_matplotlib() -> Any:
    """Imports matplotlib, which draws to files only.

    Raises:
        UsageError: it is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("matplotlib isn't installed: --plot draws with it; pip install 'mm[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(found: dict[str, Any]) -> bytes:
    """Draws what ``figures`` of ``mm.bench.report`` gave; gives a PNG file.

    Raises:
        UsageError: matplotlib is missing.
    """
    pyplot = require_matplotlib()
    figure, (times, *curves) = pyplot.subplots(1, 3, figsize=(WIDTH, HEIGHT), layout="constrained")
    _draw_times(times, found["cases"])
    for axes, name in zip(curves, ("images", "tokens"), strict=True):
        for row in (row for row in found["curves"] if row["by"] == name):
            (points,) = axes.plot(row["counts"], row["seconds"], "o", label=row["side"])
            line = [row["constant"] + row["each"] * count for count in row["counts"]]
            axes.plot(row["counts"], line, color=points.get_color())
        axes.set(xlabel=name, ylabel="seconds", title=f"cost by number of {name}", ylim=(0, None), xlim=(0, None))
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
    return file.getvalue()


def _draw_times(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draws a bar for each side of each case: vision, and decoding on top of it."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    sides = list(dict.fromkeys(row["side"] for row in rows))
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        mine = {row["case"]: row for row in rows if row["side"] == side}
        places = [place + (number - (len(sides) - 1) / 2) * width for place in range(len(cases))]
        vision, decoding = ([mine[case][part] for case in cases] for part in ("vision", "decoding"))
        bars = axes.bar(places, vision, width, label=side)
        axes.bar(places, decoding, width, bottom=vision, color=bars[0].get_facecolor(), alpha=0.6)
    axes.set(xticks=range(len(cases)), ylabel="seconds", title="vision, and decoding above it")
    axes.set_xticklabels(cases, rotation=20)
    axes.legend()
