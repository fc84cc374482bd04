from __future__ import annotations

import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import contents, picture, some_samples, write_tar

from mm.data.samples import Rejection, Sample
from mm.data.shards.archive import Archive
from mm.data.shards.inspecting import inspect_shards
from mm.data.shards.manifest import Manifest, ManifestEntry
from mm.data.shards.reading import IndexedShards, read_shard
from mm.data.shards.writing import write_shards
from mm.errors import DataError, ShardError

KEYS = [sample.key for sample in some_samples(10)]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_shards(some_samples(10), tmp_path / "out", max_samples=4)


def read_all(manifest: Manifest) -> list[Sample | Rejection]:
    return [item for entry in manifest.shards for item in read_shard(entry.path, entry)]


def test_in_order_and_by_position_agree(manifest: Manifest) -> None:
    shards = IndexedShards(manifest)
    assert len(shards) == 10
    assert [shards[index] for index in range(10)] == read_all(manifest)
    assert [contents(shards[index]) for index in range(10)] == [contents(sample) for sample in some_samples(10)]
    assert [shards.key(index) for index in range(10)] == KEYS
    assert shards[-1] == shards[9]
    assert shards[4].source == f"{manifest.shards[1].path}/key004.png"
    assert shards.name(4) == f"{manifest.shards[1].path}/key004"
    with pytest.raises(IndexError):
        shards[10]


def test_same_samples_as_webdataset(manifest: Manifest, tmp_path: Path) -> None:
    import webdataset

    for entry in manifest.shards:
        theirs = list(webdataset.WebDataset(str(entry.path), shardshuffle=False))
        ours = [item for item in read_shard(entry.path) if isinstance(item, Sample)]
        assert [(sample["__key__"], sample["png"]) for sample in theirs] == [(item.key, item.image) for item in ours]


def key_and_process(arguments: tuple[IndexedShards, int]) -> tuple[str, int]:
    shards, index = arguments
    return shards[index].key, os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_across_processes(manifest: Manifest, method: str) -> None:
    shards = IndexedShards(manifest)
    shards[0]
    with multiprocessing.get_context(method).Pool(2) as pool:
        answers = pool.map(key_and_process, [(shards, index) for index in range(10)], chunksize=1)
    assert [key for key, _ in answers] == KEYS
    assert os.getpid() not in {process for _, process in answers}


