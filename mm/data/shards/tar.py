"""The framing of tar files, verified header by header, and the samples that members with the same key make.

Tar readers commonly end quietly at a corrupt header. Here everything that isn't a well-formed archive up to its
end marker is an error. Members are only ever located; their names never touch the file system.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mm.data.samples import printable
from mm.data.shards.archive import Archive, Window
from mm.errors import ShardError

IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"]
)
# Members that are code, hold pickled objects, or are archives or compressed themselves.
UNSAFE_SUFFIXES = frozenset(
    (
        *("pickle", "pkl", "pck", "pt", "pth", "ckpt", "joblib", "dill"),
        *("py", "pyc", "pyd", "so", "dylib", "dll", "exe", "com", "bat", "cmd", "ps1", "sh", "js", "jar", "msi", "scr"),
        *("gz", "tgz", "bz2", "xz", "lzma", "zst", "lz4", "br", "z", "zip", "7z", "rar", "tar"),
    )
)
CORRUPT = "corrupt tar header"
CUT = "shard cut short"
EMPTY = "empty shard"
NOT_A_TAR = "not a tar"

_BLOCK = 512
_RECORD = 128 * _BLOCK  # the most that writers of tar files pad them to
_ZEROS = bytes(_BLOCK)
_LONGEST_EXTENDED_HEADER = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_SIZELESS = (b"1", b"2", b"3", b"4", b"5", b"6")
# WebDataset's rule: the key ends at the first dot of the file name, and __name__ is metadata of the shard.
_KEY = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_OUTSIDE = re.compile(r"^(?:[/\\]|[A-Za-z]:[/\\])|(?:^|[/\\])\.\.(?:[/\\]|$)")
_OTHER_FILES = (
    (
        re.compile(rb"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE),
        "an HTML or XML page, as a failed download is",
    ),
    (re.compile(rb'\s*[{\[]\s*["{}\[\]]'), "JSON"),
    (re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|PK\x03\x04|7z\xbc\xaf"), "compressed; unpack it first"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|%PDF"), "a picture or document"),
)


class Member(NamedTuple):
    """A file within a tar.

    ``offset`` is where its content starts and ``size`` how long that is, ``header`` where its header starts, in bytes.
    """

    name: str
    offset: int
    size: int
    header: int
    regular: bool = True

    @property
    def unsafe(self) -> str | None:
        """Why it must not be opened; None for a plain file with a harmless name."""
        if not self.regular:
            return "isn't a plain file"
        if _OUTSIDE.search(self.name):
            return "leads out of the archive"
        _, dot, suffix = self.name.rpartition(".")
        return f"is a .{suffix.lower()} file" if dot and suffix.lower() in UNSAFE_SUFFIXES else None


@dataclass(slots=True)
class Group:
    """The neighbouring members of a tar that share a key: one sample. ``members`` maps suffix to member."""

    key: str
    start: int
    members: dict[str, Member] = field(default_factory=dict)
    duplicate: Member | None = None
    unsafe: Member | None = None

    @property
    def image(self) -> str | None:
        """The suffix of the group's image, or None unless there is exactly one."""
        suffixes = [suffix for suffix in self.members if suffix in IMAGE_SUFFIXES]
        return suffixes[0] if len(suffixes) == 1 else None

    def add(self, suffix: str, member: Member) -> None:
        """Takes a member in."""
        if suffix in self.members:
            self.duplicate = self.duplicate or member
        else:
            self.members[suffix] = member
        if member.unsafe:
            self.unsafe = self.unsafe or member

    def begins_again(self, suffix: str) -> bool:
        """Whether a member of the same key is the first of another sample, because this one has begun alike."""
        return len(self.members) > 1 and next(iter(self.members)) == suffix


class DamagedTarError(ShardError):
    """A tar that isn't well-formed from some point on. ``member`` is the file that was cut, where known."""

    def __init__(self, message: str, reason: str, offset: int, member: str | None = None) -> None:
        super().__init__(message, reason, offset)
        self.member = member


def walk(source: Path | Archive) -> Iterator[Member]:
    """Lists the members of a tar, checking every header and the end marker.

    Args:
        source: an uncompressed tar (POSIX, pax or GNU).

    Returns:
        Members in archive order; directories are left out.

    Raises:
        ShardError: at the first damage, after the members before it; or the file can't be opened.
    """
    if isinstance(source, Archive):
        yield from _walk(source)
    else:
        with Archive(source) as archive:
            yield from _walk(archive)


