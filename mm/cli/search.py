"""``mm search``: searches a gallery in words or by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm.cli import common
from mm.data.images import read_image
from mm.errors import UsageError
from mm.search import Gallery, Hit
from mm.search.report import results_page, write_page


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm search``."""
    parser = common.Parser(prog=program, description="Search a gallery in words, by image, or both.")
    parser.add_argument("query", nargs="?", default=None, type=str | None, help="what the image shows, in words")
    parser.add_argument("--gallery", type=Path, required=True, help="the gallery's folder, made by 'mm index'")
    parser.add_argument("-k", type=int, default=10, help="how many results")
    parser.add_argument("--image", type=Path | None, default=None, help="find images like this one")
    parser.add_argument("--rerank", type=int, default=0, help="sort this many anew by how well the words match them")
    parser.add_argument("--html", type=Path | None, default=None, help="write the results as a page here")
    common.add_model(parser, None)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.query is None and options.image is None:
        raise UsageError("nothing to search for; give words, --image, or both")
    if options.html is not None:
        common.check_writable(options.html)
    image = read_image(options.image) if options.image is not None else None

    opened = Gallery.open(options.gallery, options.model, device=options.device, precision=options.precision)
    with opened as gallery:
        hits = gallery.search(options.query, options.k, image, options.rerank)
    query = " + ".join(str(part) for part in (options.query, options.image) if part is not None)
    if options.json:
        results = [
            {
                "rank": hit.rank,
                "score": round(hit.score, 4),
                "image": hit.uri,
                "sha256": hit.sha256,
                "captions": hit.captions,
            }
            | ({"match": None if hit.match is None else round(hit.match, 4)} if options.rerank else {})
            for hit in hits
        ]
        common.print_json({"query": query, "results": results})
    else:
        _print_hits(query, hits, matches=bool(options.rerank))
    if options.html is not None:
        write_page(options.html, results_page("Search", query, hits))
        if not options.json:
            print(options.html)
    return 0


def _print_hits(query: str, hits: Sequence[Hit], *, matches: bool) -> None:
    """Prints results as a table, with a column of match probabilities where the search was re-ranked."""
    columns = ("rank", "score", *(["match"] if matches else []), "image")
    rows = [(hit.rank, f"{hit.score:.3f}", *([hit.match] if matches else []), hit.uri) for hit in hits]
    common.print_table(query, columns, rows)
