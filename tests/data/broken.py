"""Folders of shards, each with one fault, and what is to be found in them."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pictures import picture, some_samples, write_tar

from mm.data.shards.manifest import Manifest
from mm.data.shards.writing import write_shards

KEYS = tuple(f"key{number:03d}" for number in range(6))
BLOCK = 512
FIRST, SECOND, THIRD = (f"shard-00000{number}.tar" for number in range(3))


@dataclass(frozen=True)
class Fault:
    """A fault in one of three shards of two samples each.

    Args:
        make: breaks shards in a folder.
        reason: by which it is reported.
        source: how the name ends of what it is reported for.
        good: keys of the samples that can still be trusted.
        placed: whether there is a byte to point to.
    """

    make: Callable[[Path], None]
    reason: str
    source: str
    good: tuple[str, ...]
    placed: bool = True


def make_shards(folder: Path) -> Path:
    """Makes three good shards of two samples each."""
    write_shards(some_samples(6), folder, max_samples=2)
    return folder


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A fault in the bytes of the second shard."""

    def make(folder: Path) -> None:
        path = folder / SECOND
        path.write_bytes(change(path.read_bytes()))

    return make


def _flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def _zeroed(content: bytes) -> bytes:
    start = content.index(b"key003.json")
    return content[:start] + bytes(BLOCK) + content[start + BLOCK :]


