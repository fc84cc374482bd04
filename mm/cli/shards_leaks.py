"""``mm shards check --leaks``: finds images of a test split that the training split holds too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mm.cli import common
from mm.data.counting import counter

if TYPE_CHECKING:
    from mm.data.reports.leaks import Fingerprints


def report_leaks(train: str, test: str, html: Path | None, max_pixels: int, *, as_json: bool) -> int:
    """Compares two splits, and prints the pairs of images that resemble each other.

    Args:
        train: a folder of shards, or a shard.
        test: another.
        html: file for a page that shows the pairs; None for none.
        max_pixels: the most pixels an image may have.
        as_json: whether one JSON object is printed instead of tables.

    Returns:
        The exit status: 1 where a pair was found, or an image couldn't be read.
    """
    from mm.data.reports.leaks import find_leaks
    from mm.progress import progress

    if html is not None:
        common.check_writable(html)
    known, probed = _fingerprints(train, max_pixels), _fingerprints(test, max_pixels)
    with progress("Compare", "images") as update:
        leaks = find_leaks(known, probed, counter(update, len(probed)))
    if html is not None:
        from mm.data.reports.leaks_page import leaks_page
        from mm.files import write_whole

        write_whole(html, leaks_page(f"{train} and {test}", leaks).encode())
    rejections = known.rejections + probed.rejections
    figures = {"train": len(known), "test": len(probed), "leaks": len(leaks), "unreadable": len(rejections)}
    if as_json:
        common.print_json(figures | {"pairs": [leak.document() for leak in leaks]})
    else:
        common.print_figures(f"{train} and {test}", figures)
        if leaks:
            rows = [tuple(leak.document().values()) for leak in leaks]
            common.print_table("Leaks", ("train", "test", "kind", "distance", "correlation", "others"), rows)
    for rejection in rejections:
        print(rejection.detail, file=sys.stderr)
    return 1 if leaks or rejections else 0


def _fingerprints(path: str, max_pixels: int) -> Fingerprints:
    from mm.data.reports.leaks import fingerprint_shards
    from mm.data.sources import count_samples, find_shards
    from mm.progress import progress

    shards, _ = find_shards(path)
    with progress(f"Read {Path(path).name}") as update:
        return fingerprint_shards([shard for shard, _ in shards], counter(update, count_samples(shards)), max_pixels)
