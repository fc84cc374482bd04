"""The vector index: derived from a gallery's record, rebuilt from it at any time, never the only copy.

On disk it is two files: ``vectors.faiss``, and ``vectors.json`` with the sha256 of the first and the stamp of the state
of the record that it was made from. Each is written under a temporary name, synced and renamed; whichever moment a
crash or another writer chooses, the pair either fits together or is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mm.files import write_whole

logger = logging.getLogger(__name__)

EXACT_LIMIT = 100_000
"""Up to this many vectors, exact search takes milliseconds; its time grows linearly with their number."""

INDEX_FILE = "vectors.faiss"
SUMMARY_FILE = "vectors.json"
_FORGOTTEN_AFTER = 3600.0


def build_index(vectors: np.ndarray, ids: np.ndarray) -> Any:
    """Build the index of a set of vectors: exact inner product.

    Args:
        vectors: (n, E) float32.
        ids: (n,) int64, the record's row number of each vector.

    Returns:
        A FAISS index whose results are those row numbers.
    """
    import faiss

    if len(vectors) > EXACT_LIMIT:
        logger.info("exact search over %d vectors (more than %d) takes time in proportion", len(vectors), EXACT_LIMIT)
    index = faiss.IndexIDMap(faiss.IndexFlatIP(int(vectors.shape[1])))
    index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), np.ascontiguousarray(ids, dtype=np.int64))
    return index


def search(
    index: Any, queries: np.ndarray, k: int, ids: Collection[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the vectors with the greatest inner product.

    Args:
        index: from ``build_index`` or ``load_index``.
        queries: (Q, E) float32.
        k: number of results per query.
        ids: row numbers to search among; all of them when None.

    Returns:
        Scores (Q, m) float32, falling, and row numbers (Q, m) int64, where m is k or all there are.
    """
    import faiss

    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if ids is None:
        count, parameters = index.ntotal, None
    else:
        wanted = np.unique(np.fromiter(ids, dtype=np.int64, count=len(ids)))
        wanted = wanted[np.isin(wanted, faiss.vector_to_array(index.id_map))]
        count, parameters = len(wanted), _selecting(wanted)
    k = min(k, count)
    if k == 0 or len(queries) == 0:
        return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    scores, found = index.search(queries, k, params=parameters)
    return scores, found


def save_index(folder: Path, index: Any, stamp: str) -> None:
    """Write an index so that a crash leaves the old one, the new one, or one that ``load_index`` refuses.

    Args:
        folder: created when missing.
        index: from ``build_index``.
        stamp: the state of the record that the index was made from.

    Raises:
        OSError: when it can't be written.
    """
    import faiss

    folder.mkdir(exist_ok=True)
    _remove_forgotten(folder)
    data = faiss.serialize_index(index).tobytes()
    summary = {"stamp": stamp, "sha256": hashlib.sha256(data).hexdigest(), "vectors": index.ntotal}
    write_whole(folder / INDEX_FILE, data)
    write_whole(folder / SUMMARY_FILE, json.dumps(summary).encode())


def load_index(folder: Path, stamp: str) -> Any | None:
    """Read an index back.

    Args:
        folder: where ``save_index`` wrote it.
        stamp: the state that the record is in now.

    Returns:
        The index, or None when it is missing, damaged, or of another state of the record.
    """
    import faiss

    try:
        summary = json.loads((folder / SUMMARY_FILE).read_bytes())
        if not isinstance(summary, dict) or summary.get("stamp") != stamp:
            return None
        data = (folder / INDEX_FILE).read_bytes()
    except (OSError, ValueError):
        return None
    if hashlib.sha256(data).hexdigest() != summary.get("sha256"):
        logger.info("the index in %s is damaged and will be rebuilt", folder)
        return None
    return faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))


def _selecting(ids: np.ndarray) -> Any:
    from faiss import IDSelectorBatch, SearchParameters

    make: Any = SearchParameters  # its type stub knows none of its arguments
    return make(sel=IDSelectorBatch(ids))


def _remove_forgotten(folder: Path) -> None:
    """Delete temporary files that a killed process left behind."""
    for path in folder.glob("*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > _FORGOTTEN_AFTER:
                path.unlink()
        except FileNotFoundError:  # another process was quicker
            continue
