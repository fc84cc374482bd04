"""Pieces of self-contained HTML pages: a frame with its style, figures, charts and pictures. No scripts."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from mm.data.images import DEFAULT_MAX_PIXELS, decode_small

THUMBNAIL = 256
"""Longer side of pictures in pixels."""

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1d2329; --faint: #5f6b76;
  --line: #dfe3e6; --bar: #2f6fb2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e8eaec; --faint: #98a2ac;
  --line: #343a40; --bar: #6aa9e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { color: var(--faint); margin: .25rem 0 1rem; max-width: 48rem; }
.grid { display: grid; gap: .9rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(var(--least, 20rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem;
  overflow: hidden; }
.card h3 { font-size: .95rem; margin: 0 0 .5rem; }
.figures { --least: 8.5rem; margin: 1.25rem 0; align-items: stretch; }
.figures b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.figures span { color: var(--faint); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { text-align: left; }
th { color: var(--faint); font-weight: 500; }
svg { display: block; width: 100%; height: auto; }
svg rect { fill: var(--bar); } svg line { stroke: var(--line); }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
.words { display: grid; grid-template-columns: max-content 1fr max-content; gap: .1rem .6rem; font-size: .85rem;
  align-items: center; }
.words i { background: var(--bar); height: .65rem; border-radius: .15rem; }
.words span:nth-child(3n) { color: var(--faint); text-align: right; font-variant-numeric: tabular-nums; }
.pictures { --least: 14rem; align-items: stretch; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
figure img { display: block; width: 100%; height: 12rem; object-fit: contain; background: var(--line); }
figcaption { padding: .6rem .8rem; font-size: .85rem; overflow-wrap: anywhere; }
figcaption small { display: block; color: var(--faint); }
.pair { display: grid; grid-template-columns: 1fr 1fr; } .pairs { --least: 28rem; }
"""
_WIDTH, _HEIGHT = 420, 190
_WIDEST = 60
_LEFT, _BOTTOM, _TOP = 44, 24, 10


def frame(title: str, body: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(title: str, parts: Iterable[str], kind: str = "grid", text: str = "") -> str:
    """A heading with parts below it, in a grid of this kind."""
    inner = "\n".join(parts)
    words = f"<p>{escape(text)}</p>\n" if text else ""
    return f'<h2>{escape(title)}</h2>\n{words}<div class="{kind}">\n{inner}\n</div>'


def figure_row(figures: Mapping[str, str]) -> str:
    """Figures in large type, each with what it is."""
    cells = (f"<b>{escape(value)}</b><span>{escape(name)}</span>" for name, value in figures.items())
    return '<div class="grid figures">' + "".join(f'<div class="card">{cell}</div>' for cell in cells) + "</div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its first column is text, the others are numbers."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="card"><table><tr>{head}</tr>{lines}</table></div>'


def histogram(title: str, counts: Counter[int] | Counter[float], step: float | None = None) -> str:
    """A chart of how often each value occurs; rare large values share the last bar.

    Args:
        title: says what the values are.
        counts: value to how often it occurs.
        step: width of a bar; chosen by the spread of the values if None.
    """
    bars = _bars(counts, step)
    top = _nice(max(count for _, count in bars))
    width = (_WIDTH - _LEFT) / len(bars)
    floor, height = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP
    parts = []
    for share in (0, 0.5, 1):
        y = floor - share * height
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{_short(share * top)}</text>')
    every = -(-len(bars) // 9)
    for number, (label, count) in enumerate(bars):
        x, tall, wide = _LEFT + number * width, height * count / top, min(width, _WIDEST)
        gap = min(2.0, width / 5)
        parts.append(
            f'<rect x="{x + gap / 2:.1f}" y="{floor - tall:.1f}" width="{wide - gap:.1f}" height="{tall:.1f}">'
            f"<title>{escape(label)}: {count:,}</title></rect>"
        )
        if number % every == 0:
            middle = x + wide / 2
            parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 7}" text-anchor="middle">{escape(label)}</text>')
    chart = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<div class="card"><h3>{escape(title)}</h3>{chart}</div>'


def ranking(title: str, counts: Mapping[str, int]) -> str:
    """A chart of names with a bar each, in the order given, which is by falling count."""
    most = max(counts.values(), default=1)
    rows = "".join(
        f'<span>{escape(name)}</span><i style="width: {100 * count / most:.1f}%"></i><span>{count:,}</span>'
        for name, count in counts.items()
    )
    return f'<div class="card"><h3>{escape(title)}</h3><div class="words">{rows}</div></div>'


def picture(jpeg: bytes, text: str) -> str:
    """An ``img`` element that holds its picture."""
    data = base64.b64encode(jpeg).decode()
    return f'<img alt="{escape(text)}" src="data:image/jpeg;base64,{data}">'


def small_jpeg(image: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """Scales an image down to a JPEG of at most 256 x 256 pixels.

    Raises:
        ImageError: it can't be decoded.
    """
    small = decode_small(image, THUMBNAIL, name, max_pixels)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _bars(counts: Counter[int] | Counter[float], step: float | None, most: int = 32) -> list[tuple[str, int]]:
    """Labels and heights of a histogram's bars, without gaps between the first and the last."""
    values = sorted(counts)
    total, passed, last = sum(counts.values()), 0, values[-1]
    for value, count in sorted(counts.items()):  # what lies beyond all but one in 200 shares the last bar
        passed += count
        if passed >= 0.995 * total:
            last = value
            break
    if step is None:
        step = max(1, _nice((last - values[0] + 1) / most))
    first, final = math.floor(values[0] / step + 1e-9), math.floor(last / step + 1e-9)
    heights = [0] * (final - first + 1)
    for value, count in counts.items():
        heights[min(math.floor(value / step + 1e-9), final) - first] += count
    labels = [f"{(first + number) * step:g}" for number in range(len(heights))]
    if values[-1] >= (final + 1) * step:
        labels[-1] += "+"
    return list(zip(labels, heights, strict=True))


def _nice(value: float) -> float:
    """The next number of the form 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def _short(value: float) -> str:
    """A number with thousands as k and millions as M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
