"""Reading rows of a gallery's record: images, search results, and vectors that are checked on the way."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm.search.items import Hit, Item

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 500
_COLUMNS = "id, sha256, uri, captions, metadata, thumbnail"


def read_items_after(connection: sqlite3.Connection, last: int) -> dict[int, Item]:
    """Read the next images by row number, a few hundred at most; none when there are no more.

    Args:
        connection: the record's.
        last: the row number after which to begin.
    """
    query = f"SELECT {_COLUMNS} FROM image WHERE id > ? ORDER BY id LIMIT {_ROWS_AT_ONCE}"
    return {row[0]: Item(**_values(row)) for row in connection.execute(query, (last,))}


def read_hits(connection: sqlite3.Connection, rows: Sequence[int], scores: Sequence[float]) -> list[Hit]:
    """Read the images of a search's results.

    Args:
        connection: the record's.
        rows: row numbers, the best first.
        scores: one for each row number.
    """
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        query = f"SELECT {_COLUMNS} FROM image WHERE id IN ({', '.join('?' * len(part))})"
        found.update((row[0], _values(row)) for row in connection.execute(query, part))
    kept = [(found[row], score) for row, score in zip(rows, scores, strict=True) if row in found]
    return [Hit(**values, score=score, rank=rank) for rank, (values, score) in enumerate(kept, start=1)]


def read_vectors(connection: sqlite3.Connection, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Read all vectors, leaving out the damaged ones with a warning.

    Returns:
        Vectors (n, E) float32 and their row numbers (n,) int64.
    """
    ids: list[int] = []
    data = bytearray()
    for row, uri, vector, crc in connection.execute("SELECT id, uri, vector, vector_crc32 FROM image"):
        if fault := vector_fault(vector, crc, dimension):
            logger.warning("%s is left out of the search: %s; index it again", uri, fault)
            continue
        ids.append(row)
        data += vector
    return np.frombuffer(data, dtype="<f4").reshape(len(ids), dimension), np.array(ids, dtype=np.int64)


def vector_fault(vector: object, crc: int, dimension: int) -> str | None:
    """Say what is wrong with a recorded vector, or return None when it is sound."""
    if not isinstance(vector, bytes) or len(vector) != 4 * dimension:
        return "its vector has the wrong length"
    if zlib.crc32(vector) != crc:
        return "its vector doesn't match its checksum"
    return None


def _values(row: tuple[Any, ...]) -> dict[str, Any]:
    _, sha256, uri, captions, metadata, thumbnail = row
    values = {"captions": _parsed(captions, uri), "metadata": _parsed(metadata, uri)}
    return {"sha256": sha256, "uri": uri, "thumbnail": thumbnail, **values}


def _parsed(text: str, uri: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError):
        logger.warning("%s: its recorded captions or metadata are damaged; index it again with them", uri)
        return {}
