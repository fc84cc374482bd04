"""Texts from files with one a line: plain text, or JSON lines such as ``mm caption --output`` writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mm.data.samples import Rejection, load_json
from mm.errors import DataError, UsageError

STANDARD_INPUT = "-"
JSON_LINES = ".jsonl"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TextLine:
    """A text from a line of a file.

    Args:
        text: what it says.
        row: the whole line as an object; of plain text, where it stands.
    """

    text: str
    row: dict[str, Any]


def count_lines(name: str) -> int | None:
    """Counts the lines of a file of texts.

    Args:
        name: its path, or ``-`` for standard input.

    Returns:
        How many there are; None where that is only known once they are read.

    Raises:
        UsageError: the file can't be read, or has no line.
    """
    path = Path(name)
    if name == STANDARD_INPUT or path.is_fifo():
        return None
    count, last = 0, b"\n"
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                count, last = count + block.count(b"\n"), block
    except OSError as error:
        raise UsageError(f"{name}: can't be read ({error.strerror})") from error
    count += not last.endswith(b"\n")
    if not count:
        raise UsageError(f"{name}: is empty; it should have a text a line")
    return count


def read_lines(name: str, field: str = "caption") -> Iterator[TextLine | Rejection]:
    """Reads texts; lines without one are rejected by their number.

    Args:
        name: a file of JSON lines, which ends in ``.jsonl``, or one of plain text; ``-`` for standard input, where
            JSON lines begin with a brace.
        field: the key of the text in JSON lines.
    """
    as_json = name.endswith(JSON_LINES)
    where = "standard input" if name == STANDARD_INPUT else name
    with _opened(name) as file:
        for number, line in enumerate(file, 1):
            place = f"{where}, line {number}"
            if name == STANDARD_INPUT and number == 1:
                as_json = line.lstrip().startswith(b"{")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                yield _object(text, field) if as_json else _plain(text, place, number)
            except UnicodeDecodeError as error:
                yield Rejection(place, str(number), "not UTF-8", f"byte {error.start} isn't UTF-8; save it as UTF-8")
            except DataError as error:
                yield Rejection.of(error, place, str(number))


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as file:
        yield file


def _plain(text: str, place: str, number: int) -> TextLine:
    if not text:
        raise DataError("the line is empty", "no text")
    return TextLine(text, {"source": place, "key": str(number)})


def _object(line: str, field: str) -> TextLine:
    try:
        row = load_json(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"isn't valid JSON: {error}", "not JSON") from None
    if not isinstance(row, dict):
        raise DataError(f'holds a {type(row).__name__}, not an object like {{"{field}": "..."}}', "not a JSON object")
    text = row.get(field)
    if not isinstance(text, str) or not text.strip():
        known = ", ".join(map(str, row)) or "nothing"
        raise DataError(f"{field!r} is {_short(text)}, not a text; the line has {known}", "no text")
    return TextLine(text.strip(), row)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
