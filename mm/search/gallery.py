"""The gallery: images that can be found by text, by image, or by the words of their captions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mm.errors import GalleryError, ImageError, MMError, OptionError
from mm.search import index as vector_index
from mm.search.adding import Adder, Pending, as_text, checked_vectors, delete_orphans
from mm.search.items import AddReport, Embedder, Entry, Hit, Item, Problem, content_hash
from mm.search.record import RECORD_FILE, Record, RecordedModel
from mm.search.reranking import as_matcher, rerank_hits
from mm.search.rows import read_hits, read_items_after, read_vectors, vector_fault
from mm.search.words import find_words

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_INDEX_FOLDER = "index"


class Gallery:
    """A directory of indexed images; made with ``Gallery.open``. One object may be used by several threads.

    Args:
        record: the open database.
        model: the model for queries and new images, its name, or None for the one recorded.
        device: where a model runs that is loaded here; None for the GPU if there is one.
        precision: what it computes in, as for ``mm.load``.
    """

    def __init__(
        self,
        record: Record,
        model: Embedder | str | None = None,
        device: str | None = None,
        precision: str = "auto",
    ) -> None:
        self._record = record
        self._device = device
        self._precision = precision
        self._lock = threading.RLock()
        self._model: Embedder | None = None if isinstance(model, str) else model
        self._model_name = model if isinstance(model, str) else None
        self._index: Any = None
        self._index_stamp: str | None = None
        if self._model is not None:
            self._check(self._model)

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Embedder | str | None = None,
        create: bool = False,
        device: str | None = None,
        precision: str = "auto",
    ) -> Gallery:
        """Open a gallery.

        Args:
            path: its directory.
            model: a loaded model, the name of one, or None for the one that the gallery was built with (as long as
                there is none, for the default of ``mm.load``). A model is loaded when it is first needed, or at once
                if its name isn't the recorded one, or if a device or a precision is given.
            create: make a new gallery when there is none.
            device: where a model that isn't loaded yet runs: ``cpu``, ``cuda``, ...; None for the GPU if there is one.
            precision: what such a model computes in, as for ``mm.load``.

        Raises:
            GalleryError: when there is no gallery, it can't be used, or another model built it.
            OptionError: when there is no such device, or it doesn't compute in the precision.
            OutputError: when a new one can't be written.
        """
        path = Path(path)
        name = model if isinstance(model, str) else None
        given = bool(device) or precision != "auto"
        if create and (name or (model is None and given)) and not (path / RECORD_FILE).exists():
            model = _load(name, device, precision)  # an unknown name leaves no empty gallery behind
        record = Record(path, create)
        try:
            gallery = cls(record, model, device, precision)
            recorded = gallery.model
            if given or (name and (recorded is None or recorded.name != name)):
                gallery._embedder()
            return gallery
        except BaseException:
            record.close()
            raise

    @property
    def path(self) -> Path:
        """The gallery's directory."""
        return self._record.folder

    @property
    def model(self) -> RecordedModel | None:
        """The model whose vectors are recorded; None as long as there are none."""
        with self._guarded():
            return self._record.model()

    def add(
        self,
        items: Iterable[Entry | tuple[Any, ...]],
        batch_size: int = 32,
        progress: Callable[[AddReport], None] | None = None,
        on_reject: Callable[[Entry, ImageError], None] | None = None,
    ) -> AddReport:
        """Add images, embedding only contents that the gallery doesn't hold yet.

        Each batch is one transaction: an interruption at any moment loses at most the batch in flight. A known content
        at a new uri is not embedded again; an image whose uri another content takes, and that has no other, leaves.

        Args:
            items: ``Entry`` values, or plain tuples (bytes, image, uri, captions, metadata).
            batch_size: entries embedded and committed together.
            progress: is told the counts so far after each batch.
            on_reject: is told of each entry whose image can't be decoded; when None, the error is raised.

        Returns:
            How many entries were added, updated, unchanged and rejected.

        Raises:
            OptionError: when ``batch_size`` is less than 1.
            GalleryError: when another model built the gallery.
            OutputError: when the gallery can't be written.
            DataError: for an entry that can't be recorded.
        """
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, not {batch_size}")
        adder = Adder(self._record, self._embedder, on_reject)
        report = AddReport()
        batch: list[Pending] = []

        def write() -> None:
            nonlocal report
            with self._lock:
                report += adder.write(batch)
            batch.clear()
            if progress is not None:
                progress(report)

        with self._guarded(), self._record.transaction():  # refuses at once what can't be written later
            pass
        for item in items:
            entry = Entry(*item)
            batch.append(Pending.of(entry._replace(data=b""), content_hash(entry.data)))
            if len(batch) >= batch_size:
                write()
        if batch:
            write()
        return report

    def remove(self, uri: str) -> bool:
        """Forget a uri, and its image when no other uri leads to it; return whether the uri was known.

        Raises:
            OutputError: when the gallery can't be written.
        """
        uri = as_text(uri)
        with self._guarded(), self._record.transaction():
            run = self._record.connection.execute
            row = run("SELECT image FROM location WHERE uri = ?", (uri,)).fetchone()
            if row is None:
                return False
            run("DELETE FROM location WHERE uri = ?", (uri,))
            if delete_orphans(self._record, {row[0]}):
                self._record.change_stamp()
            return True

    def search(self, text: str | None = None, k: int = 10, image: Image | None = None, rerank: int = 0) -> list[Hit]:
        """Find the images nearest to a text, to an image, or to both.

        Args:
            text: what the image shows.
            k: number of results at most.
            image: an example; with a text, the query is the mean of both unit vectors.
            rerank: how many of the nearest images are sorted anew by the model's probability that the text describes
                them, before the first k are returned; for texts only.

        Returns:
            The best first; scores are cosine similarities (with both, the mean of the two).

        Raises:
            OptionError: without text and image, when k is less than 1 or rerank less than 0, for rerank with an image,
                or when there is no such device.
            CapabilityError: for rerank, when the model can't match.
            GalleryError: when another model built the gallery, or its model can't be loaded.
            ImageError: for rerank, when neither an image nor its thumbnail can be decoded.
        """
        _check_k(k)
        if rerank < 0:
            raise OptionError(f"rerank must be at least 0, not {rerank}")
        if rerank and image is not None:
            raise OptionError("rerank is for searches in words only; leave out the image or rerank")
        if image is None and not (text and text.strip()):
            raise OptionError("nothing to search for: give a text, an image, or both")
        with self._guarded():
            if self._record.model() is None:
                return []
            matcher = as_matcher(self._embedder()) if rerank else None
            query = self._query(text, image)
            with self._record.reading():
                scores, rows = vector_index.search(self._current_index(), query[None], max(k, rerank))
                hits = read_hits(self._record.connection, rows[0].tolist(), scores[0].tolist())
        if matcher is None or text is None:
            return hits
        return rerank_hits(hits, rerank, text, matcher)[:k]

    def text_search(self, words: str, k: int = 10) -> list[Hit]:
        """Find images by the words of their captions, in English or Chinese; needs no model.

        Args:
            words: images with more of them, and rarer ones, come first (BM25); punctuation is ignored.
            k: number of results at most.

        Raises:
            OptionError: when k is less than 1.
        """
        _check_k(k)
        with self._guarded(), self._record.reading():
            found = find_words(self._record.connection, as_text(words), k)
            return read_hits(self._record.connection, [row for row, _ in found], [score for _, score in found])

    def items(self) -> Iterator[Item]:
        """Go through all images in the order they were added; images added meanwhile may be included."""
        last = 0
        while True:
            with self._guarded():
                items = read_items_after(self._record.connection, last)
            if not items:
                return
            yield from items.values()
            last = max(items)

    def uris(self) -> list[str]:
        """Return every known uri, sorted; an image may have several."""
        with self._guarded():
            return [uri for (uri,) in self._record.connection.execute("SELECT uri FROM location ORDER BY uri")]

    def verify(self) -> list[Problem]:
        """Check the whole record; rows with a damaged vector are left out of searches until added again."""
        with self._guarded(), self._record.reading():
            run = self._record.connection.execute
            found = [Problem("", "", text) for (text,) in run("PRAGMA quick_check") if text != "ok"]
            dimension = self._dimension()
            for sha256, uri, vector, crc in run("SELECT sha256, uri, vector, vector_crc32 FROM image ORDER BY id"):
                if fault := vector_fault(vector, crc, dimension):
                    found.append(Problem(sha256, uri, fault))
            unreadable = "SELECT sha256, uri FROM image WHERE NOT (json_valid(captions) AND json_valid(metadata))"
            found += [Problem(sha256, uri, "its captions or metadata are damaged") for sha256, uri in run(unreadable)]
            return found

    def close(self) -> None:
        """Close the database; the gallery can't be used after that."""
        with self._lock:
            self._record.close()
            self._index = None

    def __len__(self) -> int:
        with self._guarded():
            return int(self._record.connection.execute("SELECT count(*) FROM image").fetchone()[0])

    def __contains__(self, sha256: object) -> bool:
        with self._guarded():
            found = self._record.connection.execute("SELECT 1 FROM image WHERE sha256 = ?", (str(sha256),)).fetchone()
            return found is not None

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock, self._record.guard():
            yield

    def _embedder(self) -> Embedder:
        """Return the model, loading it on first use."""
        if self._model is None:
            recorded = self._record.model()
            try:
                name = self._model_name or (recorded.name if recorded else None)
                loaded = _load(name, self._device, self._precision)
            except MMError as error:
                if self._model_name is not None or recorded is None or isinstance(error, OptionError):
                    raise
                raise GalleryError(
                    f"the gallery {self.path} was built with {recorded.name}, which can't be loaded: {error}"
                ) from error
            self._model = loaded
        self._check(self._model)
        return self._model

    def _check(self, model: Embedder) -> None:
        with self._guarded():
            self._record.check_model(RecordedModel.of(model))

    def _query(self, text: str | None, image: Image | None) -> np.ndarray:
        """Return the query vector (E,)."""
        model = self._embedder()
        parts = []
        if text and text.strip():
            parts.append(checked_vectors(model.embed_text([text]), 1, model)[0])
        if image is not None:
            parts.append(checked_vectors(model.embed_images([image]), 1, model)[0])
        return np.mean(parts, axis=0)

    def _dimension(self) -> int:
        recorded = self._record.model()
        return recorded.dimension if recorded else 0

    def _current_index(self) -> Any:
        """Return the index of the record's present state, inside a read transaction."""
        stamp = self._record.stamp()
        if self._index is None or self._index_stamp != stamp:
            folder = self.path / _INDEX_FOLDER
            index = vector_index.load_index(folder, stamp)
            if index is None:
                index = vector_index.build_index(*read_vectors(self._record.connection, self._dimension()))
                try:
                    vector_index.save_index(folder, index, stamp)
                except OSError as error:  # it is only a copy: searching goes on from memory
                    logger.info("the index in %s couldn't be written: %s", folder, error)
            self._index, self._index_stamp = index, stamp
        return self._index


def _load(name: str | None, device: str | None, precision: str) -> Embedder:
    """Load a model by its name, or the default one; one that embeds."""
    import mm

    named = mm.load if name is None else partial(mm.load, name)
    model = named(device=device, precision=precision)
    model.require("embed")
    return model


def _check_k(k: int) -> None:
    if k < 1:
        raise OptionError(f"k must be at least 1, not {k}")
