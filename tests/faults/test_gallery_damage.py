"""Damage to a gallery's files, and a full disk, are found, named, and cost no more than what they hit."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm.errors import GalleryError, OutputError
from mm.search import AddReport, Entry, Gallery


class HashEmbedder:
    """Embeds an image and the text of its width at the same place."""

    name = "hashes"
    fingerprint = "2" * 64
    preprocessing = "none"
    dimension = 32

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self.embed_text([str(image.width) for image in images])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]
        vectors = np.array(digests).astype(np.float32) - 128
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def wide(width: int) -> Entry:
    return Entry(b"%d" % width, Image.new("RGB", (width, 4)), f"{width}.png")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "g"
    with Gallery.open(path, HashEmbedder(), create=True) as gallery:
        gallery.add([wide(width) for width in range(1, 21)])
        gallery.search("1")
    return path


def spoil(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path / "gallery.db")) as connection, connection:
        assert connection.execute(statement).rowcount == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("vector = zeroblob(128)", "checksum"),
        ("vector_crc32 = vector_crc32 + 1", "checksum"),
        ("vector = x'00'", "length"),
        ("vector = 'text'", "length"),
    ],
)
def test_a_damaged_vector_is_named_left_out_and_renewed(
    path: Path, change: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(path, f"UPDATE image SET {change} WHERE uri = '7.png'")
    for file in (path / "index").iterdir():
        file.unlink()
    with Gallery.open(path, HashEmbedder()) as gallery:
        (problem,) = gallery.verify()
        assert problem.uri == "7.png"
        assert fault in problem.what
        with caplog.at_level(logging.WARNING):
            assert {hit.uri for hit in gallery.search("7", k=100)} == {f"{n}.png" for n in range(1, 21) if n != 7}
        assert "7.png is left out" in caplog.text
        assert gallery.add([wide(width) for width in range(1, 21)]) == AddReport(updated=1, unchanged=19)
        assert gallery.verify() == []
        assert gallery.search("7", k=1)[0].uri == "7.png"


def test_damaged_captions_are_named_and_renewed(path: Path) -> None:
    spoil(path, "UPDATE image SET captions = '{\"en' WHERE uri = '7.png'")
    with Gallery.open(path, HashEmbedder()) as gallery:
        assert [(problem.uri, "captions" in problem.what) for problem in gallery.verify()] == [("7.png", True)]
        assert gallery.search("7", k=1)[0].captions == {}
        assert gallery.add([wide(7)._replace(captions={"en": ["seven"]})]) == AddReport(updated=1)
        assert gallery.search("7", k=1)[0].captions == {"en": ["seven"]}
        assert gallery.verify() == []


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "stale", "a file", "foreign"])
def test_the_index_is_only_a_copy(path: Path, tmp_path: Path, damage: str) -> None:
    index = path / "index"
    vectors = index / "vectors.faiss"
    data = vectors.read_bytes()
    if damage in ("missing", "a file"):
        for file in index.iterdir():
            file.unlink()
        index.rmdir()
        if damage == "a file":
            index.write_bytes(b"")
    elif damage == "flipped":
        vectors.write_bytes(data[:300] + bytes([255 - data[300]]) + data[301:])
    elif damage == "cut":
        vectors.write_bytes(data[:100])
    elif damage == "stale":
        with Gallery.open(path, HashEmbedder()) as gallery:
            gallery.remove("3.png")
            gallery.add([wide(3)])
    else:  # the index of another gallery with as many changes
        with Gallery.open(tmp_path / "other", HashEmbedder(), create=True) as other:
            other.add([wide(width) for width in range(100, 120)])
            other.search("1")
        index.rename(tmp_path / "old")
        (tmp_path / "other" / "index").rename(index)
    with Gallery.open(path, HashEmbedder()) as gallery:
        for width in range(1, 21):
            assert gallery.search(str(width), k=1)[0].uri == f"{width}.png"


def test_a_backup_put_back_does_not_meet_the_later_index(path: Path) -> None:
    with Gallery.open(path, HashEmbedder()) as gallery:
        before = (path / "gallery.db").read_bytes()
        gallery.remove("1.png")
        gallery.add([wide(50)])
        gallery.search("50")
    (path / "gallery.db").write_bytes(before)
    with Gallery.open(path, HashEmbedder()) as gallery:
        gallery.remove("2.png")
        gallery.add([wide(60)])
        assert gallery.search("1", k=1)[0].uri == "1.png"
        assert gallery.search("60", k=1)[0].uri == "60.png"


def test_a_damaged_database_is_one_line(path: Path) -> None:
    database = path / "gallery.db"
    data = bytearray(database.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = b"\xa5" * 64
    database.write_bytes(bytes(data))
    with pytest.raises(GalleryError, match="damaged or can't be read") as caught:
        Gallery.open(path, HashEmbedder()).search("1")
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_what_was_committed(path: Path) -> None:
    with Gallery.open(path, HashEmbedder()) as gallery:
        run = gallery._record.connection.execute
        pages = run("PRAGMA page_count").fetchone()[0]
        run(f"PRAGMA max_page_count = {pages + 20}")
        reports: list[AddReport] = []
        with pytest.raises(
            OutputError, match=r"no space left for the gallery .*: the \d+ images added before are kept"
        ):
            gallery.add((wide(width) for width in range(100, 1000)), batch_size=4, progress=reports.append)
        kept = 20 + reports[-1].added
        assert reports[-1].added > 0
        assert len(gallery) == kept
        assert len(gallery.search("1", k=10_000)) == kept
        run("PRAGMA max_page_count = 1000000")
        assert gallery.add([wide(width) for width in range(100, 1000)]).unchanged == kept - 20
    with Gallery.open(path, HashEmbedder()) as gallery:
        assert len(gallery) == 920
        assert gallery.verify() == []
