"""A gallery's record: the SQLite database that holds everything, and the rules for opening and changing it."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mm.errors import GalleryError, MMError, OutputError
from mm.search.items import Embedder

RECORD_FILE = "gallery.db"
APPLICATION_ID = 0x6D6D4741  # "mmGA", in the database's header
_BUSY_MILLISECONDS = 30_000

# Each migration takes the schema from its position to the next version; PRAGMA user_version says which have run.
# In `image`, the thumbnail comes last so that reading what stands before it leaves its pages alone.
MIGRATIONS: list[tuple[str, ...]] = [
    (
        """CREATE TABLE image (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            sha256 TEXT NOT NULL UNIQUE,
            uri TEXT NOT NULL,
            vector BLOB NOT NULL,
            vector_crc32 INTEGER NOT NULL,
            added_at TEXT NOT NULL,
            captions TEXT NOT NULL,
            metadata TEXT NOT NULL,
            thumbnail BLOB NOT NULL
        )""",
        """CREATE TABLE location (
            uri TEXT PRIMARY KEY,
            image INTEGER NOT NULL REFERENCES image (id) ON DELETE CASCADE
        ) WITHOUT ROWID""",
        "CREATE INDEX location_image ON location (image)",
        """CREATE TABLE model (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            name TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            preprocessing TEXT NOT NULL,
            dimension INTEGER NOT NULL
        )""",
        # The stamp changes with every change to the set of vectors. Its random part tells apart two histories with
        # the same count, as after a backup was restored.
        "CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), generation INTEGER NOT NULL, stamp TEXT NOT NULL)",
        "INSERT INTO state VALUES (1, 0, '0')",
        "CREATE VIRTUAL TABLE caption_words USING fts5 (text, tokenize = 'porter unicode61 remove_diacritics 2')",
        "CREATE VIRTUAL TABLE caption_trigrams USING fts5 (text, tokenize = 'trigram')",
    ),
]


@dataclass(frozen=True)
class RecordedModel:
    """The model whose vectors a gallery holds."""

    name: str
    fingerprint: str
    preprocessing: str
    dimension: int

    @classmethod
    def of(cls, model: Embedder) -> RecordedModel:
        """Describe a model."""
        return cls(model.name, model.fingerprint, model.preprocessing, int(model.dimension))

    def __str__(self) -> str:
        return f"{self.name} (weights {self.fingerprint[:12]}, {self.preprocessing}, {self.dimension} dimensions)"


class Record:
    """The open database of one gallery.

    Args:
        folder: the gallery's directory.
        create: make a new gallery when there is none.

    Raises:
        GalleryError: when there is no gallery, or it can't be used.
        OutputError: when a new one can't be written.
    """

    def __init__(self, folder: Path, create: bool = False) -> None:
        self.folder = folder
        self.readonly = False
        _check_folder(folder, create)
        with self.guard():
            self.connection = self._connect(create)
            try:
                self._prepare(create)
            except BaseException:
                self.connection.close()
                raise

    def _connect(self, create: bool) -> sqlite3.Connection:
        path = self.folder / RECORD_FILE
        mode = "rwc" if create else "rw"
        if path.exists() and not (_writable(self.folder) and _writable(path)):
            self.readonly = True
            # Without write access SQLite can't make the files that share a write-ahead log. A database without a log
            # can be read as it lies; one with a log may hold rows only there.
            log = path.with_name(f"{RECORD_FILE}-wal")
            mode = "ro" if log.exists() and log.stat().st_size else "ro&immutable=1"
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _prepare(self, create: bool) -> None:
        run = self.connection.execute
        version = run("PRAGMA user_version").fetchone()[0]
        tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and run("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise GalleryError(f"{self.folder / RECORD_FILE} is a database of another program, not a gallery")
        if not tables and not create:
            raise GalleryError(f"the gallery {self.folder} was never filled: {_how_to_make(self.folder)}")
        if version > len(MIGRATIONS):
            raise GalleryError(
                f"the gallery {self.folder} was written by a newer mm (schema {version}, this one knows "
                f"{len(MIGRATIONS)}): upgrade mm"
            )
        if self.readonly and version < len(MIGRATIONS):
            raise OutputError(f"the gallery {self.folder} needs an upgrade, but it can't be written: make it writable")
        if not self.readonly:
            run("PRAGMA journal_mode = WAL")
            run("PRAGMA synchronous = FULL")
            self._migrate()

    def _migrate(self) -> None:
        run = self.connection.execute
        while (version := run("PRAGMA user_version").fetchone()[0]) < len(MIGRATIONS):
            with self.transaction():
                if run("PRAGMA user_version").fetchone()[0] != version:  # another process was quicker
                    continue
                run(f"PRAGMA application_id = {APPLICATION_ID}")
                for statement in MIGRATIONS[version]:
                    run(statement)
                run(f"PRAGMA user_version = {version + 1}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn what SQLite raises inside into one line for the reader."""
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(self.folder, error, self._kept()) from error

    def _kept(self) -> str:
        """Say how many images are safe, as far as that can be found out."""
        try:
            count = self.connection.execute("SELECT count(*) FROM image").fetchone()[0]
        except (sqlite3.Error, AttributeError):
            return "what was added before is kept"
        return f"the {count} images added before are kept" if count != 1 else "the 1 image added before is kept"

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the changes inside together, or none of them.

        Raises:
            OutputError: when the gallery can't be written.
        """
        if self.readonly:
            raise OutputError(f"the gallery {self.folder} can't be written: make it writable")
        yield from self._within("BEGIN IMMEDIATE")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one state of the record inside, whatever other processes write meanwhile."""
        yield from self._within("BEGIN")

    def _within(self, begin: str) -> Iterator[None]:
        with self.guard():
            self.connection.execute(begin)
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def stamp(self) -> str:
        """Return the name of the present state of the set of vectors."""
        return str(self.connection.execute("SELECT stamp FROM state").fetchone()[0])

    def change_stamp(self) -> None:
        """Note, inside a transaction, that the set of vectors changes."""
        generation = self.connection.execute("SELECT generation FROM state").fetchone()[0] + 1
        stamp = f"{generation}-{secrets.token_hex(8)}"
        self.connection.execute("UPDATE state SET generation = ?, stamp = ?", (generation, stamp))

    def model(self) -> RecordedModel | None:
        """Return the model whose vectors are recorded; None as long as there are none."""
        row = self.connection.execute("SELECT name, fingerprint, preprocessing, dimension FROM model").fetchone()
        return RecordedModel(*row) if row else None

    def check_model(self, model: RecordedModel) -> None:
        """Refuse a model other than the recorded one.

        Raises:
            GalleryError: when another model made the vectors.
        """
        recorded = self.model()
        if recorded is None:
            return
        ours = (recorded.fingerprint, recorded.preprocessing, recorded.dimension)
        if ours != (model.fingerprint, model.preprocessing, model.dimension):
            raise GalleryError(
                f"the gallery {self.folder} was built with {recorded}, not with {model}: use {recorded.name} with it, "
                f"or index into a new gallery"
            )

    def set_model(self, model: RecordedModel) -> None:
        """Record, inside a transaction, the model of the first vectors; refuse another one later."""
        self.connection.execute("INSERT OR IGNORE INTO model VALUES (1, ?, ?, ?, ?)", tuple(vars(model).values()))
        self.check_model(model)

    def close(self) -> None:
        """Close the database."""
        self.connection.close()


