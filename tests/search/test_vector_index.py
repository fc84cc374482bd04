from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mm.search.index import INDEX_FILE, SUMMARY_FILE, build_index, load_index, save_index, search


@pytest.fixture
def vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(1).permutation(10**6)[:200].astype(np.int64)


def test_search_is_exact(vectors: np.ndarray, ids: np.ndarray) -> None:
    queries = vectors[:7] + 0.1
    scores, found = search(build_index(vectors, ids), queries, 10)
    products = queries @ vectors.T
    order = np.argsort(-products, axis=1)[:, :10]
    np.testing.assert_array_equal(found, ids[order])
    np.testing.assert_allclose(scores, np.take_along_axis(products, order, axis=1), rtol=1e-5)


def test_search_among_a_subset(vectors: np.ndarray, ids: np.ndarray) -> None:
    some = [int(ids[3]), int(ids[50]), int(ids[3]), 2**40]
    scores, found = search(build_index(vectors, ids), vectors[:2], 5, ids=some)
    assert scores.shape == (2, 2)
    assert [set(row) for row in found.tolist()] == [set(some[:2])] * 2
    assert search(build_index(vectors, ids), vectors[:2], 5, ids=[])[0].shape == (2, 0)


def test_more_wanted_than_there_is(vectors: np.ndarray, ids: np.ndarray) -> None:
    assert search(build_index(vectors, ids), vectors[:1], 500)[1].shape == (1, 200)
    empty = build_index(np.zeros((0, 16), np.float32), np.zeros(0, np.int64))
    assert search(empty, vectors[:1], 5)[1].shape == (1, 0)


def test_saved_and_loaded(tmp_path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    index = build_index(vectors, ids)
    save_index(tmp_path / "index", index, "7-abc")
    loaded = load_index(tmp_path / "index", "7-abc")
    np.testing.assert_array_equal(search(loaded, vectors, 3)[1], search(index, vectors, 3)[1])
    assert load_index(tmp_path / "index", "8-abc") is None
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == sorted([INDEX_FILE, SUMMARY_FILE])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no index", "no summary", "bad summary", "list", "half"])
def test_a_damaged_index_is_not_loaded(tmp_path: Path, vectors: np.ndarray, ids: np.ndarray, damage: str) -> None:
    save_index(tmp_path, build_index(vectors, ids), "1")
    index, summary = tmp_path / INDEX_FILE, tmp_path / SUMMARY_FILE
    data = index.read_bytes()
    if damage == "flip":
        index.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    elif damage == "cut":
        index.write_bytes(data[:-100])
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "no index":
        index.unlink()
    elif damage == "no summary":
        summary.unlink()
    elif damage == "bad summary":
        summary.write_bytes(summary.read_bytes()[:-5])
    elif damage == "list":
        summary.write_text("[]")
    else:  # another writer's index with this one's summary
        other = tmp_path / "other"
        save_index(other, build_index(vectors[:50], ids[:50]), "1")
        (other / INDEX_FILE).replace(index)
    assert load_index(tmp_path, "1") is None


def test_a_failed_write_leaves_the_old_index(
    tmp_path: Path, vectors: np.ndarray, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_index(tmp_path, build_index(vectors, ids), "1")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_index(tmp_path, build_index(vectors[:50], ids[:50]), "2")
    assert load_index(tmp_path, "1").ntotal == 200
    assert not list(tmp_path.glob("*.tmp"))


def test_files_of_a_killed_writer_are_removed_after_a_while(
    tmp_path: Path, vectors: np.ndarray, ids: np.ndarray
) -> None:
    old, new = tmp_path / "vectors.faiss.1.1.tmp", tmp_path / "vectors.faiss.2.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    save_index(tmp_path, build_index(vectors, ids), "1")
    assert not old.exists()
    assert new.exists()
    assert json.loads((tmp_path / SUMMARY_FILE).read_bytes())["vectors"] == 200
