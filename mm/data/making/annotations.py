"""Files that name images and say things about them: which layout one has is told from its content."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm.data.images import sniff_format
from mm.data.making.records import Records
from mm.data.making.tables import read_csv, read_json_lines, read_objects, read_parquet
from mm.data.samples import load_json, printable
from mm.errors import DataError, UsageError

LAYOUTS = (
    "a table (CSV, TSV, JSON lines, a JSON list or Parquet) with 'image' and 'caption', COCO captions, "
    "Karpathy's JSON, or a token file of Flickr8k or Flickr30k"
)
_HEAD = 1 << 16
_TOKEN = re.compile(r"([^\t#]+\.\w+)#([^\t ]*)[\t ](.*)")  # photo.jpg#0, and a caption after a tab or a space
_OTHER_FILES = {b"\x1f\x8b": "gzip", b"PK": "ZIP", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def read_records(path: Path, language: str = "en") -> Records:
    """Reads a file that names images.

    Args:
        path: a table (CSV, TSV, JSON lines, a JSON list or Parquet), COCO's captions, Karpathy's JSON, or a token file
            of Flickr8k or Flickr30k.
        language: of captions that don't say theirs.

    Raises:
        UsageError: it can't be read, has no layout that is known, or names no images; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        records = _reader(head, path)(path, language)
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    if not len(records):
        raise UsageError(f"{path}: has no rows; give one per caption")
    return records


def _reader(head: bytes, path: Path) -> Callable[[Path, str], Records]:
    """Tells by the beginning of a file how it is read."""
    if head.startswith(b"PAR1"):
        return read_parquet
    kind = next((name for mark, name in _OTHER_FILES.items() if head.startswith(mark)), None)
    if kind is not None:
        raise _unknown(path, f"is a {kind} file; unpack it first, or give {LAYOUTS}")
    if head[257:262] == b"ustar":
        raise _unknown(path, "is a tar; let its name end in .tar")
    if sniff_format(head) is not None:
        raise _unknown(path, f"is an image; give the folder it lies in, or {LAYOUTS}")
    if not head.strip():
        raise _unknown(path, f"is empty; give {LAYOUTS}")
    if b"\0" in head:
        raise _unknown(path, f"isn't text; give {LAYOUTS}")
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text[0] in "{[":
        return read_json
    first = text.splitlines()[0]
    if _TOKEN.match(first):
        return read_tokens
    if re.search(r"[\t,]", first):
        return read_csv
    raise _unknown(path, f"has no layout that mm knows: it begins with {printable(first[:60])!r}; give {LAYOUTS}")


def read_tokens(path: Path, language: str) -> Records:
    """Reads a token file: in each line an image's name, ``#`` and a number, a tab or space, and a caption."""
    records = Records(language)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig").strip("\r\n")
            except UnicodeDecodeError:
                records.reject(where, "isn't UTF-8; save the file as UTF-8", "caption is not UTF-8")
                continue
            match = _TOKEN.fullmatch(text)
            if match is not None:
                records.get(match[1]).add(match[3], language, where)
            elif text.strip():
                records.reject(where, "isn't a name with #, a number and a caption", "malformed row")
    return records


def read_json(path: Path, language: str) -> Records:
    """Reads COCO's captions, Karpathy's JSON, a list of objects, or JSON lines.

    Raises:
        UsageError: it is something else.
    """
    with path.open("rb") as file:
        first = _parsed(file.readline())
        rest = isinstance(first, dict) and bool(file.read(_HEAD).strip())
    if isinstance(first, dict) and (rest or "images" not in first):
        if rest or "image" in first:
            return read_json_lines(path, language)
        raise _unknown(path, f"holds an object with {_names(first)}; give {LAYOUTS}")
    try:
        document = first if isinstance(first, dict | list) else load_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: isn't valid JSON: {error}") from None
    if isinstance(document, list):
        return read_objects(document, path, language)
    images = document.get("images")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise _unknown(path, f"holds an object with {_names(document)}; give {LAYOUTS}")
    if isinstance(document.get("annotations"), list):
        return _coco(images, document["annotations"], path, language)
    if any("sentences" in image for image in images):
        return _karpathy(images, path, language)
    raise _unknown(
        path, "has images, but neither annotations (COCO) nor sentences (Karpathy); give a file with captions"
    )


def _coco(images: list[dict[str, Any]], annotations: list[Any], path: Path, language: str) -> Records:
    """COCO's captions. What else the file says about an image is metadata."""
    records, names = Records(language), dict[Any, str]()
    for number, image in enumerate(images):
        name = image.get("file_name")
        if isinstance(name, str) and name and isinstance(image.get("id"), int | str):
            names[image["id"]] = name
            records.get(name).metadata.update({key: value for key, value in image.items() if key != "file_name"})
        else:
            records.reject(f"{path}, images[{number}]", "has no 'id' and 'file_name'", "no image")
    captioned = [note for note in annotations if isinstance(note, dict) and isinstance(note.get("caption"), str)]
    if annotations and not captioned:
        raise UsageError(f"{path}: its annotations hold no captions; give COCO's captions_*.json, not instances_*.json")
    for note in captioned:
        image_id = note.get("image_id")
        if isinstance(image_id, int | str) and image_id in names:
            records.get(names[image_id]).add(note["caption"], language, str(path))
        else:
            records.reject(f"{path}, image_id {image_id}", "isn't the id of an image there", "caption without an image")
    return records


def _karpathy(images: list[dict[str, Any]], path: Path, language: str) -> Records:
    """Karpathy's JSON. ``split`` and what else it says about an image is metadata."""
    records = Records(language)
    used = ("sentences", "sentids", "filename", "filepath")
    for number, image in enumerate(images):
        where = f"{path}, images[{number}]"
        name, folder, sentences = image.get("filename"), image.get("filepath") or "", image.get("sentences") or []
        if not isinstance(name, str) or not name or not isinstance(folder, str) or not isinstance(sentences, list):
            records.reject(where, "has no 'filename' and 'sentences'", "no image")
            continue
        record = records.get(f"{folder}/{name}" if folder else name)
        record.metadata.update({key: value for key, value in image.items() if key not in used})
        try:
            raw = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
            record.add(raw, language, where)
        except DataError as error:
            record.problem = error
    return records


def _parsed(line: bytes) -> Any:
    """The JSON value of a line; None where there isn't exactly one in it."""
    try:
        return load_json(line)
    except (ValueError, RecursionError):
        return None


def _names(document: dict[str, Any]) -> str:
    return ", ".join(repr(printable(name)) for name in list(document)[:8]) or "nothing"


def _unknown(path: Path, what: str) -> UsageError:
    return UsageError(f"{path}: {what}")