def _how_to_make(folder: Path) -> str:
    return f"run mm index <images> --gallery {folder} first"


def _check_folder(folder: Path, create: bool) -> None:
    """Find out, before SQLite opens anything, whether the path can be a gallery."""
    try:
        if folder.exists() and not folder.is_dir():
            raise GalleryError(f"{folder} is a file, not a gallery: name a gallery's folder")
        if (folder / RECORD_FILE).is_file():
            return
        if folder.exists() and any(folder.iterdir()):
            raise GalleryError(
                f"{folder} is a folder but not a gallery (no {RECORD_FILE}): name a gallery or a new folder"
            )
        if not create:
            raise GalleryError(f"there is no gallery at {folder}: {_how_to_make(folder)}")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the gallery {folder} can't be {'made' if create else 'opened'}: {error.strerror or error}"
        raise (OutputError if create else GalleryError)(message) from error
    if not _writable(folder):
        raise OutputError(f"the gallery {folder} can't be made: the folder is not writable")


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _explain(folder: Path, error: sqlite3.Error, kept: str) -> MMError:
    if isinstance(error, sqlite3.ProgrammingError):
        return GalleryError(f"the gallery {folder} is closed: open it again")
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary == sqlite3.SQLITE_FULL:
        return OutputError(f"no space left for the gallery {folder}: {kept}; free some space and run again")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return OutputError(f"the gallery {folder} can't be written ({error}): make it writable")
    if primary == sqlite3.SQLITE_IOERR:
        return OutputError(f"the disk failed under the gallery {folder} ({error}): {kept}; check the disk")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return GalleryError(f"the gallery {folder} is being written by another process: try again when it is done")
    if primary == sqlite3.SQLITE_CANTOPEN:
        return GalleryError(f"the gallery {folder} can't be opened: {error}; check its permissions")
    if primary == sqlite3.SQLITE_NOTADB:
        return GalleryError(f"{folder / RECORD_FILE} is not a gallery's database: name another folder")
    return GalleryError(
        f"the gallery {folder} is damaged or can't be read ({error}): restore it, or index into a new one"
    )
