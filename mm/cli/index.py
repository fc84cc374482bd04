"""``mm index``: puts photos, folders and shards into a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm.cli import common
from mm.data.sources import count_images, iter_images, resolve_sources
from mm.search import Gallery
from mm.search.indexing import index_samples


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm index``."""
    parser = common.Parser(
        prog=program,
        description="Put photos, folders and shards into a gallery, with the captions in shards and beside photos "
        "(name.txt, name.json); only what is new or changed is embedded.",
    )
    parser.add_argument("paths", nargs="+", help="image files, folders, and .tar shards")
    parser.add_argument("--gallery", type=Path, required=True, help="the gallery's folder; made if missing")
    common.add_model(parser, None)
    parser.add_argument("--batch_size", type=int, default=32, help="images embedded and recorded together")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)

    sources = resolve_sources(options.paths)

    from mm.progress import progress

    with (
        Gallery.open(
            options.gallery, options.model, create=True, device=options.device, precision=options.precision
        ) as gallery,
        progress("Index") as update,
    ):
        total = count_images(sources)
        tally = index_samples(
            gallery,
            iter_images(sources, captions=True),
            options.batch_size,
            options.max_pixels,
            lambda so_far: update(so_far.seen, total),
        )
        size = len(gallery)
    figures = {
        "added": tally.report.added,
        "updated": tally.report.updated,
        "unchanged": tally.report.unchanged,
        "rejected": tally.rejected,
        "images in the gallery": size,
    }
    return common.report(str(options.gallery), figures, tally, as_json=options.json)
