"""``mm bench load``: images per second from shards to augmented batches, beside open_clip and torchvision."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from mm.cli import common
from mm.cli.bench_output import measure_and_show, parse
from mm.data.counting import counter

if TYPE_CHECKING:
    from mm.bench.load import Loaded


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm bench load``."""
    options = _options(arguments, program)

    from mm.bench import load_report

    with tempfile.TemporaryDirectory(prefix="mm-bench-") as folder:
        return measure_and_show(options, lambda: _measure(options, Path(folder)), load_report.draw, load_report)


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
    quick = "few and small images, at most two repeats: a first look"
    return parse(parser, arguments, "side", "speeds and stages", quick)


def _measure(options: Namespace, folder: Path) -> Loaded:
    from mm.bench.load import compare, make_collections, plan, steps
    from mm.progress import progress

    planned = plan(options.repeats, quick=options.quick)
    collections = make_collections(planned, options.data, folder)
    with progress("Benchmark", "runs") as update:
        return compare(planned, collections, folder, counter(update, steps(planned)))
