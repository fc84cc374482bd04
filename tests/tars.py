"""Tar files put together member by member, and taken apart, to damage them."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path

from encoding import encode
from PIL import Image

from mm.data.samples import Sample
from mm.data.shards.manifest import Manifest

BLOCK = 512
END = bytes(2 * BLOCK)


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One member of a tar: its header, and its content up to the end of a block."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def tar(members: list[bytes]) -> bytes:
    """A tar of members."""
    return b"".join(members) + END


def noise(number: int, image_format: str = "PNG") -> bytes:
    """A small image unlike others."""
    image = Image.effect_noise((8 + 5 * number, 9), 80).convert("RGB")
    image.putpixel((0, 0), (number, 0, 0))
    return encode(image, image_format)


def sample_members(key: str, number: int, image_format: str = "PNG") -> list[bytes]:
    """Three members: an image, its caption, and a number as metadata."""
    return [
        member(f"{key}.{image_format.lower()}", noise(number, image_format)),
        member(f"{key}.txt", f"picture of {key}".encode()),
        member(f"{key}.json", json.dumps({"number": number}).encode()),
    ]


def unpack(sample: list[bytes]) -> dict[str, bytes]:
    """The contents of members by name, as Python's own reader sees them."""
    with tarfile.open(fileobj=BytesIO(tar(sample))) as file:
        return {info.name: file.extractfile(info).read() for info in file}  # type: ignore[union-attr]


def facts(sample: Sample) -> tuple[object, ...]:
    """Everything of a sample but where it came from."""
    return sample.key, sample.image, sample.captions, sample.metadata


def write_folder(folder: Path, shards: dict[str, list[bytes]]) -> Manifest:
    """Writes shards of members with their manifest."""
    folder.mkdir(exist_ok=True)
    for name, members in shards.items():
        (folder / name).write_bytes(tar(members))
    Manifest.build(folder).write(folder)
    return Manifest.read(folder)
