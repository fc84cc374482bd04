from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pictures import contents, picture, some_samples, write_tar

from mm.data.manifest import Manifest
from mm.data.samples import Rejection, Sample
from mm.data.shards import IndexedShards, read_shard, write_shards
from mm.errors import DataError, ShardError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_shards(some_samples(10), tmp_path / "out", max_samples=4)


def read_all(manifest: Manifest) -> list[Sample | Rejection]:
    return [item for entry in manifest.shards for item in read_shard(entry.path, entry)]


def test_in_order_and_by_position_agree(manifest: Manifest) -> None:
    shards = IndexedShards(manifest)
    assert len(shards) == 10 and not shards.problems
    assert [shards[index] for index in range(10)] == read_all(manifest)
    assert [contents(shards[index]) for index in range(10)] == [contents(sample) for sample in some_samples(10)]
    assert shards.keys == [sample.key for sample in some_samples(10)]
    assert shards[-1] == shards[9]
    assert shards[4].source == f"{manifest.shards[1].path}/key004.png"
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
    assert [key for key, _ in answers] == shards.keys
    assert os.getpid() not in {process for _, process in answers}


def test_pickles_and_threads(manifest: Manifest) -> None:
    shards = pickle.loads(pickle.dumps(IndexedShards(manifest)))
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(shards.__getitem__, list(range(10)) * 20))
    assert [sample.key for sample in samples] == shards.keys * 20


def test_no_file_stays_open(manifest: Manifest) -> None:
    shards = IndexedShards(manifest)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for index in range(10):
        shards[index]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_changed_shard_is_noticed(manifest: Manifest) -> None:
    shards = IndexedShards(manifest)
    with manifest.shards[1].path.open("ab") as file:
        file.write(bytes(512))
    assert shards[3].key == "key003"
    with pytest.raises(ShardError, match="changed"):
        shards[4]
    manifest.shards[2].path.unlink()
    with pytest.raises(ShardError, match="can't be read"):
        shards[9]


def test_length_follows_the_manifest_when_shards_are_damaged(manifest: Manifest) -> None:
    with manifest.shards[0].path.open("r+b") as file:
        file.truncate(2048 * 2 + 600)
    manifest.shards[1].path.unlink()
    shards = IndexedShards(manifest)
    assert len(shards) == 10
    assert [(problem.reason, problem.samples) for problem in shards.problems] == [
        ("shard cut short", 2),
        ("missing shard", 4),
    ]
    assert shards.keys == ["key000", "key001", "", "", "", "", "", "", "key008", "key009"]
    assert shards[9].key == "key009"
    for index, reason in ((2, "shard cut short"), (5, "missing shard")):
        with pytest.raises(ShardError) as caught:
            shards[index]
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.txt": b"no image"}, "no image"),
        ({"notes.pdf": b"x"}, "no image"),
        ({"README": b"x"}, "no image"),
        ({"a.jpg": picture(), "a.png": picture()}, "more than one image"),
        ({"a.png": picture(), "a.txt": b"caf\xe9"}, "caption is not UTF-8"),
        ({"a.png": picture(), "a.json": b"{"}, "caption file is not JSON"),
        ({"a.png": picture()}, "missing caption"),
        ({"a.png": picture(), "a.txt": b"  "}, "missing caption"),
        ([("a.png", picture()), ("a.png", picture())], "duplicate member"),
    ],
)
def test_bad_samples_among_good_ones(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    good = [("0.png", picture(1)), ("0.txt", b"first")]
    last = [("z.png", picture(2)), ("z.txt", b"last")]
    pairs = list(members.items()) if isinstance(members, dict) else members
    path = write_tar(tmp_path / "x.tar", [*good, *pairs, *last])
    first, bad, final = read_shard(path, captions=True)
    assert isinstance(first, Sample) and isinstance(final, Sample) and isinstance(bad, Rejection)
    assert (first.captions, final.captions) == ({"en": ["first"]}, {"en": ["last"]})
    assert bad.reason == reason and str(path) in bad.source and bad.key in bad.source and bad.samples == 1
    assert bad.detail.startswith(str(path)) and "\n" not in bad.detail
    shards = IndexedShards(Manifest.of(path), captions=True)
    assert len(shards) == 3
    with pytest.raises(DataError) as caught:
        shards[1]
    assert caught.value.reason == reason


def test_captions_are_required_only_on_request(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": picture()})
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
    assert isinstance(rejection, Rejection) and rejection.reason == "member is not a file"


def test_member_names_never_touch_the_file_system(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    names = ["../escaped.png", "/absolute.png", "a/../../b.png", "nul\\con.png"]
    path = write_tar(inner / "x.tar", {name: picture() for name in names})
    samples = list(read_shard(path))
    assert [sample.key for sample in samples] == [name[:-4] for name in names]
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "x.tar"]


def test_counts_at_odds_with_the_manifest(manifest: Manifest) -> None:
    from dataclasses import replace

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
        (problem,) = IndexedShards(Manifest([wrong])).problems
        assert (problem.reason, problem.samples) == (reason, lost)
