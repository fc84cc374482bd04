"""``mm bench load``: images per second from shards to augmented batches, beside open_clip and torchvision."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from mm.cli import common
from mm.errors import OptionError
from mm.files import write_whole

if TYPE_CHECKING:
    from mm.bench.load import Loaded


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm bench load``."""
    options = _options(arguments, program)

    from mm.bench.load_report import draw, figures, tables
    from mm.bench.plot import require_matplotlib

    if options.plot is not None:
        require_matplotlib()
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as folder:
        found = figures(_measure(options, Path(folder)))
    if options.plot is not None:
        write_whole(options.plot, draw(found))
    if options.json:
        common.print_json(found)
        return 0
    for table in tables(found):
        common.print_table(table.title, table.columns, table.rows)
    return 0


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(
        prog=program,
        description="Time loading for training with mm, verification on, and with its peers, in turn: open_clip's way "
        "through webdataset, and torchvision's ImageFolder. All show nine tenths of an image or more, at 224 x 224 "
        "pixels, and end with float batches; a row of its own shows mm with the augmentation that it has by default. "
        "Also: the time of each stage, memory over three epochs, and the time to the first batch of 10,000 shards.",
    )
    parser.add_argument(
        "--data", nargs="+", default=None, help="folders, shards or patterns of shards, instead of small images made"
    )
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is timed; the medians count")
    parser.add_argument("--quick", action="store_true", help="few and small images, at most two repeats: a first look")
    parser.add_argument("--plot", type=Path | None, default=None, help="draw speeds and stages into this .png")
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, not {options.repeats}")
    if options.plot is not None:
        common.check_writable(options.plot)
    return options


def _measure(options: Namespace, folder: Path) -> Loaded:
    from mm.bench.load import compare, make_collections, plan, steps
    from mm.progress import progress

    planned = plan(options.repeats, quick=options.quick)
    collections = make_collections(planned, options.data, folder)
    with progress("Benchmark", "runs") as update:
        return compare(planned, collections, folder, common.counter(update, steps(planned)))
