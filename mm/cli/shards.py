"""``mm shards``: makes WebDataset shards, or checks them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm.cli import common
from mm.data.making import samples_from
from mm.data.manifest import Manifest
from mm.data.samples import Tally
from mm.data.shards import check_shards, write_shards
from mm.errors import DataError, ShardError, UsageError

ACTIONS = ("make", "check")


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm shards make`` or ``mm shards check``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {program} make FOLDER-OR-CSV OUT | {program} check SHARDS\n\n"
            "make   write WebDataset shards and their manifest.json from a folder of images or a table\n"
            "check  read shards from start to end and say everything that is wrong with them\n\n"
            f"'{program} make --help' and '{program} check --help' explain both."
        )
        return 0 if arguments else 2
    if arguments[0] not in ACTIONS:
        raise UsageError(f"no action {arguments[0]!r}; actions are {' and '.join(ACTIONS)}")
    return (_make if arguments[0] == "make" else _check)(arguments[1:], f"{program} {arguments[0]}")


def _make(arguments: Sequence[str], program: str) -> int:
    parser = common.Parser(prog=program, description="Write WebDataset shards and their manifest.json.")
    parser.add_argument("source", type=Path, help="folder of images with .txt or .json captions; .csv or .tsv table")
    parser.add_argument("out", type=Path, help="folder for the shards; made if missing")
    parser.add_argument("--prefix", default="shard", help="how names of shards begin")
    parser.add_argument("--max_samples", type=int, default=1000, help="samples in a shard")
    parser.add_argument("--max_bytes", type=int, default=1 << 28, help="size of a shard in bytes")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)

    from mm.progress import progress

    samples, tally = samples_from(options.source, max_pixels=options.max_pixels), Tally()
    manifest, problem = Manifest([]), None
    try:
        with progress("Shards", "samples") as update:
            manifest = write_shards(
                samples,
                options.out,
                options.prefix,
                options.max_samples,
                options.max_bytes,
                progress=common.counter(update, len(samples)),
                tally=tally,
            )
    except ShardError:  # writing failed
        common.report_rejections(tally)
        raise
    except DataError as error:  # no sample was left to write
        problem = f"{program}: {error}"
    figures = {"shards": len(manifest.shards), "samples": manifest.total, "rejected": tally.rejected}
    return common.report(str(options.out), figures, tally, as_json=options.json, problem=problem)


def _check(arguments: Sequence[str], program: str) -> int:
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
