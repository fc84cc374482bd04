from __future__ import annotations

from pathlib import Path

import pytest

from mm.bench.load_data import make_collection, open_collection, simulate_shards, unpack
from mm.bench.load_photos import make_photos
from mm.data.shards.manifest import Manifest
from mm.errors import DataError, UsageError

PHOTOS = list(make_photos(5, 32, 24))


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "all").iterdir())]


def test_a_collection_is_the_same_in_shards_and_in_a_folder(tmp_path: Path) -> None:
    made = make_collection("small", PHOTOS, tmp_path, batch_size=2, shards=2)
    assert (made.name, made.images, made.batch_size) == ("small", 5, 2)
    assert [Path(shard).is_file() for shard in made.shards] == [True] * 3
    assert made.manifest == Manifest.of(made.sources)
    assert files(made.folder) == PHOTOS


def test_shards_that_are_there(tmp_path: Path) -> None:
    made = make_collection("small", PHOTOS, tmp_path / "a", batch_size=2, shards=1)
    opened = open_collection(made.sources, tmp_path / "b", batch_size=2)
    assert (opened.manifest, opened.images) == (made.manifest, 5)
    assert files(opened.folder) == PHOTOS
    with pytest.raises(DataError, match=r"5 images are too few, 6 are needed"):
        open_collection(made.sources, tmp_path / "c", batch_size=3)
    with pytest.raises(UsageError, match=r"none\.tar"):
        open_collection([str(tmp_path / "none.tar")], tmp_path / "d", batch_size=2)


def test_very_many_shards(tmp_path: Path) -> None:
    folder = simulate_shards(PHOTOS[:2], tmp_path / "many", 7)
    manifest = Manifest.of(str(folder))
    assert (len(manifest.shards), manifest.total) == (7, 14)
    assert len({shard.path for shard in manifest.shards}) == 7
    assert all(shard.sha256 == manifest.shards[0].sha256 for shard in manifest.shards)
    assert files(unpack(manifest, tmp_path / "files")) == PHOTOS[:2] * 7
