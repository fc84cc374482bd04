from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pictures import picture, some_samples, write_tar

from mm.data.samples import Rejection, Sample
from mm.data.shards import entries
from mm.data.shards.writing import write_shards
from mm.data.sources import (
    NOT_LISTED,
    count_images,
    count_samples,
    find_shards,
    iter_images,
    resolve_sources,
)
from mm.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    (root / "b").mkdir(parents=True)
    (root / "b" / "2.png").write_bytes(picture(2))
    (root / "b" / "1.jpeg").write_bytes(picture(1, "JPEG"))
    (root / "a.PNG").write_bytes(picture(3))
    (root / "a.txt").write_text("a caption")
    (root / "._a.png").write_bytes(b"")
    write_shards(some_samples(3), root / "shards", max_samples=2)
    return root


def names(items: object) -> list[str]:
    return [Path(item.source).name for item in items]  # type: ignore[attr-defined]


def test_folders_files_and_shards_in_order(folder: Path) -> None:
    sources = resolve_sources([folder])
    assert count_images(sources) == 6
    expected = ["a.PNG", "1.jpeg", "2.png", "key000.png", "key001.png", "key002.png"]
    items = list(iter_images(sources))
    assert names(items) == expected == names(iter_images([str(folder)]))
    assert [item.key for item in items] == ["a", "b/1", "b/2", "key000", "key001", "key002"]
    assert isinstance(items[2], Sample) and items[2].image == picture(2)
    chosen = [folder / "shards" / "shard-000001.tar", folder / "b" / "2.png", folder / "b"]
    assert names(iter_images(chosen)) == ["key002.png", "2.png", "1.jpeg"]


def test_count_is_unknown_for_a_shard_without_a_manifest(folder: Path) -> None:
    (folder / "shards" / "manifest.json").unlink()
    assert count_images(resolve_sources([folder])) is None
    assert len(list(iter_images([folder]))) == 6


def test_a_manifest_is_read_once_for_all_shards_that_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = entries.parse_entries
    monkeypatch.setattr(entries, "parse_entries", lambda *given: read.append(given[1]) or original(*given))
    shards = sorted((folder / "shards").glob("*.tar"))
    assert [source.count for source in resolve_sources([*shards, folder])[:2]] == [2, 1]
    assert read == [str(folder / "shards" / "manifest.json")]
    (folder / "shards" / "manifest.json").write_text("{")
    read.clear()
    sources = resolve_sources(shards)
    assert [source.problem is None for source in sources] == [False, True, True] and len(read) == 1


def test_captions_beside_files(folder: Path) -> None:
    (sample,) = iter_images([folder / "a.PNG"])
    assert isinstance(sample, Sample) and sample.captions == {}
    first, second, *_ = iter_images([folder], captions=True)
    assert isinstance(first, Sample) and first.captions == {"en": ["a caption"]}
    assert isinstance(second, Sample) and second.captions == {}


@pytest.mark.parametrize("what", ["nowhere", "empty", "pipe", "broken", "texts"])
def test_wrong_use_is_found_before_any_work(tmp_path: Path, folder: Path, what: str) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    for call in (resolve_sources, iter_images):
        with pytest.raises(UsageError) as caught:
            call([folder, tmp_path / what])
        assert str(tmp_path / what) in str(caught.value)
    with pytest.raises(UsageError, match="no images were named"):
        iter_images([])


def test_bad_files_among_good_ones(folder: Path) -> None:
    write_tar(folder / "damaged.tar", {"x.png": picture()})
    with (folder / "damaged.tar").open("r+b") as file:
        file.truncate(600)
    (folder / "shards" / "shard-000000.tar").unlink()
    (folder / "broken.jpg").symlink_to("gone")
    os.mkfifo(folder / "pipe.jpg")
    sources = resolve_sources([folder])
    (folder / "a.PNG").unlink()
    items = list(iter_images(sources))
    assert names(item for item in items if isinstance(item, Sample)) == ["1.jpeg", "2.png", "key002.png"]
    found = {Path(item.source).name: (item.reason, item.samples) for item in items if isinstance(item, Rejection)}
    assert found == {
        "damaged.tar": ("shard cut short", 1),
        "shard-000000.tar": ("missing shard", 2),
        "a.PNG": ("missing file", 1),
    }


def test_explicit_files_are_left_for_the_decoder_to_judge(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("text")
    (sample,) = iter_images([tmp_path / "notes.md"])
    assert isinstance(sample, Sample) and sample.image == b"text"


def test_damaged_manifest_does_not_cost_the_shards(folder: Path) -> None:
    (folder / "shards" / "manifest.json").write_text("{")
    for target, count in ((folder, 6), (folder / "shards" / "shard-000000.tar", 2)):
        items = list(iter_images([target]))
        assert [item.reason for item in items if isinstance(item, Rejection)] == ["damaged manifest"]
        assert len(items) == count + 1


def test_shards_listed_by_a_folder_above_are_read_once(tmp_path: Path) -> None:
    write_shards(some_samples(2), tmp_path / "train")
    manifest = (tmp_path / "train" / "manifest.json").read_text()
    (tmp_path / "train" / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(manifest.replace("shard-0", "train/shard-0"))
    sources = resolve_sources([tmp_path])
    assert count_images(sources) == 2 and names(iter_images(sources)) == ["key000.png", "key001.png"]


def test_shards_are_found_once_and_in_order(folder: Path) -> None:
    shards = folder / "shards"
    (shards / "more").mkdir()
    write_tar(shards / "more" / "a.tar", {"x.png": picture()})
    found, problems = find_shards([shards, shards / "shard-000000.tar", str(shards / "more")])
    assert [path.name for path, _ in found] == ["shard-000000.tar", "shard-000001.tar", "a.tar"] and not problems
    assert [entry.nsamples if entry else None for _, entry in found] == [2, 1, None]
    assert count_samples(found) is None and count_samples(found[:2]) == 3


def test_shards_that_a_manifest_lacks_are_named(folder: Path) -> None:
    extra = write_tar(folder / "shards" / "extra.tar", {"x.png": picture()})
    found, (problem,) = find_shards(folder)
    assert found[-1] == (extra, None)
    assert (problem.source, problem.reason, problem.samples) == (str(extra), NOT_LISTED, 0)
    (folder / "shards" / "manifest.json").write_text("{")
    found, (problem,) = find_shards(folder)
    assert len(found) == 3 and problem.reason == "damaged manifest"


def test_symbolic_links_in_a_circle(folder: Path) -> None:
    (folder / "b" / "up").symlink_to(folder, target_is_directory=True)
    assert len(resolve_sources([folder])) == 5


def test_names_are_made_printable(tmp_path: Path) -> None:
    (tmp_path / "a\nb\udcff.png").write_bytes(picture())
    (sample,) = iter_images([tmp_path])
    assert isinstance(sample, Sample) and sample.source.endswith("a\\nb\\udcff.png") and sample.image == picture()


@pytest.mark.parametrize("address", ["s3://bucket/photos", "https://host/a.tar", "pipe:cat a.tar"])
def test_an_address_is_told_from_a_missing_path(address: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(address)}: isn't a path"):
        resolve_sources([address])