def members_of(path: Path) -> list[tuple[str, bytes]]:
    """The members of a tar and their contents, in order."""
    with tarfile.open(path) as tar:
        return [(member.name, _content(tar, member)) for member in tar]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _rewritten(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Callable[[Path], None]:
    """A fault in the members of the second shard, which its manifest describes as it then is."""

    def make(folder: Path) -> None:
        write_tar(folder / SECOND, change(members_of(folder / SECOND)))
        (folder / "manifest.json").unlink()
        Manifest.build(folder).write(folder)

    return make


def _extra(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Callable[[Path], None]:
    """A member of the sample key002 that doesn't belong there."""

    def make(folder: Path) -> None:
        pairs = members_of(folder / SECOND)
        with tarfile.open(folder / SECOND, "w") as tar:
            for place, (member, data) in enumerate([pairs[0], (name, content), *pairs[1:]]):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                if place == 1:
                    info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info, io.BytesIO(data))
        (folder / "manifest.json").unlink()
        Manifest.build(folder).write(folder)

    return make


def _swapped(folder: Path) -> None:
    """Exchanges the images of samples of two shards, under the names of the others'."""
    one, other = members_of(folder / FIRST), members_of(folder / SECOND)
    for place, (name, _) in enumerate(one):
        if name.endswith(".png"):
            one[place], other[place] = (name, other[place][1]), (other[place][0], one[place][1])
            break
    write_tar(folder / FIRST, one)
    write_tar(folder / SECOND, other)


def _cut_sample(folder: Path) -> None:
    write_tar(
        folder / SECOND, [(name, data) for name, data in members_of(folder / SECOND) if not name.startswith("key003")]
    )


def _replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return _rewritten(lambda pairs: [(member, content if member == name else data) for member, data in pairs])


def bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


_OTHERS = (KEYS[0], KEYS[1], KEYS[4], KEYS[5])
_WITHOUT_2 = (*KEYS[:2], *KEYS[3:])

FAULTS = {
    "cut at a member's edge": Fault(
        _changed(lambda data: data[: data.index(b"key003.json")]), "shard cut short", SECOND, _OTHERS
    ),
    "cut inside a member": Fault(
        _changed(lambda data: data[: data.index(b"key003.png") + BLOCK + 20]),
        "shard cut short",
        SECOND,
        (*KEYS[:3], *KEYS[4:]),
    ),
    "zeroed header": Fault(_changed(_zeroed), "corrupt tar header", SECOND, _OTHERS),
    "altered header": Fault(
        _changed(lambda data: _flipped(data, data.index(b"key003.json"))),
        "corrupt tar header",
        SECOND,
        _OTHERS,
    ),
    "bit flipped in an image": Fault(
        _changed(lambda data: _flipped(data, data.index(b"IDAT") + 7)),
        "shard hash differs",
        SECOND,
        _OTHERS,
        placed=False,
    ),
    "members swapped between shards": Fault(_swapped, "shard hash differs", FIRST, KEYS[4:], placed=False),
    "shard larger": Fault(
        _changed(lambda data: data + bytes(BLOCK)), "shard larger than the manifest says", SECOND, _OTHERS
    ),
    "sample removed": Fault(_cut_sample, "fewer samples than the manifest says", SECOND, _OTHERS),
    "shard missing": Fault(lambda folder: (folder / SECOND).unlink(), "missing shard", SECOND, _OTHERS, placed=False),
    "shard empty": Fault(_changed(lambda _: b""), "empty shard", SECOND, _OTHERS),
    "shard is a page": Fault(
        _changed(lambda _: b"<html><body>Not found</body></html>" * 50), "not a tar", SECOND, _OTHERS
    ),
    "image removed": Fault(
        _rewritten(lambda pairs: pairs[:1] + pairs[2:] if pairs[1][0].endswith("png") else pairs[1:]),
        "no image",
        "key002",
        _WITHOUT_2,
    ),
    "same key twice": Fault(_rewritten(lambda pairs: pairs + pairs[:2]), "duplicate key", "key002", _WITHOUT_2),
    "member twice": Fault(_rewritten(lambda pairs: [pairs[0], *pairs]), "duplicate member", "key002", _WITHOUT_2),
    "members apart": Fault(
        _rewritten(lambda pairs: [pairs[0], *pairs[2:], pairs[1]]),
        "members of a sample not adjacent",
        "key002",
        _WITHOUT_2,
    ),
    "caption not UTF-8": Fault(
        _replaced("key002.json", b'{"captions": ["\xff"]}'), "caption is not UTF-8", "key002", _WITHOUT_2
    ),
    "invalid JSON": Fault(
        _replaced("key002.json", b'{"captions": ['), "caption file is not JSON", "key002", _WITHOUT_2
    ),
    "missing caption": Fault(_replaced("key002.json", b"{}"), "missing caption", "key002", _WITHOUT_2),
    "empty caption": Fault(_replaced("key002.json", b'{"captions": [" "]}'), "empty caption", "key002", _WITHOUT_2),
    "decompression bomb": Fault(_replaced("key002.png", bomb()), "too many pixels", "key002", _WITHOUT_2),
    "image cut short": Fault(_replaced("key002.png", picture()[:45]), "truncated", "key002", _WITHOUT_2),
    "path out of the folder": Fault(
        _rewritten(lambda pairs: [*pairs, ("../evil.png", picture())]), "unsafe member", "../evil", KEYS
    ),
    "absolute path": Fault(
        _rewritten(lambda pairs: [*pairs, ("/tmp/evil.png", picture())]), "unsafe member", "/tmp/evil", KEYS
    ),
    "pickle": Fault(_extra("key002.pickle", b"cos\nsystem\n."), "unsafe member", "key002", _WITHOUT_2),
    "library": Fault(_extra("key002.pyd"), "unsafe member", "key002", _WITHOUT_2),
    "compressed": Fault(_extra("key002.txt.gz", zlib.compress(bytes(100_000))), "unsafe member", "key002", _WITHOUT_2),
    "symbolic link": Fault(_extra("key002.txt", kind=tarfile.SYMTYPE), "unsafe member", "key002", _WITHOUT_2),
    "hard link": Fault(_extra("key002.txt", kind=tarfile.LNKTYPE), "unsafe member", "key002", _WITHOUT_2),
    "device": Fault(_extra("key002.txt", kind=tarfile.CHRTYPE), "unsafe member", "key002", _WITHOUT_2),
}
"""By what is wrong."""
