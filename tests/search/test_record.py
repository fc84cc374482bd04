from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from colours import ColourEmbedder, entry

from mm.errors import GalleryError, OutputError
from mm.search import Gallery, record

NOBODY = 65534


def make(path: Path, *colours: str) -> Path:
    with Gallery.open(path, ColourEmbedder(), create=True) as gallery:
        gallery.add([entry(colour) for colour in colours])
    return path


@contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """Take away write access, and the privileges with which root would write all the same."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) | stat.S_IROTH)
        if path.is_dir():
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_missing_gallery_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"no gallery at .*nowhere: run mm index .* --gallery .*nowhere first"):
        Gallery.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(GalleryError, match=r"no gallery at .*empty"):
        Gallery.open(tmp_path / "empty")


def test_what_is_not_a_gallery_is_refused_and_left_alone(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"a")
    file = tmp_path / "file"
    file.write_bytes(b"b")
    text = tmp_path / "text"
    text.mkdir()
    (text / "gallery.db").write_text("not a database, but long enough to have a header of its own\n" * 10)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with closing(sqlite3.connect(foreign / "gallery.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for create in (False, True):
        for path, message in [
            (photos, "folder but not a gallery"),
            (file, "is a file, not a gallery"),
            (text, "not a gallery's database"),
            (foreign, "database of another program"),
        ]:
            with pytest.raises(GalleryError, match=message):
                Gallery.open(path, create=create)
        with pytest.raises(OutputError if create else GalleryError, match=r"can't be|no gallery"):
            Gallery.open(file / "below", create=create)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_gallery_whose_making_was_interrupted_is_finished(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "gallery.db").touch()
    with pytest.raises(GalleryError, match="never filled: run mm index"):
        Gallery.open(tmp_path / "g")
    make(tmp_path / "g", "red")
    with Gallery.open(tmp_path / "g") as gallery:
        assert len(gallery) == 1


def test_settings_that_keep_data_safe(tmp_path: Path) -> None:
    with Gallery.open(make(tmp_path / "g", "red")) as gallery:
        run = gallery._record.connection.execute
        assert run("PRAGMA journal_mode").fetchone() == ("wal",)
        assert run("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "g", "red")
    with closing(sqlite3.connect(tmp_path / "g" / "gallery.db")) as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(GalleryError, match=r"newer mm \(schema 999.*upgrade mm"):
        Gallery.open(tmp_path / "g")


def test_an_older_schema_is_migrated_once_and_completely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "g", "red")
    now = len(record.MIGRATIONS)
    step = ("ALTER TABLE image ADD COLUMN rating INTEGER", "UPDATE image SET rating = 5")
    with monkeypatch.context() as patch:
        patch.setattr(record, "MIGRATIONS", [*record.MIGRATIONS, (step[0], "UPDATE image SET no_such_column = 1")])
        with pytest.raises(GalleryError, match="no_such_column"):
            Gallery.open(path)
    monkeypatch.setattr(record, "MIGRATIONS", [*record.MIGRATIONS, step])
    for _ in range(2):
        with Gallery.open(path, ColourEmbedder()) as gallery:
            assert gallery._record.connection.execute("SELECT rating FROM image").fetchall() == [(5,)]
            assert gallery._record.connection.execute("PRAGMA user_version").fetchone() == (now + 1,)
            assert gallery.search("red")[0].uri == "red.png"


def test_an_unwritable_place_for_a_new_gallery(open_folder: Path) -> None:
    (open_folder / "empty").mkdir()
    with without_privileges(open_folder):
        for name in ("new", "empty", "new/deeper"):
            with pytest.raises(OutputError, match="can't be made"):
                Gallery.open(open_folder / name, create=True)


def test_a_read_only_gallery_can_be_searched_but_not_changed(open_folder: Path) -> None:
    path = make(open_folder / "g", "red", "green")
    with without_privileges(path), Gallery.open(path, ColourEmbedder()) as gallery:
        assert gallery.search("red")[0].uri == "red.png"
        assert gallery.verify() == []
        with pytest.raises(OutputError, match="make it writable"):
            gallery.add([entry("blue")])
        with pytest.raises(OutputError, match="make it writable"):
            gallery.remove("red.png")
    assert not (path / "index").exists()
    with Gallery.open(path, ColourEmbedder()) as gallery:
        assert len(gallery) == 2


def test_a_gallery_locked_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "g", "red")
    monkeypatch.setattr(record, "_BUSY_MILLISECONDS", 50)
    with (
        closing(sqlite3.connect(path / "gallery.db", isolation_level=None)) as other,
        Gallery.open(path, ColourEmbedder()) as gallery,
    ):
        other.execute("BEGIN IMMEDIATE")
        assert gallery.search("red")[0].uri == "red.png"
        with pytest.raises(GalleryError, match="being written by another process"):
            gallery.add([entry("green")])
        other.execute("ROLLBACK")
        assert gallery.add([entry("green")]).added == 1
