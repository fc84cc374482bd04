from __future__ import annotations

import hashlib
import logging
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from pictures import some_samples
from serving import Site, manifest_of, serving

from mm.data.remote.cache import ShardCache
from mm.data.remote.fetching import FetchError, Retries
from mm.data.remote.folders import remote_manifest
from mm.data.shards.finding import is_remote
from mm.data.shards.manifest import Manifest
from mm.data.shards.writing import write_shards
from mm.errors import DataError, OptionError, UsageError

SHARDS = {f"train-{number:06d}.tar": bytes([number]) * (1000 + number) for number in range(4)}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files = {f"/shards/{name}": content for name, content in SHARDS.items()}
        site.files["/shards/manifest.json"] = manifest_of(SHARDS)
        yield site


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", sleep=lambda seconds: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, content in SHARDS.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_bytes(manifest_of(SHARDS))
    return folder


def fetched(address: str, cache: ShardCache) -> list[bytes]:
    """The content of the shards that an address stands for."""
    return [cache.fetch(entry).read_bytes() for entry in remote_manifest(address, cache).shards]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://host/shards", True),
        ("s3://bucket/train-{000..009}.tar", True),
        ("pipe:cat shard.tar", True),
        ("file:///tmp/shards", True),
        ("shards/train.tar", False),
        ("PIPE:cat shard.tar", False),
        ("/data/pipe:x/train.tar", False),
        (r"C:\shards\train.tar", False),
    ],
)
def test_what_is_remote(address: str, expected: bool) -> None:
    assert is_remote(address) is expected


@pytest.mark.parametrize(
    ("address", "numbers"),
    [
        ("/shards", [0, 1, 2, 3]),
        ("/shards/", [0, 1, 2, 3]),
        ("/shards/manifest.json", [0, 1, 2, 3]),
        ("/shards/train-000002.tar", [2]),
        ("/shards/train%2D000002.tar", [2]),
        ("/shards/train-{000001..000003}.tar", [1, 2, 3]),
        ("/shards/train-{000003,000000}.tar", [3, 0]),
    ],
)
def test_ways_to_name_shards(site: Site, cache: ShardCache, address: str, numbers: list[int]) -> None:
    manifest = remote_manifest(site.address + address, cache)
    assert site.requests == ["/shards/manifest.json"]
    names = [f"train-{number:06d}.tar" for number in numbers]
    assert [entry.name for entry in manifest.shards] == [f"{site.address}/shards/{name}" for name in names]
    assert [cache.fetch(entry).read_bytes() for entry in manifest.shards] == [SHARDS[name] for name in names]


def test_folders_in_braces(site: Site, cache: ShardCache) -> None:
    for split in ("a", "b"):
        site.files[f"/{split}/manifest.json"] = manifest_of({"same.tar": split.encode()})
        site.files[f"/{split}/same.tar"] = split.encode()
    assert fetched(f"{site.address}/{{a,b}}", cache) == [b"a", b"b"]


def test_query_and_unusual_names(site: Site, cache: ShardCache) -> None:
    name = "sub folder/100% new?#.tar"
    site.files |= {"/odd/manifest.json": manifest_of({name: b"content"}), f"/odd/{name}": b"content"}
    assert fetched(f"{site.address}/odd?token=x/y", cache) == [b"content"]
    assert site.requests == [
        "/odd/manifest.json?token=x/y",
        "/odd/sub%20folder/100%25%20new%3F%23.tar?token=x/y",
    ]


def test_shards_as_they_are_written(site: Site, cache: ShardCache, tmp_path: Path) -> None:
    made = write_shards(some_samples(5), tmp_path / "made", max_samples=2)
    site.files = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "made").iterdir()}
    manifest = remote_manifest(site.address, cache)
    assert manifest.digest == made.digest and manifest.total == 5
    assert fetched(site.address, cache) == [entry.path.read_bytes() for entry in made.shards]


@pytest.mark.parametrize("name", ["", "/manifest.json", "/train-{000000..000003}.tar"])
def test_protocols_of_fsspec(folder: Path, cache: ShardCache, name: str) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/remote-shards/{path.name}", path.read_bytes())
    try:
        assert fetched(f"memory://remote-shards{name}", cache) == list(SHARDS.values())
    finally:
        memory.rm("/remote-shards", recursive=True)
    again = ShardCache(cache.folder / "again")
    assert fetched(f"file://{folder}{name}", again) == list(SHARDS.values())


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("cat '{folder}/manifest.json'", 4),
        ("cat < {folder}/manifest.json | cat", 4),
        ("cat {folder}/train-{{000001..000003}}.tar", 3),
        (r"VALUE='a\b'; test ${{#VALUE}} = 3 && cat {folder}/manifest.json", 4),
    ],
)
def test_commands(folder: Path, cache: ShardCache, command: str, count: int) -> None:
    address = "pipe:" + command.format(folder=folder)
    assert fetched(address, cache) == list(SHARDS.values())[-count:]


