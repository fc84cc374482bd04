"""``mm shards make``: writes WebDataset shards and their manifest."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mm.cli import common
from mm.data.making.packing import ADDED, DUPLICATE_CAPTIONS, DUPLICATES, RENAMED, UNCAPTIONED, Packing
from mm.data.making.reworking import Rework
from mm.data.making.selection import Selection
from mm.data.making.shards import Made, Reading, make_shards
from mm.data.making.splitting import ONE, Splits
from mm.data.samples import Tally
from mm.errors import DataError, ShardError

_DESCRIPTION = (
    "Write WebDataset shards and their manifest.json. A run that was killed goes on where it was when the same command "
    "is given again."
)


class _TerminatedError(BaseException):
    """The process was asked to end."""


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm shards make``."""
    options = _options(arguments, program)
    reading = Reading(options.images, options.language, options.list, tuple(options.add))
    selection = Selection(_words(options.languages), _words(options.split), options.min_side, options.max_pixels)
    rework = Rework(options.max_side, options.quality)
    splits = ONE if options.splits is None else Splits.parse(options.splits)
    packing = Packing(options.prefix, options.max_samples, options.max_bytes, options.drop_duplicates, splits)

    from mm.progress import progress

    tally, made, problem = Tally(), Made(), None
    make = partial(make_shards, options.source, options.out, reading, selection, rework, packing)
    try:
        with progress("Shards", "samples") as update, _terminable():
            made = make(tally=tally, progress=update)
    except ShardError:  # writing failed
        common.report_rejections(tally)
        raise
    except DataError as error:  # no sample was left to write
        problem = f"{program}: {error}"
    except (KeyboardInterrupt, _TerminatedError) as error:
        print(f"{program}: stopped; finished shards are kept, the same command goes on from there", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(error, _TerminatedError) else signal.SIGINT)
    figures = _figures(made, splits, tally)
    if options.json:
        common.print_json(figures | {"rejections": common.rejections_json(tally)})
    else:
        common.print_figures(str(options.out), dict(_rows(figures)))
    return common.report_rejections(tally, problem)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(prog=program, description=_DESCRIPTION)
    parser.add_argument(
        "source",
        nargs="+",
        type=Path,
        help="folders of images with .txt or .json captions; tables (CSV, TSV, JSON lines, Parquet); COCO's or "
        "Karpathy's JSON; token files of Flickr8k or Flickr30k; shards",
    )
    parser.add_argument("out", type=Path, help="folder for the shards; made if missing")
    parser.add_argument("--images", type=Path | None, default=None, help="where images lie that files name")
    parser.add_argument("--language", default="en", help="language of captions in files that don't say it")
    parser.add_argument(
        "--add", action="append", default=[], metavar="LANGUAGE=FILE", help="captions of another file for the images"
    )
    parser.add_argument("--list", type=Path | None, default=None, help="file that names the images to take, one a line")
    parser.add_argument("--split", default="", help="take samples whose metadata has this split: train,restval")
    parser.add_argument("--languages", default="", help="take samples with a caption in one of these: en,zh")
    parser.add_argument("--min_side", type=int, default=1, help="take images whose shorter side has so many pixels")
    parser.add_argument("--max_pixels", type=int | None, default=None, help="take images with at most so many pixels")
    parser.add_argument("--max_side", type=int | None, default=None, help="scale longer sides down to so many pixels")
    parser.add_argument("--quality", type=int | None, default=None, help="encode all images as JPEG of this quality")
    parser.add_argument("--drop_duplicates", action="store_true", help="drop images that occurred before, to the byte")
    parser.add_argument("--splits", type=str | None, default=None, help="deal samples out: train=0.9,val=0.1")
    parser.add_argument("--prefix", default="shard", help="how names of shards begin")
    parser.add_argument("--max_samples", type=int, default=1000, help="samples in a shard")
    parser.add_argument("--max_bytes", type=int, default=1 << 28, help="size of a shard in bytes")
    common.add_json(parser)
    return common.parse(parser, arguments)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does."""

    def terminate(*_: object) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _figures(made: Made, splits: Splits, tally: Tally) -> dict[str, Any]:
    """What was made, as JSON values; what is unusual only where it happened."""
    manifests = made.manifests
    totals = {name: manifests[name].total if name in manifests else 0 for name in splits.names}
    figures: dict[str, Any] = {
        "shards": sum(len(manifest.shards) for manifest in manifests.values()),
        "samples": sum(totals.values()),
        "splits": {name: total for name, total in totals.items() if name},
        "left out": made.left_out,
        "rejected": tally.rejected,
    }
    figures |= {name: count for name in _UNUSUAL if (count := made.counts[name])}
    missed = {"listed, not found": made.not_found, "added, not found": made.added_not_found}
    figures |= {name: count for name, count in (missed | {"rows rejected": made.rows_rejected}).items() if count}
    figures |= {"members left out": dict(made.members.most_common())} if made.members else {}
    return {name.replace(",", "").replace(" ", "_"): value for name, value in figures.items()}


_UNUSUAL = (DUPLICATES, DUPLICATE_CAPTIONS, RENAMED, UNCAPTIONED, ADDED)


def _rows(figures: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Figures for a table: those of several parts one by one."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name.replace('_', ' ')}: {part}", number) for part, number in value.items())
        else:
            yield name.replace("_", " "), value
