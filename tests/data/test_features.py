from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mm.data.features import FeatureStore
from mm.errors import DataError, OutputError

SHAPE = (3, 2)


class Network:
    """Counts the images it has encoded; stops after ``limit`` of them."""

    def __init__(self, limit: int = 10**9) -> None:
        self.seen, self.limit = 0, limit

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.seen + len(images) > self.limit:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.float().mean((2, 3))[..., None].expand(-1, 3, 2) / 8


def pixels(image: int, view: int) -> torch.Tensor:
    return torch.full((3, 4, 4), 10 * image + view, dtype=torch.uint8)


def store(folder: Path, identity: str = "a", images: int = 7) -> FeatureStore:
    return FeatureStore(folder, identity, images, 2, SHAPE)


def test_features_come_back_by_image_and_view(tmp_path: Path) -> None:
    kept, calls = store(tmp_path), []
    kept.fill(pixels, Network(), lambda done, total: calls.append((done, total)), batch_size=4)
    for image in range(7):
        for view in range(2):
            assert kept[image, view].dtype == torch.float16
            assert torch.equal(kept[image, view], torch.full(SHAPE, (10 * image + view) / 8, dtype=torch.float16))
    assert calls == [(0, 14), (4, 14), (8, 14), (12, 14), (14, 14)]


def test_what_was_not_filled_in_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no features for image 3, view 1"):
        store(tmp_path)[3, 1]


@pytest.mark.parametrize("limit", [0, 4, 8])
def test_interrupted_filling_goes_on_where_it_stopped(tmp_path: Path, limit: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).fill(pixels, Network(limit), batch_size=4)
    again = Network()
    kept = store(tmp_path)
    kept.fill(pixels, again, batch_size=4)
    assert again.seen == 14 - limit
    assert float(kept[6, 1][0, 0]) == 61 / 8
    idle = Network()
    store(tmp_path).fill(pixels, idle)
    assert idle.seen == 0


def test_features_are_on_the_disk_before_their_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm.data.features.MARK_EVERY", 8)
    written: list[tuple[str, int]] = []
    original = np.memmap.flush

    def noting(array: np.memmap) -> None:
        original(array)
        written.append((Path(str(array.filename)).stem, int(np.fromfile(tmp_path / "filled.u8", np.uint8).sum())))

    monkeypatch.setattr(np.memmap, "flush", noting)
    store(tmp_path).fill(pixels, Network(), batch_size=4)
    assert written == [("features", 0), ("filled", 8), ("features", 8), ("filled", 14)]


@pytest.mark.parametrize(("identity", "images"), [("b", 7), ("a", 8)])
def test_features_of_something_else_are_discarded(tmp_path: Path, identity: str, images: int) -> None:
    store(tmp_path).fill(pixels, Network())
    with pytest.raises(DataError, match="no features"):
        store(tmp_path, identity, images)[0, 0]
    network = Network()
    store(tmp_path, identity, images).fill(pixels, network)
    assert network.seen == 2 * images


@pytest.mark.parametrize("name", ["features.f16", "filled.u8", "features.json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "garbage note"])
def test_damaged_files_are_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    store(tmp_path).fill(pixels, Network())
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, 5)
    else:
        (tmp_path / "features.json").write_bytes(b"\xff\xfe{")
    network = Network()
    kept = store(tmp_path)
    kept.fill(pixels, network)
    assert network.seen == 14 and float(kept[6, 1][0, 0]) == 61 / 8


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="features can't be kept there"):
        store(tmp_path / "file")


def test_no_room_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"0.00 GB of features can't be kept there \(No space left on device\)"):
        store(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    store(tmp_path).fill(pixels, Network())


def test_space_is_taken_at_once(tmp_path: Path) -> None:
    store(tmp_path, images=4000)
    size = (tmp_path / "features.f16").stat()
    assert size.st_size == 4000 * 2 * 6 * np.float16().itemsize <= size.st_blocks * 512
