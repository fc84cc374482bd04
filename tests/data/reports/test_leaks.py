from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encoding import encode, turned
from PIL import Image, ImageEnhance, ImageOps

from mm.data.reports.leaks import (
    MIRRORED,
    NEAR,
    SAME,
    Fingerprints,
    find_leaks,
    find_repeats,
    fingerprint_shards,
    thumbnail_of,
)
from mm.data.samples import Sample
from mm.data.shards.writing import write_shards

COUNT = 12


def scene(seed: int) -> Image.Image:
    """A picture of a few large and small shapes, as photos have them."""
    rng = np.random.default_rng(seed)
    canvas = np.full((120, 160, 3), rng.integers(0, 256, 3), np.float64)
    rows, columns = np.mgrid[:120, :160]
    for size in rng.uniform(4, 60, 30):
        row, column = rng.uniform(0, 120), rng.uniform(0, 160)
        canvas[(rows - row) ** 2 + (columns - column) ** 2 < size**2] = rng.integers(0, 256, 3)
    return Image.fromarray(canvas.astype(np.uint8))


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((3, 2, image.width - 3, image.height - 2))


def shard(folder: Path, images: list[bytes], prefix: str) -> Path:
    write_shards([Sample(f"{prefix}{number}", prefix, image) for number, image in enumerate(images)], folder, prefix)
    return folder / f"{prefix}-000000.tar"


def prints(folder: Path, images: list[bytes], prefix: str) -> Fingerprints:
    return fingerprint_shards([shard(folder / prefix, images, prefix)])


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Fingerprints:
    return prints(tmp_path_factory.mktemp("train"), [encode(scene(number)) for number in range(COUNT)], "train")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda image: image, NEAR),  # re-encoded
        (lambda image: image.resize((60, 45)), NEAR),
        (lambda image: image.resize((480, 480)), NEAR),
        (cropped, NEAR),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.6), NEAR),
        (lambda image: ImageEnhance.Contrast(image).enhance(1.4), NEAR),
        (ImageOps.grayscale, NEAR),
        (ImageOps.mirror, MIRRORED),
    ],
)
def test_changed_copies_are_found(
    train: Fingerprints, tmp_path: Path, change: Callable[[Image.Image], Image.Image], kind: str
) -> None:
    others = [encode(scene(100 + number), "JPEG", quality=30) for number in range(3)]
    copies = [encode(change(scene(number)), "JPEG", quality=30) for number in (3, 7)]
    leaks = find_leaks(train, prints(tmp_path, [*others, *copies], "test"))
    found = [(leak.train[1], leak.test[1], leak.kind, leak.others) for leak in leaks]
    assert found == [("train3", "test3", kind, 0), ("train7", "test4", kind, 0)]
    assert all(leak.distance <= 14 and leak.correlation >= 0.9 for leak in leaks)


def test_the_same_file_is_found_whatever_it_shows(tmp_path: Path) -> None:
    plain = [encode(Image.new("RGB", (9, 9), colour)) for colour in ("red", "green", "blue")]
    train, test = prints(tmp_path, plain[:2], "train"), prints(tmp_path, plain[1:], "test")
    (leak,) = find_leaks(train, test)
    assert (leak.train[1], leak.test[1], leak.kind, leak.distance) == ("train1", "test0", SAME, 0)


def test_images_of_nearly_one_colour_are_not_taken_for_each_other(tmp_path: Path) -> None:
    faint = scene(0).convert("L").point(lambda value: value // 128)  # two levels
    images = [encode(faint.point(lambda value, level=level: value + level)) for level in (40, 200)]
    assert not find_leaks(prints(tmp_path, images[:1], "train"), prints(tmp_path, images[1:], "test"))


def test_the_nearest_is_named_and_the_others_counted(tmp_path: Path) -> None:
    image = scene(1)
    copies = [encode(cropped(image)), encode(image, "JPEG", quality=95), encode(image, "JPEG", quality=10)]
    train = prints(tmp_path, [*copies, encode(scene(2))], "train")
    (leak,) = find_leaks(train, prints(tmp_path, [encode(image)], "test"))
    assert (leak.train[1], leak.kind, leak.others) == ("train1", NEAR, 2)


def test_repeats_within_a_split(tmp_path: Path) -> None:
    images = [encode(scene(1)), encode(scene(2)), encode(scene(1)), encode(scene(1).resize((80, 60)))]
    steps: list[int] = []
    leaks = find_repeats(prints(tmp_path, images, "all"), steps.append)
    assert [(leak.train[1], leak.test[1], leak.kind, leak.others) for leak in leaks] == [
        ("all0", "all2", SAME, 0),
        ("all0", "all3", NEAR, 1),
    ]
    assert sum(steps) == 4


def test_what_cannot_be_decoded_is_counted(tmp_path: Path) -> None:
    images = [encode(scene(0)), encode(scene(0), "JPEG")[:300], encode(scene(1))]
    path = shard(tmp_path, images, "x")
    steps: list[int] = []
    found = fingerprint_shards([path, tmp_path / "missing.tar"], steps.append)
    assert [key for _, key in found.samples] == ["x0", "x2"] and found.thumbnails.shape == (2, 16, 16)
    assert [rejection.reason for rejection in found.rejections] == ["truncated", "missing shard"]
    assert steps == [3, 1]
    assert not find_leaks(fingerprint_shards([tmp_path / "missing.tar"]), found)
    assert not find_leaks(found, fingerprint_shards([tmp_path / "missing.tar"]))


def test_thumbnails_are_upright() -> None:
    upright = thumbnail_of(turned(scene(0), 6, "PNG")).astype(int)
    assert np.abs(upright - thumbnail_of(encode(scene(0)))).max() <= 1
