"""Samples from a folder of images or from a table, to make shards of."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mm.data.images import DEFAULT_MAX_PIXELS, decode_image, read_image_bytes
from mm.data.samples import Rejection, Sample, caption_language, printable
from mm.data.sources import Source, find_images, read_image_file
from mm.errors import DataError, UsageError

TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
_SURPLUS = "\0"


@dataclass
class _Row:
    """An image of a table, with what all its rows say."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    problem: DataError | None = None


class MadeSamples:
    """The samples of a folder or table, read anew each time they are iterated over.

    Args:
        path: a folder of images, with captions in the ``.txt`` or ``.json`` file beside each image, if anywhere;
            or a ``.csv`` or ``.tsv`` file with a heading. Its column ``image`` is a path relative to the table,
            ``caption`` may repeat over rows, ``language`` is ``en`` where it is missing; others are metadata, but for
            columns without a name, which are left out.
        decode: whether images are decoded, so that damaged ones are rejected.
        max_pixels: the most pixels an image may have.

    Raises:
        UsageError: there is no such path, or nothing in it to make samples of; or a table's heading lacks a column,
            has one twice, or has one whose name is meant for captions.
    """

    def __init__(self, path: str | Path, decode: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self._path = Path(path)
        self._decode = decode
        self._max_pixels = max_pixels
        self._images: list[Source] = []
        self._rows: dict[str, _Row] = {}
        name = printable(str(path))
        if self._path.is_dir():
            self._images = find_images(self._path)
            if not any(source.problem is None for source in self._images):
                raise UsageError(f"{name}: holds no images; give a folder of images, or a .csv or .tsv file")
        elif not self._path.is_file():
            raise UsageError(f"{name}: doesn't exist; give a folder of images, or a .csv or .tsv file")
        elif self._path.suffix.lower() in TABLE_SUFFIXES:
            self._rows = _read_table(self._path)
        else:
            raise UsageError(f"{name}: isn't a folder, .csv or .tsv file")

    def __len__(self) -> int:
        return len(self._images) + len(self._rows)

    def __iter__(self) -> Iterator[Sample | Rejection]:
        for source in self._images:
            if source.problem is not None:
                yield source.problem
            else:
                yield self._checked(read_image_file(source.path, source.key))
        for image, row in self._rows.items():
            yield self._checked(self._from_row(image, row))

    def _from_row(self, image: str, row: _Row) -> Sample | Rejection:
        path = self._path.parent / image
        if row.problem is not None:
            return Rejection.of(row.problem, str(self._path), printable(image))
        source, key = printable(str(path)), printable(os.path.splitext(image)[0])  # noqa: PTH122 (any text)
        try:
            return Sample(key, source, read_image_bytes(path, self._max_pixels), row.captions, dict(row.metadata))
        except UsageError:
            return Rejection(source, key, "missing image", f"{source}: doesn't exist, but {self._path} names it")
        except DataError as error:
            return Rejection.of(error, source, key)

    def _checked(self, sample: Sample | Rejection) -> Sample | Rejection:
        if self._decode and isinstance(sample, Sample):
            try:
                decode_image(sample.image, sample.source, self._max_pixels)
            except DataError as error:
                return Rejection.of(error, sample.source, sample.key)
        return sample


def samples_from(path: str | Path, decode: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS) -> MadeSamples:
    """The samples of a folder of images or a table: see ``MadeSamples``.

    Raises:
        UsageError: there is no such path, or nothing in it to make samples of.
    """
    return MadeSamples(path, decode, max_pixels)


def _read_table(path: Path) -> dict[str, _Row]:
    """The images of a table in order of first mention, each with what all its rows say."""
    rows: dict[str, _Row] = {}
    try:
        # Bytes that aren't UTF-8 become lone surrogates here, and reject the rows that they are in.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter=TABLE_SUFFIXES[path.suffix.lower()], restkey=_SURPLUS, restval="")
            _check_heading(reader.fieldnames or [], path)
            for row in reader:
                _add_row(rows, row, f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    if not rows:
        raise UsageError(f"{path}: has no rows; give one per caption")
    return rows


def _check_heading(columns: Sequence[str], path: Path) -> None:
    """Refuses a heading with which something would be missing, or lost."""
    for number, column in enumerate(columns):
        language = caption_language(column)
        if language is not None:
            raise UsageError(
                f"{path}: has a column {column!r}; give each caption a row of its own, with the caption in the column "
                f"'caption' and {language!r} in the column 'language'"
            )
        if column and column in columns[:number]:
            raise UsageError(f"{path}: has the column {printable(column)!r} twice; give each a name of its own")
    for column in ("image", "caption"):
        if column not in columns:
            found = ", ".join(map(printable, columns)) or "none"
            raise UsageError(f"{path}: has no column {column!r} (columns: {found}); name it in the first line")


def _add_row(rows: dict[str, _Row], cells: dict[str, str], where: str) -> None:
    image = cells["image"].strip()
    entry = rows.setdefault(image or where, _Row())
    caption, language = cells["caption"].strip(), cells.get("language", "").strip() or "en"
    other = cells.keys() - {"image", "caption", "language", "", _SURPLUS}
    extra = {name: cells[name] for name in cells if name in other and cells[name]}
    try:
        "".join([image, caption, language, *extra, *extra.values()]).encode()
    except UnicodeEncodeError:
        entry.problem = DataError(f"{where}: isn't UTF-8; save the table as UTF-8", "caption is not UTF-8")
    if not image:
        entry.problem = DataError(f"{where}: names no image", "no image")
    elif _SURPLUS in cells:
        entry.problem = DataError(f"{where}: has more cells than the heading; quote the caption", "malformed row")
    if caption:
        entry.captions.setdefault(language, []).append(caption)
    entry.metadata |= extra
