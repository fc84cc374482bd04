"""Sources to make shards of, and what came of them."""

from __future__ import annotations

import errno
import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from mm.data.making.packing import Packing
from mm.data.making.reworking import Rework
from mm.data.making.selection import Selection
from mm.data.making.shards import Made, make_shards
from mm.data.making.splitting import Splits
from mm.data.samples import Sample, Tally
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import read_shard
from mm.data.shards.writing import write_shards

SPLITS = Splits({"train": 0.6, "val": 0.4})


PARTS = (Rework(max_side=32), Selection(languages=["en"]), Packing("x", 3, drop_duplicates=True, splits=SPLITS))
"""Options with which all of that comes about."""


def photo(number: int, image_format: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """An image file that is unlike those of other numbers."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.paste((number * 37 % 256, number * 91 % 256, number // 7 % 256), (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def mixed_sources(folder: Path, photos: int = 12) -> list[Path]:
    """A folder of photos, a table, shards and another shard, with all that can become of an item.

    Returns:
        The sources: ``photos + 1``, 6, 10 and 2 items.
    """
    (folder / "photos" / "sub").mkdir(parents=True)
    names = [f"{'sub/' if number % 3 else ''}photo{number}.png" for number in range(photos)]
    for number, name in enumerate(names):
        path = folder / "photos" / name
        path.write_bytes(photo(number, size=(40 + number, 30)))
        path.with_suffix(".txt").write_text(f"photo {number}")
    (folder / "photos" / "photo6.txt").write_bytes(b"caf\xe9")
    (folder / "photos" / "cut.jpg").write_bytes(photo(6, "JPEG", (64, 64))[:600])
    rows = [f"photos/{names[number]},row {number}" for number in (1, 1, 3, 5, 7)]
    table = ["image,caption", *rows, "gone.png,x", "photos/cut.jpg,y"]
    (folder / "table.csv").write_text("\n".join(table) + "\n")
    samples = [
        Sample(f"key{number}", "made", photo(200 + number), {"en": [f"number {number}"]}, {"number": number})
        for number in range(10)
    ]
    samples[3] = Sample("key3", "made", photo(250), {"zh": ["狗"]})
    write_shards(samples, folder / "shards", max_samples=4)
    members = {"key0.png": photo(251), "key0.txt": b"x", "key0.cls": b"3", "empty.png": b"", "empty.cls": b"4"}
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return [folder / "photos", folder / "table.csv", folder / "shards", folder / "odd.tar"]


def samples_in(folder: Path) -> dict[str, Sample]:
    """The samples of a folder of shards, by key."""
    items = [item for entry in Manifest.read(folder).shards for item in read_shard(entry.path, entry)]
    samples = {item.key: item for item in items if isinstance(item, Sample)}
    assert len(samples) == len(items)
    return samples


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(sources: Path | list[Path], out: Path, *parts: Any, tally: Tally | None = None, **options: Any) -> Made:
    """``make_shards`` with a tally that must stay clean unless one is given."""
    counted = Tally() if tally is None else tally
    given = {type(part).__name__.lower(): part for part in parts}
    made = make_shards([sources] if isinstance(sources, Path) else sources, out, **given, tally=counted, **options)
    assert tally is not None or counted.ok, counted.rejections
    return made


class FullDisk:
    """A file on a disk with room for so many bytes, shared by all such files."""

    room = 0

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, data: bytes) -> int:
        if len(data) > FullDisk.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        FullDisk.room -= len(data)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
