"""Adding images to a gallery: what is new is embedded, everything of one batch is committed together."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mm.errors import DataError, GalleryError, ImageError
from mm.search.items import AddReport, Embedder, Entry, make_thumbnail
from mm.search.record import Record, RecordedModel
from mm.search.rows import vector_fault
from mm.search.words import forget_captions, index_captions

if TYPE_CHECKING:
    from PIL.Image import Image

_PIXELS_AT_ONCE = 64_000_000
_ATTEMPTS = 5
_UNIT_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Pending:
    """An entry ready to be written: checked, hashed, and as the database will hold it."""

    sha256: str
    entry: Entry
    uri: str
    captions: str
    metadata: str

    @classmethod
    def of(cls, entry: Entry, sha256: str) -> Pending:
        """Check an entry and translate it.

        Raises:
            DataError: when captions or metadata can't be recorded.
        """
        uri = as_text(entry.uri) or f"sha256:{sha256}"
        try:
            captions = {
                as_text(language): [as_text(text) for text in group] for language, group in entry.captions.items()
            }
            if any(isinstance(group, str) for group in entry.captions.values()):
                raise TypeError("each language needs a list of captions")
            recorded = [json.dumps(captions, ensure_ascii=False), json.dumps(dict(entry.metadata), sort_keys=True)]
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{uri}: captions and metadata must be what JSON can hold ({error})", "unusable captions or metadata"
            ) from error
        return cls(sha256, entry, uri, *recorded)


@dataclass(frozen=True)
class _Prepared:
    vector: bytes
    thumbnail: bytes


class _RemovedMeanwhileError(Exception):
    """Another process removed an image that this batch took for known."""


class Adder:
    """Writes batches of entries into a record.

    Args:
        record: the gallery's.
        model: returns the model that embeds new images; called only when there are any.
        on_reject: is told of each entry whose image can't be decoded; when None, the error is raised.
    """

    def __init__(
        self,
        record: Record,
        model: Callable[[], Embedder],
        on_reject: Callable[[Entry, ImageError], None] | None = None,
    ) -> None:
        self.record = record
        self.model = model
        self.on_reject = on_reject

    def write(self, batch: Sequence[Pending]) -> AddReport:
        """Embed what is new in a batch and commit all of it in one transaction.

        Raises:
            GalleryError: when the model doesn't fit, or gives unusable vectors.
            ImageError: for an image that can't be decoded, unless rejections are taken.
            OutputError: when the gallery can't be written.
        """
        prepared: dict[str, _Prepared] = {}
        rejected = 0
        for _ in range(_ATTEMPTS):
            with self.record.guard():
                known = self._sound(batch)
            missing = [item for item in batch if item.sha256 not in known | prepared.keys()]
            failed = self._prepare(missing, prepared)
            rejected += sum(item.sha256 in failed for item in batch)
            batch = [item for item in batch if item.sha256 not in failed]
            try:
                return self._commit(batch, prepared) + AddReport(rejected=rejected)
            except _RemovedMeanwhileError:
                continue
        raise GalleryError(f"the gallery {self.record.folder} keeps changing under this command: run it alone")

    def _sound(self, batch: Sequence[Pending]) -> set[str]:
        """Return which contents of a batch are recorded with an undamaged vector."""
        run = self.record.connection.execute
        model = self.record.model()
        known = set()
        for item in batch:
            row = run("SELECT vector, vector_crc32 FROM image WHERE sha256 = ?", (item.sha256,)).fetchone()
            if row and model and not vector_fault(row[0], row[1], model.dimension):
                known.add(item.sha256)
        return known

    def _prepare(self, items: Sequence[Pending], prepared: dict[str, _Prepared]) -> set[str]:
        """Embed images, a bounded number of decoded pixels at a time; return those that can't be decoded."""
        failed: set[str] = set()
        waiting: dict[str, Image] = {}
        for item in items:
            if item.sha256 in waiting or item.sha256 in prepared:
                continue
            try:
                image = item.entry.image() if callable(item.entry.image) else item.entry.image
            except ImageError as error:
                if self.on_reject is None:
                    raise
                self.on_reject(item.entry, error)
                failed.add(item.sha256)
                continue
            waiting[item.sha256] = image
            if sum(image.width * image.height for image in waiting.values()) > _PIXELS_AT_ONCE:
                self._embed(waiting, prepared)
                waiting = {}
        self._embed(waiting, prepared)
        return failed

    def _embed(self, waiting: Mapping[str, Image], prepared: dict[str, _Prepared]) -> None:
        if not waiting:
            return
        model = self.model()
        vectors = checked_vectors(model.embed_images(list(waiting.values())), len(waiting), model)
        for (sha256, image), vector in zip(waiting.items(), vectors, strict=True):
            prepared[sha256] = _Prepared(vector.tobytes(), make_thumbnail(image))

    def _commit(self, batch: Sequence[Pending], prepared: Mapping[str, _Prepared]) -> AddReport:
        report = AddReport()
        left: set[int] = set()
        with self.record.transaction():
            if prepared:
                self.record.set_model(RecordedModel.of(self.model()))
            for item in batch:
                report += self._put(item, prepared.get(item.sha256), left)
            replaced = delete_orphans(self.record, left)
            if prepared or replaced:
                self.record.change_stamp()
        return report + AddReport(replaced=replaced)

    def _put(self, item: Pending, prepared: _Prepared | None, left: set[int]) -> AddReport:
        """Write one entry; note in ``left`` the image whose uri it took."""
        run = self.record.connection.execute
        row = run("SELECT id, captions, metadata FROM image WHERE sha256 = ?", (item.sha256,)).fetchone()
        if row is None:
            if prepared is None:
                raise _RemovedMeanwhileError
            now = datetime.now(UTC).isoformat(timespec="seconds")
            crc = zlib.crc32(prepared.vector)
            image = run(
                "INSERT INTO image (sha256, uri, vector, vector_crc32, added_at, captions, metadata, thumbnail) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (item.sha256, item.uri, prepared.vector, crc, now, item.captions, item.metadata, prepared.thumbnail),
            ).lastrowid
            assert image is not None
            index_captions(self.record.connection, image, json.loads(item.captions))
            self._locate(item.uri, image, left)
            return AddReport(added=1)
        image = row[0]
        changed = self._locate(item.uri, image, left)
        if prepared is not None and self._renew_vector(image, prepared):
            changed = True
        if item.captions not in ("{}", row[1]):
            run("UPDATE image SET captions = ? WHERE id = ?", (item.captions, image))
            index_captions(self.record.connection, image, json.loads(item.captions))
            changed = True
        if item.metadata not in ("{}", row[2]):
            run("UPDATE image SET metadata = ? WHERE id = ?", (item.metadata, image))
            changed = True
        return AddReport(updated=1) if changed else AddReport(unchanged=1)

    def _renew_vector(self, image: int, prepared: _Prepared) -> bool:
        """Replace a damaged vector; leave a sound one, which another process may have written just now."""
        run = self.record.connection.execute
        vector, crc = run("SELECT vector, vector_crc32 FROM image WHERE id = ?", (image,)).fetchone()
        if not vector_fault(vector, crc, len(prepared.vector) // 4):
            return False
        values = (prepared.vector, zlib.crc32(prepared.vector), prepared.thumbnail, image)
        run("UPDATE image SET vector = ?, vector_crc32 = ?, thumbnail = ? WHERE id = ?", values)
        return True

    def _locate(self, uri: str, image: int, left: set[int]) -> bool:
        """Record that an image is found at a uri; return whether that is news."""
        run = self.record.connection.execute
        before = run("SELECT image FROM location WHERE uri = ?", (uri,)).fetchone()
        if before and before[0] == image:
            return False
        if before:
            left.add(before[0])
        run("INSERT OR REPLACE INTO location VALUES (?, ?)", (uri, image))
        run("UPDATE image SET uri = ? WHERE id = ?", (uri, image))
        return True


def delete_orphans(record: Record, images: set[int]) -> int:
    """Delete those of the images that no uri leads to any more, inside a transaction; name the others by one they have.

    Returns:
        The number of images deleted.
    """
    run = record.connection.execute
    deleted = 0
    for image in images:
        uris = [uri for (uri,) in run("SELECT uri FROM location WHERE image = ? ORDER BY uri", (image,))]
        if uris:
            run(
                "UPDATE image SET uri = ? WHERE id = ? AND uri NOT IN (SELECT uri FROM location WHERE image = id)",
                (uris[0], image),
            )
        else:
            deleted += run("DELETE FROM image WHERE id = ?", (image,)).rowcount
            forget_captions(record.connection, image)
    return deleted


def checked_vectors(vectors: np.ndarray, count: int, model: Embedder) -> np.ndarray:
    """Return a model's vectors as (count, E) float32, contiguous.

    Raises:
        GalleryError: when they have another shape, or aren't finite and of unit length.
    """
    vectors = np.ascontiguousarray(vectors, dtype="<f4")
    if vectors.shape != (count, model.dimension):
        raise GalleryError(f"{model.name} gave vectors of shape {vectors.shape} instead of {(count, model.dimension)}")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not np.all(np.abs(lengths - 1) <= _UNIT_TOLERANCE):
        raise GalleryError(f"{model.name} gave vectors that are not of unit length: check its weights")
    return vectors


def as_text(value: Any) -> str:
    """Return text that UTF-8 can hold: the undecodable bytes of a file name become escapes."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