def test_pickles_and_threads(manifest: Manifest) -> None:
    shards = pickle.loads(pickle.dumps(IndexedShards(manifest)))
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(shards.__getitem__, list(range(10)) * 20))
    assert [sample.key for sample in samples] == KEYS * 20


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_few_files_stay_open(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm.data.shards.opened.OPEN_SHARDS", 2)
    before = open_files()
    shards = IndexedShards(manifest)
    assert open_files() == before  # shards are opened when they are needed
    for index in [*range(10), *range(10)]:
        shards[index]
    assert open_files() == before + 2
    del shards
    assert open_files() == before
    list(read_shard(manifest.shards[0].path))
    assert open_files() == before


def test_many_shards_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm.data.shards.opened.OPEN_SHARDS", 2)
    shards = IndexedShards(write_shards(some_samples(20), tmp_path, max_samples=1))
    places = [number * 7 % 20 for number in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(shards.__getitem__, places))
    assert [sample.key for sample in samples] == [f"key{place:03d}" for place in places]


def test_changed_shard_is_noticed(manifest: Manifest) -> None:
    shards = IndexedShards(manifest)
    assert [shards[index].key for index in (3, 4)] == ["key003", "key004"]
    with manifest.shards[1].path.open("ab") as file:
        file.write(bytes(512))
    assert shards[3].key == "key003"
    with pytest.raises(ShardError, match="changed"):
        shards[4]
    manifest.shards[2].path.unlink()
    with pytest.raises(ShardError, match="doesn't exist"):
        shards[9]
    assert shards.key(9) == "" and shards.name(9) == f"{manifest.shards[2].path}, sample 1"


def test_length_follows_the_manifest_when_shards_are_damaged(manifest: Manifest) -> None:
    with manifest.shards[0].path.open("r+b") as file:
        file.truncate(2048 * 2 + 600)
    manifest.shards[1].path.unlink()
    inspections = inspect_shards(manifest.shards)
    shards = IndexedShards(manifest, inspections=inspections)
    assert len(shards) == 10
    assert [shards.key(index) for index in (0, 1, 2, 5, 9)] == ["key000", "key001", "", "", "key009"]
    assert (shards[1].key, shards[9].key) == ("key001", "key009")
    for index, reason in ((2, "shard cut short"), (5, "missing shard")):
        with pytest.raises(ShardError) as caught:
            shards[index]
        assert caught.value.reason == reason
    shards = IndexedShards(manifest)
    with pytest.raises(ShardError, match="cut short"):
        shards[0]  # nobody has looked at this shard and let it pass


def test_remote_shards_are_fetched_when_they_are_needed(manifest: Manifest, tmp_path: Path) -> None:
    fetched: list[str] = []

    def fetch(entry: ManifestEntry) -> Path:
        fetched.append(entry.name)
        return entry.path.rename(entry.path.with_suffix(".fetched"))

    remote = replace(manifest.shards[1], remote="s3://photos/one.tar")
    shards = IndexedShards(Manifest([manifest.shards[0], remote]), inspections=[None, None], fetch=fetch)
    assert shards[0].key == "key000" and fetched == []
    assert shards[4].source == "s3://photos/one.tar/key004.png" and shards.name(5) == "s3://photos/one.tar/key005"
    assert shards[5].key == "key005" and fetched == ["s3://photos/one.tar"]


def test_neighbours_are_read_ahead_together(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(Archive, "read_ahead", lambda archive, offset, size: asked.append((offset, size)))
    shards = IndexedShards(manifest, block=3)
    for index in (1, 0, 2, 3, 4, 6):
        shards[index]
    assert [offset for offset, _ in asked] == [0, 0]  # the fourth sample of a shard is alone in its block
    with tarfile.open(manifest.shards[0].path) as tar:
        fourth = next(member.offset for member in tar if member.name.startswith(KEYS[3]))
    assert {size for _, size in asked} == {fourth}


def test_a_remote_shard_that_vanishes_before_it_is_open_is_fetched_again(manifest: Manifest, tmp_path: Path) -> None:
    entries = [replace(entry, remote=f"https://host/{entry.url}") for entry in manifest.shards]
    tries = []

    def fetch(entry: ManifestEntry) -> Path:
        tries.append(entry.url)
        return entry.path if len(tries) > 2 else tmp_path / "gone.tar"

    assert IndexedShards(Manifest(entries), fetch=fetch)[0].key == KEYS[0]
    assert len(tries) == 3


def test_a_shard_that_failed_is_not_tried_again(manifest: Manifest) -> None:
    entries = [replace(entry, remote=f"https://host/{entry.url}") for entry in manifest.shards]
    tries = []

    def fetch(entry: ManifestEntry) -> Path:
        tries.append(entry.url)
        raise ShardError(f"{entry.name}: no answer", "unreadable shard")

    shards = IndexedShards(Manifest(entries), fetch=fetch)
    for index in (0, 1, 2):
        with pytest.raises(ShardError, match="no answer"):
            shards[index]
    assert len(tries) == 1


def test_without_images(manifest: Manifest) -> None:
    sample = IndexedShards(manifest, images=False)[3]
    assert sample.image == b"" and contents(replace(sample, image=picture(3))) == contents(some_samples(4)[3])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.txt": b"no image"}, "no image"),
        ({"notes.pdf": b"x"}, "no image"),
        ({"README": b"x"}, "no image"),
        ({"a.jpg": picture(), "a.png": picture()}, "more than one image"),
        ({"a.png": picture(), "a.txt": b"caf\xe9"}, "caption is not UTF-8"),
        ({"a.png": picture(), "a.json": b"{"}, "caption file is not JSON"),
        ([("a.png", picture()), ("a.png", picture())], "duplicate member"),
    ],
)
def test_bad_samples_among_good_ones(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    good = [("0.png", picture(1)), ("0.txt", b"first")]
    last = [("z.png", picture(2)), ("z.txt", b"last")]
    pairs = list(members.items()) if isinstance(members, dict) else members
    path = write_tar(tmp_path / "x.tar", [*good, *pairs, *last])
    first, bad, final = read_shard(path)
    assert isinstance(first, Sample) and isinstance(final, Sample) and isinstance(bad, Rejection)
    assert (first.captions, final.captions) == ({"en": ["first"]}, {"en": ["last"]})
    assert bad.reason == reason and str(path) in bad.source and bad.key in bad.source and bad.samples == 1
    assert bad.detail.startswith(str(path)) and "\n" not in bad.detail
    shards = IndexedShards(Manifest.of(path))
    assert len(shards) == 3
    with pytest.raises(DataError) as caught:
        shards[1]
    assert (caught.value.reason, caught.value.offset) == (reason, bad.offset)


@pytest.mark.parametrize("captions", [{}, {"a.txt": b"  "}])
def test_captions_are_not_required(tmp_path: Path, captions: dict[str, bytes]) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": picture()} | captions)
    (sample,) = read_shard(path)
    assert isinstance(sample, Sample) and sample.captions == {}


def test_members_that_are_not_files(tmp_path: Path) -> None:
    import tarfile

    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (rejection,) = read_shard(path)
    assert isinstance(rejection, Rejection) and rejection.reason == "unsafe member"


def test_member_names_never_touch_the_file_system(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    names = ["../escaped.png", "/absolute.png", "a/../../b.png", "nul\\con.png"]
    path = write_tar(inner / "x.tar", {name: picture() for name in names})
    *rejected, sample = read_shard(path)
    assert isinstance(sample, Sample) and sample.key == "nul\\con"
    assert [item.key for item in rejected] == [name[:-4] for name in names[:3]]
    assert {item.reason for item in rejected if isinstance(item, Rejection)} == {"unsafe member"}
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "x.tar"]


def test_counts_at_odds_with_the_manifest(manifest: Manifest) -> None:
    entry = manifest.shards[0]
    for wrong, reason, lost in (
        (replace(entry, nsamples=7), "fewer samples than the manifest says", 3),
        (replace(entry, nsamples=3), "more samples than the manifest says", 0),
        (replace(entry, bytes=10**6), "shard cut short", 0),
        (replace(entry, bytes=1), "shard larger than the manifest says", 0),
    ):
        *samples, last = read_shard(entry.path, wrong)
        assert len(samples) == 4 and isinstance(last, Rejection)
        assert (last.source, last.reason, last.samples) == (str(entry.path), reason, lost)
        with pytest.raises(ShardError) as caught:
            IndexedShards(Manifest([wrong]))[0]
        assert caught.value.reason == reason
