"""``mm shards check``: says everything that is wrong with shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm.cli import common
from mm.data.shards import check_shards


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm shards check``."""
    parser = common.Parser(prog=program, description="Read shards from start to end; say everything that is wrong.")
    parser.add_argument("shards", type=Path, help="a folder of shards, or one shard")
    parser.add_argument("--captions", action="store_true", help="samples must have a caption")
    parser.add_argument("--decode", action="store_true", help="decode every image, not only its header")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)

    from mm.progress import progress

    with progress("Check", "samples") as update:
        report = check_shards(
            options.shards,
            progress=common.counter(update, None),
            captions=options.captions,
            decode=options.decode,
            max_pixels=options.max_pixels,
        )
    figures = {"shards": report.shards, "samples": report.samples, "problems": len(report.problems)}
    return common.report(str(options.shards), figures, report.tally, as_json=options.json)