@pytest.mark.parametrize("address", ["/shards", "/shards/train-000000.tar", "/shards/manifest.json"])
def test_no_manifest(site: Site, cache: ShardCache, address: str) -> None:
    del site.files["/shards/manifest.json"]
    with pytest.raises(UsageError, match=r"shards/manifest.json: doesn't exist; .*`mm shards make` writes"):
        remote_manifest(site.address + address, cache)
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nothing-known://bucket/shards", "can't be opened: .*nothing-known"),
        ("needs-package://bucket/shards", "can't be opened: .*install no_such_package"),
        ("zip://manifest.json::https://host/shards.zip", "chained"),
        ("s3://bucket/train-{000..009.tar", "brace"),
        ("pipe:cat everything", "names neither manifest.json nor a shard"),
        ("pipe:cat shard.tar.gz", "names neither manifest.json nor a shard"),
    ],
)
def test_addresses_that_mean_nothing(cache: ShardCache, address: str, message: str) -> None:
    fsspec.register_implementation("needs-package", "no_such_package.It", True, "install no_such_package")
    with pytest.raises(UsageError, match=message) as raised:
        remote_manifest(address, cache)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("gcs", "gcsfs")])
def test_a_package_that_is_missing_is_named(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch, protocol: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it weren't installed
    address = f"{protocol}://bucket/shards"
    with pytest.raises(UsageError, match=rf"^{address}/manifest\.json: can't be opened: .*[Ii]nstall {package}"):
        remote_manifest(address, cache)


def test_shard_that_is_not_listed(site: Site, cache: ShardCache) -> None:
    site.files["/shards/other.tar"] = b"content"
    with pytest.raises(DataError, match=r"other.tar: isn't listed in .*/shards/manifest.json"):
        remote_manifest(f"{site.address}/shards/other.tar", cache)


@pytest.mark.parametrize("key", ["bytes", "sha256"])
def test_manifest_that_verifies_nothing(site: Site, cache: ShardCache, key: str) -> None:
    site.files["/shards/manifest.json"] = manifest_of(SHARDS, **{key: None})
    with pytest.raises(DataError, match=r"manifest.json: .*train-000000.tar is missing.*`mm shards make`"):
        remote_manifest(f"{site.address}/shards", cache)


def test_fetched_once_and_kept(site: Site, cache: ShardCache) -> None:
    entries = remote_manifest(f"{site.address}/shards", cache).shards
    assert [cache.fetch(entry) for entry in entries] == [entry.path for entry in entries]
    before = [(entry.path.stat().st_mtime_ns, entry.path.stat().st_ctime_ns) for entry in entries]
    same = pickle.loads(pickle.dumps(ShardCache(cache.folder)))
    site.files.clear()
    for entry in entries:
        assert hashlib.sha256(same.fetch(entry).read_bytes()).hexdigest() == entry.sha256
    assert len(site.requests) == 1 + len(SHARDS)
    assert [(entry.path.stat().st_mtime_ns, entry.path.stat().st_ctime_ns) for entry in entries] == before


def test_least_recently_used_goes_first(site: Site, cache: ShardCache) -> None:
    sizes = [len(content) for content in SHARDS.values()]
    cache.max_bytes = sum(sizes[:3])
    first, second, third, fourth = remote_manifest(f"{site.address}/shards", cache).shards
    for entry in (first, second, third, first):
        cache.fetch(entry)
    reader = second.path.open("rb")
    cache.fetch(fourth)  # it is a few bytes larger than the room that the second leaves
    assert {path.name for path in cache.folder.glob("*.tar")} == {first.path.name, fourth.path.name}
    with reader:
        assert reader.read() == SHARDS[second.url]
    assert cache.fetch(second).read_bytes() == SHARDS[second.url]
    left = {fourth.sha256, second.sha256}
    assert {path.name for path in cache.folder.iterdir()} == {
        "room.lock",
        *(f"{sha256}.{suffix}" for sha256 in left for suffix in ("tar", "lock")),
    }


def test_local_shards_stay_where_they_are(folder: Path, cache: ShardCache) -> None:
    assert [cache.fetch(entry) for entry in Manifest.read(folder).shards] == [folder / name for name in SHARDS]
    assert not cache.folder.exists()


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_CACHE", str(tmp_path))
    assert ShardCache().folder == tmp_path / "shards"


@pytest.mark.parametrize("name", ["max_bytes", "attempts"])
def test_options_out_of_range(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=name):
        ShardCache(tmp_path, **{name: 0})


def test_delays_double_and_vary(caplog: pytest.LogCaptureFixture) -> None:
    delays: list[float] = []
    state = random.getstate()

    def attempt() -> str:
        if len(delays) < 8:
            raise FetchError("HTTP 503")
        return "done"

    with caplog.at_level(logging.WARNING):
        assert Retries(9, delays.append).run(attempt, "https://host/a.tar") == "done"
    assert all(min(2**n, 60) / 2 <= delay <= min(2**n, 60) for n, delay in enumerate(delays))
    assert len(set(delays)) == 8
    assert caplog.messages[0] == f"https://host/a.tar: HTTP 503; trying again in {delays[0]:.1f} s"
    assert random.getstate() == state
