"""The framing of tar files, verified header by header.

Tar readers commonly end quietly at a corrupt header. Here everything that isn't a well-formed archive up to its
end marker is an error. Members are only ever located; their names never touch the file system.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mm.data.samples import printable
from mm.errors import ShardError

IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"]
)
CORRUPT = "corrupt tar header"
CUT = "shard cut short"

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_LONGEST_EXTENDED_HEADER = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
# WebDataset's rule: the key ends at the first dot of the file name, and __name__ is metadata of the shard.
_KEY = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a tar: its name, where its content starts and how long it is, in bytes."""

    name: str
    offset: int
    size: int
    regular: bool = True


@dataclass(slots=True)
class Group:
    """The neighbouring members of a tar that share a key: one sample. ``members`` maps suffix to member."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    duplicate: str | None = None

    @property
    def image(self) -> str | None:
        """The suffix of the group's image, or None unless there is exactly one."""
        suffixes = [suffix for suffix in self.members if suffix in IMAGE_SUFFIXES]
        return suffixes[0] if len(suffixes) == 1 else None


class DamagedTarError(ShardError):
    """A tar that isn't well-formed from some point on. ``member`` is the file that was cut, where known."""

    def __init__(self, message: str, reason: str, member: str | None = None) -> None:
        super().__init__(message, reason)
        self.member = member


def walk(path: Path) -> Iterator[Member]:
    """Lists the members of a tar, checking every header and the end marker.

    Args:
        path: an uncompressed tar (POSIX, pax or GNU).

    Returns:
        Members in archive order; directories are left out.

    Raises:
        ShardError: at the first damage, after the members before it; or the file can't be opened.
    """
    try:
        with path.open("rb") as file:
            yield from _walk(file, str(path))
    except FileNotFoundError:
        raise ShardError(f"{path}: doesn't exist", "missing shard") from None
    except OSError as error:
        raise ShardError(f"{path}: can't be read: {error.strerror}", "unreadable shard") from error


def groups(path: Path) -> Iterator[Group]:
    """Groups the members of a tar into samples.

    At damage, the sample that was being read is kept only if nothing of it can be missing.

    Raises:
        ShardError: at the first damage, after the samples before it; or the file can't be opened.
    """
    current: Group | None = None
    previous: Group | None = None
    try:
        for member in walk(path):
            split = split_name(member.name)
            if split is None:
                continue
            key, suffix = split
            if current is None or key != current.key:
                if current is not None:
                    yield current
                previous, current = current, Group(key)
            if suffix in current.members:
                current.duplicate = member.name
            current.members[suffix] = member
    except DamagedTarError as damage:
        cut = split_name(damage.member) if damage.member else None
        if current is not None and (cut[0] != current.key if cut else _whole(current, previous)):
            yield current
        raise
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str] | None:
    """Splits a member's name into key and lower-case suffix; None for hidden files and shard metadata."""
    if _META.match(name) or name.rpartition("/")[2].startswith("."):
        return None
    match = _KEY.fullmatch(name)
    return (match.group(1), match.group(2).lower()) if match else (name, "")


def _whole(group: Group, previous: Group | None) -> bool:
    """Whether a sample can be taken as complete though the archive is damaged right after it."""
    if group.image is None:
        return False
    suffixes = group.members.keys()
    return "json" in suffixes or ("txt" in suffixes and previous is not None and suffixes == previous.members.keys())


def _walk(file: BinaryIO, path: str) -> Iterator[Member]:
    end = file.seek(0, 2)
    position = 0
    extended: dict[str, str] = {}
    defaults: dict[str, str] = {}
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise DamagedTarError(f"{path}: cut short at byte {end}: the end-of-archive marker is missing", CUT)
        if header == _ZEROS:
            _check_end(file, position, path)
            return
        name, size, kind = _parse(header, position, path)
        start = position + _BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if size > _LONGEST_EXTENDED_HEADER:
                raise DamagedTarError(f"{path}: corrupt tar header at byte {position}: {size} bytes long", CORRUPT)
            content = file.read(size)
            if len(content) < size:
                raise DamagedTarError(f"{path}: cut short at byte {end}, within a header", CUT)
            if kind == b"L":
                extended["path"] = content.rstrip(b"\0").decode("utf-8", "backslashreplace")
            elif kind == b"g":
                defaults.update(_pax_records(content, position, path))
            elif kind == b"x":
                extended.update(_pax_records(content, position, path))
        else:
            pax = defaults | extended
            extended = {}
            name = printable(pax.get("path", name))
            if "size" in pax:
                size = _pax_size(pax["size"], position, path)
            regular = kind in _REGULAR
            if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                size = 0
            if start + size > end:
                raise DamagedTarError(f"{path}: cut short at byte {end}, within {name}", CUT, name)
            if kind != b"5" and not name.endswith("/"):
                yield Member(name, start, size, regular)
        position = start + -(-size // _BLOCK) * _BLOCK


def _parse(header: bytes, position: int, path: str) -> tuple[str, int, bytes]:
    """Name, size in bytes and type of a header block, after verifying its checksum."""
    checksum = _number(header[148:156])
    if checksum != sum(header) - sum(header[148:156]) + 8 * 32:
        hint = " (a compressed file? unpack it first)" if header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7") else ""
        raise DamagedTarError(f"{path}: corrupt tar header at byte {position}{hint}", CORRUPT)
    size = _number(header[124:136])
    if size is None:
        raise DamagedTarError(f"{path}: corrupt tar header at byte {position}: no valid size", CORRUPT)
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return (f"{prefix}/{name}" if prefix else name), size, header[156:157]


def _number(digits: bytes) -> int | None:
    """A number field: octal digits, or base 256 where the top bit is set. None if it is neither."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    try:
        value = int(digits.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return None
    return value if value >= 0 else None


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _pax_records(content: bytes, position: int, path: str) -> dict[str, str]:
    records: dict[str, str] = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not len(length) + 3 < int(length) <= len(content):
            raise DamagedTarError(f"{path}: corrupt tar header at byte {position}: bad extended record", CORRUPT)
        keyword, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[keyword.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        content = content[int(length) :]
    return records


def _pax_size(value: str, position: int, path: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise DamagedTarError(f"{path}: corrupt tar header at byte {position}: no valid size", CORRUPT)
    return int(value)


def _check_end(file: BinaryIO, position: int, path: str) -> None:
    """Checks that a second block of zeros follows, and nothing else up to the end of the file."""
    second = file.read(_BLOCK)
    if len(second) < _BLOCK and not second.strip(b"\0"):
        raise DamagedTarError(f"{path}: cut short within the end-of-archive marker", CUT)
    rest = second
    while rest:
        if rest.strip(b"\0"):
            raise DamagedTarError(f"{path}: corrupt tar header at byte {position}: zeros before data", CORRUPT)
        rest = file.read(1 << 20)
