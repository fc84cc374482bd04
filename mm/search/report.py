"""HTML pages of captions and search results: one file each, with everything in it and nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePosixPath

from mm.errors import OutputError
from mm.files import write_whole
from mm.search.items import Hit
from mm.search.report_style import STYLE

_CAPTIONS_PER_LANGUAGE = 2
_IMAGE_KINDS = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}


@dataclass(frozen=True)
class Caption:
    """A caption with its score: the log-probability that the model gave it."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Photo:
    """A captioned photo.

    Args:
        name: file name.
        thumbnail: JPEG, PNG, GIF or WebP bytes.
        captions: captions by language.
    """

    name: str
    thumbnail: bytes = field(repr=False)
    captions: Mapping[str, Sequence[Caption]]


@dataclass(frozen=True)
class Search:
    """A search and what it found.

    Args:
        hits: the results, the best first.
        text: the query's text.
        image: thumbnail of the query's image.
        name: the image's file name.
    """

    hits: Sequence[Hit]
    text: str = ""
    image: bytes | None = field(default=None, repr=False)
    name: str = ""


@dataclass(frozen=True)
class Match:
    """A photo and how well each of several captions fits it.

    Args:
        name: the photo's file name.
        thumbnail: its bytes.
        choices: captions, each with its probability of matching, from 0 to 1.
    """

    name: str
    thumbnail: bytes = field(repr=False)
    choices: Sequence[tuple[str, float]]


def results_page(title: str, query: str, hits: Sequence[Hit]) -> str:
    """Return the page of one search.

    Args:
        title: heading.
        query: what was searched for, in words.
        hits: the results, the best first.
    """
    found = f"{len(hits)} result{'' if len(hits) == 1 else 's'}"
    lead = f"<p class='lead'>{found} for <strong>{_text(query)}</strong></p>"
    return _page(title, lead + _hit_grid(hits, "grid"))


def contact_sheet(photos: Sequence[Photo], searches: Sequence[Search], matches: Sequence[Match], title: str) -> str:
    """Return the page of a whole run: captioned photos, then searches, then which captions fit.

    Args:
        photos: shown with their captions and scores.
        searches: each with its ranked results.
        matches: each with its captions, the most probable first.
        title: heading.
    """
    counts = [
        (len(photos), "photo", "photos"),
        (len(searches), "search", "searches"),
        (len(matches), "match", "matches"),
    ]
    lead = ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts if count)
    parts = [f"<p class='lead'>{lead}</p>"]
    if photos:
        cards = "".join(_card(photo.thumbnail, photo.name, "", _captions(photo.captions)) for photo in photos)
        note = "The number after a caption is its log-probability; nearer to zero is more probable."
        parts.append(f"<h2>Photos and captions</h2><p class='lead'>{note}</p><div class='grid'>{cards}</div>")
    if searches:
        parts.append("<h2>Searches</h2>" + "".join(_search(search) for search in searches))
    if matches:
        parts.append("<h2>Which caption fits?</h2>" + "".join(_match(match) for match in matches))
    return _page(title, "".join(parts))


def write_page(path: str | Path, html: str) -> None:
    """Write a page under a temporary name, sync it, and rename it; the folder is made when missing.

    Raises:
        OutputError: when it can't be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, html.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}; name another file") from error


def _page(title: str, body: str) -> str:
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{_text(title)}</h1></header>\n<main>{body}</main>\n"
        "<footer>Made by mm.</footer></body></html>\n"
    )


def _text(text: str) -> str:
    return escape(str(text), quote=True)


def _image(data: bytes, description: str) -> str:
    kind = _IMAGE_KINDS.get(data[:4], "jpeg")
    encoded = base64.b64encode(data).decode("ascii")
    return f"<img alt='{_text(description)}' src='data:image/{kind};base64,{encoded}'>"


def _card(thumbnail: bytes, name: str, number: str, rest: str, rank: int | None = None) -> str:
    """Return a figure: the image, its name between rank and number, and what is said of it."""
    before = f"<span class='rank'>{rank}</span> " if rank is not None else ""
    after = f"<span class='number'>{_text(number)}</span>" if number else ""
    return (
        f"<figure class='card'><div class='frame'>{_image(thumbnail, name)}</div><figcaption class='body'>"
        f"<div class='name'><span title='{_text(name)}'>{before}{_text(name)}</span>{after}</div>"
        f"{rest}</figcaption></figure>"
    )


def _captions(captions: Mapping[str, Sequence[Caption]]) -> str:
    lines = []
    for language, group in captions.items():
        for caption in group:
            number = "" if caption.score is None else f"<span class='number'>{caption.score:.2f}</span>"
            lines.append(
                f"<li><span class='tag'>{_text(language)}</span>"
                f"<span lang='{_text(language)}'>{_text(caption.text)}</span>{number}</li>"
            )
    return f"<ul class='captions'>{''.join(lines)}</ul>" if lines else ""


def _hit_grid(hits: Sequence[Hit], style: str) -> str:
    if not hits:
        return "<p class='none'>Nothing was found.</p>"
    cards = []
    for hit in hits:
        shown = {
            name: [Caption(text) for text in group[:_CAPTIONS_PER_LANGUAGE]] for name, group in hit.captions.items()
        }
        name = PurePosixPath(hit.uri).name or hit.uri
        match = "" if hit.match is None else f" · match {hit.match:.3f}"
        cards.append(_card(hit.thumbnail, name, f"{hit.score:.3f}{match}", _captions(shown), hit.rank))
    return f"<div class='{style}'>{''.join(cards)}</div>"


def _search(search: Search) -> str:
    image = "" if search.image is None else _image(search.image, search.name or "query image")
    words = (
        f"“{search.text}”" if search.text else f"Images like {search.name}" if search.name else "Images like this one"
    )
    heading = f"<div class='query'>{image}<h3 class='text'>{_text(words)}</h3></div>"
    return f"<section>{heading}{_hit_grid(search.hits, 'strip')}</section>"


def _match(match: Match) -> str:
    rows = []
    ordered = sorted(match.choices, key=lambda choice: -choice[1])
    for place, (caption, probability) in enumerate(ordered):
        percent = 100 * min(max(probability, 0.0), 1.0)
        rows.append(
            f"<tr{' class=best' if place == 0 else ''}><td>{_text(caption)}</td><td><div class='meter'>"
            f"<div class='track'><div class='fill' style='width: {percent:.1f}%'></div></div>"
            f"<span class='number'>{percent:.1f} %</span></div></td></tr>"
        )
    head = "<thead><tr><th scope='col'>Caption</th><th scope='col'>Probability of a match</th></tr></thead>"
    photo = _card(match.thumbnail, match.name, "", "")
    return f"<section class='match'>{photo}<table>{head}<tbody>{''.join(rows)}</tbody></table></section>"
