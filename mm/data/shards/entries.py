"""What a manifest says about each shard, and how that is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.errors import DataError, UsageError

KIND = "wids-shard-index-v1"

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ManifestEntry:
    """What is known about one shard.

    Args:
        url: its name relative to the manifest.
        path: where it lies, or will lie once it is fetched.
        nsamples: number of samples, with those that can't be used.
        bytes: size of the file in bytes, or None where the manifest doesn't say.
        sha256: hash of the file in hexadecimal, or None where the manifest doesn't say.
        remote: its full address, or None where it is local.
    """

    url: str
    path: Path
    nsamples: int
    bytes: int | None = None
    sha256: str | None = None
    remote: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.remote or str(self.path)


def read_entries(path: Path) -> list[ManifestEntry]:
    """Reads the entries of a shard index, whose shards lie in its folder.

    Raises:
        UsageError: there is no such file.
        DataError: it isn't a shard index, or an entry is wrong; the message names file and key.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: doesn't exist; `mm shards make` writes one") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}", "damaged manifest") from error
    return parse_entries(content, str(path), path.parent)


def parse_entries(content: bytes, name: str, base: Path) -> list[ManifestEntry]:
    """Reads the entries of a shard index.

    Args:
        content: of the file.
        name: the file, for messages.
        base: the folder that the shards lie in, or will lie in.

    Raises:
        DataError: it isn't a shard index, or an entry is wrong; the message names file and key.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _wrong(name, f"isn't valid JSON: {error}") from None
    entries = [_entry(item, index, name, base) for index, item in enumerate(_shardlist(document, name))]
    _check_unique((entry.url for entry in entries), name)
    return entries


def _shardlist(document: Any, name: str) -> list[Any]:
    if not isinstance(document, dict):
        raise _wrong(name, f"holds a {type(document).__name__}, expected an object")
    if document.get("__kind__") != KIND:
        raise _wrong(name, f"'__kind__' is {document.get('__kind__')!r}, expected {KIND!r}")
    if document.get("wids_version", 1) != 1:
        raise _wrong(name, f"'wids_version' is {document['wids_version']!r}, expected 1")
    shardlist = document.get("shardlist")
    if not isinstance(shardlist, list) or not shardlist:
        raise _wrong(name, "'shardlist' must be a list with at least one shard")
    return shardlist


def _entry(item: Any, index: int, name: str, base: Path) -> ManifestEntry:
    where = f"shardlist[{index}]"
    if not isinstance(item, dict):
        raise _wrong(name, f"{where} must be an object")
    url = item.get("url")
    if not isinstance(url, str) or not url:
        raise _wrong(name, f"{where}['url'] must be the name of a shard")
    parts = url.split("/")
    if "\\" in url or "\0" in url or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise _wrong(name, f"{where}['url'] is {url!r}: a shard must lie within the manifest's folder")
    for key, required in (("nsamples", True), ("bytes", False)):
        value = item.get(key)
        if value is None and not required:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _wrong(name, f"{where}[{key!r}] is {value!r}, expected a whole number")
    sha256 = item.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise _wrong(name, f"{where}['sha256'] is {sha256!r}, expected 64 hexadecimal digits")
    return ManifestEntry(url, base.joinpath(*parts), item["nsamples"], item.get("bytes"), sha256)


def _check_unique(urls: Iterable[str], name: str) -> None:
    seen: set[str] = set()
    for url in urls:
        if url in seen:
            raise _wrong(name, f"'shardlist' names {url!r} twice")
        seen.add(url)


def _wrong(name: str, what: str) -> DataError:
    return DataError(f"{name}: {what}; `mm shards make` writes a valid one", "damaged manifest")
