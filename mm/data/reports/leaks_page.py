"""Pages that show near-duplicate images side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mm.data.reports.leaks import NEAR, Leak
from mm.data.reports.page import frame, picture, section, small_jpeg
from mm.data.samples import Sample
from mm.data.shards.reading import read_shard
from mm.errors import ImageError

PAIRS = 200
"""The most pairs that a page shows."""


def leaks_page(title: str, leaks: Sequence[Leak]) -> str:
    """One HTML page that needs nothing else, with the images of each leak side by side.

    Args:
        title: what was compared.
        leaks: what was found.
    """
    return frame(title, [pairs_section("Training split on the left, test split on the right", leaks)])


def pairs_section(title: str, leaks: Sequence[Leak]) -> str:
    """A heading with pairs of images below it.

    Args:
        title: the heading.
        leaks: the pairs; the first 200 are shown.
    """
    shown = leaks[:PAIRS]
    pictures = _pictures(sample for leak in shown for sample in (leak.train, leak.test))
    text = f"{len(leaks):,} {'pair' if len(leaks) == 1 else 'pairs'}"
    if len(shown) < len(leaks):
        text += f", the first {len(shown)} of them below"
    return section(title, (_pair(leak, pictures) for leak in shown), "grid pairs", text)


def _pair(leak: Leak, pictures: dict[tuple[Path, str], bytes]) -> str:
    what = leak.kind
    if leak.kind != NEAR or leak.distance or leak.correlation < 1:
        what += f", {leak.distance} of 64 bits differ, correlation {leak.correlation:.3f}"
    if leak.others:
        what += f"; {leak.others} more like it"
    both = "".join(picture(pictures.get(sample, b""), sample[1]) for sample in (leak.train, leak.test))
    names = "".join(f"<div>{escape(f'{path.name}/{key}')}</div>" for path, key in (leak.train, leak.test))
    return (
        f'<figure><div class="pair">{both}</div><figcaption>{names}<small>{escape(what)}</small></figcaption></figure>'
    )


def _pictures(samples: Iterable[tuple[Path, str]]) -> dict[tuple[Path, str], bytes]:
    """The images of these samples, scaled down."""
    wanted: dict[Path, set[str]] = defaultdict(set)
    for path, key in samples:
        wanted[path].add(key)
    found = {}
    for path, keys in wanted.items():
        for item in read_shard(path):
            if isinstance(item, Sample) and item.key in keys:
                try:
                    found[path, item.key] = small_jpeg(item.image, item.source)
                except ImageError:  # its header was enough for a thumbnail, but not for this
                    found[path, item.key] = b""
    return found
