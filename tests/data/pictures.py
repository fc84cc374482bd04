"""Small images and samples for the tests of mm.data."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

from encoding import encode
from PIL import Image

from mm.data.samples import Sample


def picture(number: int = 0, image_format: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    """An image file in a colour of its own."""
    return encode(Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 50)), image_format)


def some_samples(count: int) -> list[Sample]:
    """Samples that differ in everything."""
    return [
        Sample(
            f"key{number:03d}",
            f"made/key{number:03d}",
            picture(number),
            {"en": [f"picture {number}", "a plain colour"], "zh": [f"图片 {number}"]},
            {"number": number},
        )
        for number in range(count)
    ]


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], **options: Any) -> Path:
    """Writes a tar with exactly these members."""
    pairs = members.items() if isinstance(members, dict) else members
    with tarfile.open(path, "w", **options) as tar:
        for name, content in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return path


def contents(sample: Sample) -> tuple[object, ...]:
    """Everything of a sample but where it came from."""
    return sample.key, sample.image, sample.captions, sample.metadata