def groups(source: Path | Archive) -> Iterator[Group]:
    """Groups the members of a tar into samples.

    At damage, the sample that was being read is kept only if nothing of it can be missing.

    Raises:
        ShardError: at the first damage, after the samples before it; or the file can't be opened.
    """
    current: Group | None = None
    try:
        for member in walk(source):
            split = split_name(member.name)
            if split is None:
                if not member.unsafe:
                    continue
                split = member.name, ""
            key, suffix = split
            if current is None or key != current.key or current.begins_again(suffix):
                if current is not None:
                    yield current
                current = Group(key, member.header)
            current.add(suffix, member)
    except DamagedTarError as damage:
        cut = split_name(damage.member) if damage.member else None
        if current is not None and cut is not None and cut[0] != current.key:
            yield current
        raise
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str] | None:
    """Splits a member's name into key and lower-case suffix; None for hidden files and shard metadata."""
    if (name.startswith("__") and _META.match(name)) or name.rpartition("/")[2].startswith("."):
        return None
    match = _KEY.fullmatch(name)
    return (match.group(1), match.group(2).lower()) if match else (name, "")


def _walk(archive: Archive) -> Iterator[Member]:
    window, end, path = Window(archive), archive.size, archive.name
    position = 0
    extended: dict[str, str] = {}
    defaults: dict[str, str] = {}
    _check_start(window.read(0, _BLOCK), path)
    while True:
        header = window.read(position, _BLOCK)
        if len(header) < _BLOCK:
            raise DamagedTarError(f"{path}: cut short at byte {end}: the end-of-archive marker is missing", CUT, end)
        if header == _ZEROS:
            _check_end(archive, position)
            return
        name, size, kind = _parse(header, position, path)
        start = position + _BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if size > _LONGEST_EXTENDED_HEADER:
                raise _corrupt(path, position, f"{size} bytes long")
            content = window.read(start, size)
            if len(content) < size:
                raise DamagedTarError(f"{path}: cut short at byte {end}, within a header", CUT, end)
            if kind == b"L":
                extended["path"] = content.rstrip(b"\0").decode("utf-8", "backslashreplace")
            elif kind == b"g":
                defaults.update(_pax_records(content, position, path))
            elif kind == b"x":
                extended.update(_pax_records(content, position, path))
        else:
            if extended or defaults:
                pax = defaults | extended
                extended = {}
                name = pax.get("path", name)
                if "size" in pax:
                    size = _pax_size(pax["size"], position, path)
            name = printable(name)
            if not name:
                raise _corrupt(path, position, "no name")
            if kind in _SIZELESS:
                size = 0
            if start + size > end:
                raise DamagedTarError(f"{path}: cut short at byte {end}, within {name}", CUT, end, name)
            if kind != b"5" and not name.endswith("/"):
                yield Member(name, start, size, position, kind in _REGULAR)
        position = start + -(-size // _BLOCK) * _BLOCK


def _check_start(head: bytes, path: str) -> None:
    """Tells what is no tar at all from a tar that is damaged."""
    if not head:
        raise DamagedTarError(f"{path}: is empty (0 bytes); get it again", EMPTY, 0)
    kind = next((kind for signature, kind in _OTHER_FILES if signature.match(head)), None)
    if kind is None and len(head) == _BLOCK and head[257:262] != b"ustar" and head.count(0) < _BLOCK // 4:
        kind = "something else"
    if kind is not None and head[257:262] != b"ustar":
        raise DamagedTarError(f"{path}: isn't a tar but {kind}; get it again", NOT_A_TAR, 0)


def _parse(header: bytes, position: int, path: str) -> tuple[str, int, bytes]:
    """Name, size in bytes and type of a header block, after verifying its checksum."""
    stated = header[148:156]
    if _number(stated) != sum(header) - sum(stated) + 8 * 32:
        raise _corrupt(path, position, "its checksum is wrong")
    size = _number(header[124:136])
    if size is None:
        raise _corrupt(path, position, "no valid size")
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
        if not length.isdigit() or len(length) > 9 or not len(length) + 3 < int(length) <= len(content):
            raise _corrupt(path, position, "bad extended record")
        keyword, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[keyword.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        content = content[int(length) :]
    return records


def _pax_size(value: str, position: int, path: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise _corrupt(path, position, "no valid size")
    return int(value)


def _check_end(archive: Archive, position: int) -> None:
    """Checks that a second block of zeros follows, and nothing else up to the end of the file."""
    rest = archive.read(position + _BLOCK, _BLOCK)
    if len(rest) < _BLOCK and not rest.strip(b"\0"):
        message = f"{archive.name}: cut short at byte {archive.size}, within the end-of-archive marker"
        raise DamagedTarError(message, CUT, archive.size)
    offset = position + _BLOCK
    while rest:
        if rest.strip(b"\0"):
            raise _corrupt(archive.name, position, "zeros before data")
        offset += len(rest)
        rest = archive.read(offset, 1 << 20)
    if archive.size > position + 2 * _BLOCK + _RECORD:
        message = (
            f"{archive.name}: {archive.size - position:,} bytes of zeros from byte {position} on, more than pad an "
            "archive, as in a file that was made before all of it came; get it again"
        )
        raise DamagedTarError(message, CUT, position)


def _corrupt(path: str, position: int, what: str) -> DamagedTarError:
    return DamagedTarError(f"{path}: corrupt tar header at byte {position}: {what}", CORRUPT, position)
