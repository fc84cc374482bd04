"""What benchmarks have in common: how often they measure, and how they show what they found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import Namespace

from mm.cli import common
from mm.errors import OptionError
from mm.files import write_whole


def parse(parser: common.Parser, arguments: Sequence[str], repeated: str, plotted: str, quick: str) -> Namespace:
    """Adds ``--repeats``, ``--quick``, ``--plot`` and ``--json`` to a benchmark's own options, and parses.

    Args:
        parser: with the benchmark's own options.
        arguments: of the command.
        repeated: what is timed ``--repeats`` times.
        plotted: what ``--plot`` draws.
        quick: what ``--quick`` does.

    Raises:
        OptionError: nothing is to be measured.
        OutputError: the drawing can't be written.
    """
    parser.add_argument("--repeats", type=int, default=5, help=f"how often each {repeated} is timed; the medians count")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--plot", type=Path | None, default=None, help=f"draw {plotted} into this .png")
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, not {options.repeats}")
    if options.plot is not None:
        common.check_writable(options.plot)
    return options


def measure_and_show(
    options: Namespace, measure: Callable[[], Any], draw: Callable[[Any], bytes], report: ModuleType
) -> int:
    """Measures, and shows what was found: drawn if that was asked for, and as tables or JSON.

    Args:
        options: what ``parse`` gave.
        measure: runs the benchmark.
        draw: makes a picture of figures.
        report: has ``figures`` of what was measured, and ``tables`` of figures.

    Returns:
        The exit status.
    """
    from mm.bench.plot import require_matplotlib

    if options.plot is not None:
        require_matplotlib()
    found = report.figures(measure())
    if options.plot is not None:
        write_whole(options.plot, draw(found))
    if options.json:
        common.print_json(found)
        return 0
    for table in report.tables(found):
        common.print_table(table.title, table.columns, table.rows)
    return 0
