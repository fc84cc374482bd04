"""Tables of images and captions: CSV, TSV, JSON lines, JSON lists and Parquet, all with one rule for their rows."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm.data.making.records import Records
from mm.data.samples import caption_language, load_json, printable
from mm.errors import DataError, UsageError

_SURPLUS = "\0"
_BATCH = 4096
_LIST = re.compile(r"""\s*\[\s*["'\]]""")  # no caption begins so


def read_csv(path: Path, language: str) -> Records:
    """Reads a table with a heading; its cells are separated by tabs where the heading has any, else by commas.

    A cell of captions holds one caption, or a JSON list of them.

    Raises:
        UsageError: it can't be read, or the heading lacks a column or has one twice.
    """
    records = Records(language)
    # Bytes that aren't UTF-8 become lone surrogates here, and reject the rows that they are in.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = "\t" if "\t" in file.readline() else ","
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, restkey=_SURPLUS, restval="")
        try:
            _check_columns([name for name in reader.fieldnames or [] if name], path)
            for row in reader:
                _add_cells(records, row, f"{path}, line {reader.line_num}")
        except csv.Error as error:
            raise UsageError(f"{path}, line {reader.line_num}: {error}") from error
    return records


def read_json_lines(path: Path, language: str) -> Records:
    """Reads a file with one JSON object a line.

    Raises:
        UsageError: the first object names no image.
    """
    records = Records(language)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = load_json(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                records.reject(where, "isn't UTF-8; save the file as UTF-8", "caption is not UTF-8")
            except (ValueError, RecursionError) as error:
                records.reject(where, f"isn't valid JSON: {error}", "malformed row")
            else:
                _add_object(records, row, where)
    return records


def read_objects(rows: list[Any], path: Path, language: str) -> Records:
    """Reads a JSON list of objects, one for each row.

    Args:
        rows: the list.
        path: the file it is from, for messages.
        language: of captions that don't say theirs.
    """
    records = Records(language)
    for number, row in enumerate(rows):
        _add_object(records, row, f"{path}[{number}]")
    return records


def read_parquet(path: Path, language: str) -> Records:
    """Reads a Parquet file, a few thousand rows at a time.

    Raises:
        UsageError: pyarrow isn't installed, the file is damaged, or it lacks a column.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(f"{path}: Parquet is read by pyarrow, which isn't there; pip install 'mm[parquet]'") from error
    records = Records(language)
    numbers = itertools.count(1)
    try:
        with ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    values = {name: _plain(value) for name, value in row.items()}
                    records.add_row(values, f"{path}, row {next(numbers)}")
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path}: can't be read: {' '.join(str(error).split())}") from error
    return records


def _check_columns(columns: Sequence[str], path: Path) -> None:
    """Refuses columns with which something would be missing, or lost."""
    for number, column in enumerate(columns):
        if column in columns[:number]:
            raise UsageError(f"{path}: has the column {printable(column)!r} twice; give each a name of its own")
    found = ", ".join(map(printable, columns)) or "none"
    if "image" not in columns:
        raise UsageError(f"{path}: has no column 'image' (columns: {found}); give one with the paths of images")
    if not any(column == "caption" or caption_language(column) for column in columns):
        raise UsageError(f"{path}: has no column 'caption' (columns: {found}); name that of the captions so")


def _add_cells(records: Records, cells: dict[str, Any], where: str) -> None:
    if surplus := cells.pop(_SURPLUS, None):
        what = f"has more cells than the heading ({len(surplus)} more); quote captions that hold separators"
        records.get(cells["image"].strip() or where).problem = DataError(f"{where}: {what}", "malformed row")
        return
    cells.pop("", None)
    for name, cell in cells.items():
        if (name == "caption" or caption_language(name)) and _LIST.match(cell):
            cells[name] = _listed(cell)
    records.add_row(cells, where)
    try:
        "".join(f"{name}{cell}" for name, cell in cells.items()).encode()
    except UnicodeEncodeError:
        problem = DataError(f"{where}: isn't UTF-8; save the table as UTF-8", "caption is not UTF-8")
        records.get(cells["image"].strip() or where).problem = problem


def _listed(cell: str) -> Any:
    """The captions of a cell that begins like a JSON list; a number, which can't be captions, where it isn't one."""
    try:
        return load_json(cell)
    except (ValueError, RecursionError):
        return 0


def _add_object(records: Records, row: Any, where: str) -> None:
    if isinstance(row, dict):
        records.add_row(row, where)
    else:
        records.reject(where, f"holds a {type(row).__name__}, expected an object", "malformed row")


def _plain(value: Any) -> Any:
    """A value of Parquet as JSON has it: numbers that aren't finite are null, dates and the like text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value if value is None or isinstance(value, str | int) else str(value)
