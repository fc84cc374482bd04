"""``mm shards stats``: says what shards hold, and draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.cli import common
from mm.data.counting import counter
from mm.data.sources import count_samples, find_shards

if TYPE_CHECKING:
    from mm.data.reports.leaks import Leak
    from mm.data.shards.finding import Shard

FREQUENT = 12


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm shards stats``."""
    parser = common.Parser(prog=program, description="Count what shards hold; exit 1 if a sample can't be used.")
    parser.add_argument("shards", nargs="+", help="folders of shards, and shards")
    parser.add_argument("--html", type=Path | None, default=None, help="file for a page with charts and some samples")
    parser.add_argument(
        "--near_duplicates", action="store_true", help="look for images that resemble another one, which decodes them"
    )
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.html is not None:
        common.check_writable(options.html)
    shards, problems = find_shards(options.shards)

    from mm.data.reports.stats import count_shards, figures
    from mm.progress import progress

    total = count_samples(shards)
    with progress("Count", "samples") as update:
        counted = count_shards(
            shards, counter(update, total), examples=options.html is not None, max_pixels=options.max_pixels
        )
    for problem in problems:
        counted.problems[problem.reason] += problem.samples
    near = _near_duplicates(shards, total, options.max_pixels) if options.near_duplicates else None
    found = figures(counted)
    if near is not None:
        found["images"]["near_duplicates"] = [leak.document() for leak in near]
    if options.html is not None:
        from mm.data.reports.stats_page import stats_page
        from mm.files import write_whole

        write_whole(options.html, stats_page(", ".join(options.shards), counted, near).encode())
    if options.json:
        common.print_json(found)
    else:
        _print(options.shards, found)
    return 1 if counted.problems else 0


def _near_duplicates(shards: Sequence[Shard], total: int | None, max_pixels: int) -> list[Leak]:
    from mm.data.reports.leaks import find_repeats, fingerprint_shards
    from mm.progress import progress

    with progress("Decode", "images") as update:
        prints = fingerprint_shards([path for path, _ in shards], counter(update, total), max_pixels)
    with progress("Compare", "images") as update:
        return find_repeats(prints, counter(update, len(prints)))


def _print(names: Sequence[str], found: dict[str, Any]) -> None:
    images = found["images"]
    rows = {name: found[name] for name in ("shards", "samples", "rejected", "bytes", "uncaptioned")}
    rows["formats"] = _listed(images["formats"])
    rows["sizes"] = _listed(images["sizes"])
    rows["repeated image files"] = images["duplicates"]
    if "near_duplicates" in images:
        rows["near-duplicates"] = len(images["near_duplicates"])
    common.print_figures(", ".join(names), rows)
    if images["kibibytes"] is not None:
        ranges = {
            "width in pixels": images["width"],
            "height in pixels": images["height"],
            "file in KiB": images["kibibytes"],
            **{f"words of a caption ({code})": its["length"] for code, its in found["captions"].items()},
        }
        columns = ("", "least", "median", "mean", "most")
        common.print_table("Ranges", columns, [(name, *its.values()) for name, its in ranges.items()])
    if found["captions"]:
        headings = ("language", "samples", "captions", "repeated", "words", "vocabulary", "once", "most frequent words")
        keys = ("samples", "captions", "duplicates", "words", "vocabulary", "once")
        lines = [
            (code, *(its[key] for key in keys), " ".join(list(its["frequent"])[:FREQUENT]))
            for code, its in found["captions"].items()
        ]
        common.print_table("Captions", headings, lines)
    if found["problems"]:
        common.print_table("Rejected", ("reason", "samples"), list(found["problems"].items()), errors=True)


def _listed(counts: dict[str, int], most: int = 4) -> str:
    shown = [f"{name}: {count:,}" for name, count in list(counts.items())[:most]]
    return "; ".join([*shown, *(["..."] if len(counts) > most else [])])
