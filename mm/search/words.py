"""Full-text search of captions: words in languages that write spaces, trigrams of characters in Chinese."""

from __future__ import annotations

import math
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

# Scripts written without spaces: Han with its extensions and compatibility forms, and kana.
_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD = re.compile(rf"(?:(?![{_UNSPACED}])\w)+")
_TRIGRAM = 3


def index_captions(connection: sqlite3.Connection, image: int, captions: Mapping[str, Sequence[str]]) -> None:
    """Make an image's captions findable, in place of those it had.

    Args:
        connection: inside a transaction.
        image: the image's row number.
        captions: captions by language; the script of each caption, not its language, chooses the index.
    """
    forget_captions(connection, image)
    texts = [text.replace("\0", " ") for group in captions.values() for text in group]
    unspaced = [text for text in texts if _RUN.search(text)]
    if unspaced:
        connection.execute("INSERT INTO caption_trigrams (rowid, text) VALUES (?, ?)", (image, "\n".join(unspaced)))
    if words := [text for text in texts if _WORD.search(text)]:
        connection.execute("INSERT INTO caption_words (rowid, text) VALUES (?, ?)", (image, "\n".join(words)))


def forget_captions(connection: sqlite3.Connection, image: int) -> None:
    """Take an image's captions out of the full-text index, inside a transaction."""
    connection.execute("DELETE FROM caption_trigrams WHERE rowid = ?", (image,))
    connection.execute("DELETE FROM caption_words WHERE rowid = ?", (image,))


def find_words(connection: sqlite3.Connection, query: str, k: int) -> list[tuple[int, float]]:
    """Find the images whose captions hold any of the words, those with more and rarer words first.

    Args:
        connection: the record's.
        query: words in any mixture of languages; punctuation is ignored.
        k: number of results at most.

    Returns:
        Row numbers with scores (BM25, Robertson and Zaragoza 2009; higher is better), the best first.
    """
    runs = _RUN.findall(query)
    words = _WORD.findall(query)
    trigrams = {run[i : i + _TRIGRAM] for run in runs for i in range(len(run) - _TRIGRAM + 1)}
    scores: dict[int, float] = defaultdict(float)
    _match(connection, "caption_words", words, scores)
    _match(connection, "caption_trigrams", trigrams, scores)
    for short in {run for run in runs if len(run) < _TRIGRAM}:
        _contain(connection, short, scores)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


def _match(connection: sqlite3.Connection, table: str, terms: Iterable[str], scores: dict[int, float]) -> None:
    expression = " OR ".join(f'"{term}"' for term in sorted(set(terms)))
    if not expression:
        return
    for image, rank in connection.execute(
        f"SELECT rowid, bm25({table}) FROM {table} WHERE {table} MATCH ?", (expression,)
    ):
        scores[image] -= rank


def _contain(connection: sqlite3.Connection, term: str, scores: dict[int, float]) -> None:
    """Score images by a term too short for trigrams: its inverse document frequency, as in BM25."""
    total = connection.execute("SELECT count(*) FROM caption_trigrams").fetchone()[0]
    rows = connection.execute("SELECT rowid FROM caption_trigrams WHERE instr(text, ?)", (term,)).fetchall()
    weight = math.log(1 + (total - len(rows) + 0.5) / (len(rows) + 0.5))
    for (image,) in rows:
        scores[image] += weight
