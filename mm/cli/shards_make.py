"""``mm shards make``: writes WebDataset shards and their manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm.cli import common
from mm.data.making import samples_from
from mm.data.manifest import Manifest
from mm.data.samples import Tally
from mm.data.shards import write_shards
from mm.errors import DataError, ShardError


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm shards make``."""
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
