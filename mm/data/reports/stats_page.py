"""A page that shows what shards hold: figures, charts, and some of the samples."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from mm.data.reports.leaks import Leak
from mm.data.reports.leaks_page import pairs_section
from mm.data.reports.page import figure_row, frame, histogram, picture, ranking, section, table
from mm.data.reports.stats import CaptionStatistics, Statistics, aspect_ratios, figures, longer_sides
from mm.data.samples import Sample

LONGEST = 160
"""Characters of a caption that are shown."""
_LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese", "de": "German", "fr": "French", "es": "Spanish"}


def stats_page(title: str, counted: Statistics, near_duplicates: list[Leak] | None = None) -> str:
    """Draws statistics as one HTML page that needs nothing else: no scripts, no other files.

    Args:
        title: what was counted.
        counted: the statistics, with examples.
        near_duplicates: images that look like an earlier one; None where they weren't compared.
    """
    found = figures(counted)
    body = [figure_row(_headline(found, near_duplicates))]
    if counted.problems:
        rows = [(reason, f"{count:,}") for reason, count in counted.problems.most_common()]
        body.append(section("Problems", [table(("reason", "samples that can't be used"), rows)], ""))
    if counted.samples:
        body.append(section("Images", _image_charts(counted)))
        for language in sorted(counted.captions, key=lambda code: -counted.captions[code].lengths.total()):
            body += _captions(language, counted.captions[language], found["captions"][language])
        if near_duplicates:
            body.append(pairs_section("Images that look like another", near_duplicates))
        body.append(section("Samples", map(_example, (sample for _, sample in counted.examples)), "grid pictures"))
    return frame(title, body)


def _headline(found: dict[str, Any], near_duplicates: list[Leak] | None) -> dict[str, str]:
    captions = sum(its["captions"] for its in found["captions"].values())
    headline = {
        "samples": f"{found['samples']:,}",
        "shards": f"{found['shards']:,}",
        "size": in_units(found["bytes"]),
        "captions": f"{captions:,}",
        "samples that can't be used": f"{found['rejected']:,}",
        "samples without captions": f"{found['uncaptioned']:,}",
        "image files that repeat another": f"{found['images']['duplicates']:,}",
    }
    if near_duplicates is not None:
        headline["images that look like another"] = f"{len(near_duplicates):,}"
    return headline


def _image_charts(counted: Statistics) -> Iterable[str]:
    yield histogram("Longer side in pixels", longer_sides(counted))
    yield histogram("Width : height", aspect_ratios(counted), step=0.1)
    yield histogram("Size of the file in KiB", counted.file_sizes)
    sizes = {f"{width} x {height}": count for (width, height), count in counted.sizes.most_common(10)}
    yield ranking("Most frequent sizes", sizes)
    yield ranking("Formats", dict(counted.formats.most_common()))


def _captions(language: str, counted: CaptionStatistics, found: dict[str, Any]) -> Iterable[str]:
    unit = "characters" if language in ("zh", "ja") else "words"
    text = (
        f"{found['captions']:,} captions of {found['samples']:,} samples, {found['duplicates']:,} repeat another. "
        f"{found['words']:,} {unit}, {found['vocabulary']:,} of them different; {found['once']:,} occur once."
    )
    charts = [
        histogram(f"Length of a caption in {unit}", counted.lengths),
        histogram("Captions per sample", counted.per_sample),
        ranking(f"Most frequent {unit}", dict(counted.words.most_common(12))),
    ]
    yield section(f"Captions: {_LANGUAGES.get(language, language)}", charts, text=text)


def _example(sample: Sample) -> str:
    lines = [
        f'<div lang="{escape(language)}">{escape(_short(captions[0]))}</div>'
        for language, captions in sorted(sample.captions.items())
    ]
    return (
        f"<figure>{picture(sample.image, sample.key)}<figcaption>{''.join(lines)}"
        f"<small>{escape(sample.key)}</small></figcaption></figure>"
    )


def in_units(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _short(caption: str) -> str:
    return caption if len(caption) <= LONGEST else caption[: LONGEST - 1] + "…"
