"""Remote shards that don't come as they should: fetched again or named, and never kept."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from aiohttp import ClientSession
from fsspec import AbstractFileSystem
from fsspec.registry import _registry
from serving import Answer, Site, manifest_of, serving

from mm.data.remote import fetching
from mm.data.remote.cache import ShardCache
from mm.data.remote.folders import remote_manifest
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.layout import HASH_DIFFERS
from mm.errors import DataError, OptionError, OutputError, ShardError, UsageError

CONTENT = bytes(range(256)) * 2000
OTHER = CONTENT[::-1]
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        shards = {"a.tar": CONTENT, "b.tar": OTHER}
        site.files = {f"/{name}": content for name, content in shards.items()}
        site.files["/manifest.json"] = manifest_of(shards)
        yield site


@pytest.fixture
def delays() -> list[float]:
    return []


@pytest.fixture
def cache(tmp_path: Path, delays: list[float]) -> ShardCache:
    return ShardCache(tmp_path / "cache", attempts=3, sleep=delays.append)


@pytest.fixture
def entry(site: Site, cache: ShardCache) -> ManifestEntry:
    """What the manifest says about ``a.tar``; the server has forgotten that it was asked."""
    entry = remote_manifest(f"{site.address}/a.tar", cache).shards[0]
    site.requests.clear()
    return entry


def kept(cache: ShardCache) -> list[str]:
    """What is in a cache besides locks."""
    return [path.name for path in cache.folder.iterdir() if path.suffix != ".lock"]


def wait_for(condition: Callable[[], object]) -> None:
    """Waits until something is so."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=500),
        Answer(status=503),
        Answer(status=429),
        Answer(PAGE),
        Answer(CONTENT[:-1]),
        Answer(CONTENT + b"x"),
        Answer(OTHER),
        Answer(CONTENT[:-1], headers={"Content-Length": str(len(CONTENT))}),
        Answer(CONTENT, endless=True),
        Answer(b""),
    ],
    ids=["500", "503", "429", "page", "short", "long", "other", "connection lost", "endless", "empty"],
)
def test_right_at_the_third_attempt(
    site: Site, cache: ShardCache, entry: ManifestEntry, delays: list[float], answer: Answer
) -> None:
    site.plans["/a.tar"] = [answer, answer]
    path = cache.fetch(entry)
    assert path.read_bytes() == CONTENT and kept(cache) == [path.name]
    assert site.requests == ["/a.tar"] * 3
    assert 0.5 <= delays[0] <= 1 <= delays[1] <= 2


@pytest.mark.parametrize(
    ("answers", "problem", "reason"),
    [
        ([Answer(status=500)] * 3, r"HTTP 500 Internal Server Error \(3 times\)", "unreadable shard"),
        ([Answer(PAGE)] * 3, "an HTML page", "not a tar"),
        ([Answer(PAGE.ljust(len(CONTENT)))] * 3, "an HTML page", "not a tar"),
        ([Answer(CONTENT[:700])] * 3, r"only 700 of 512,000 bytes", "shard cut short"),
        ([Answer(CONTENT * 2)] * 3, "more came than the 512,000 bytes", "shard larger than the manifest says"),
        ([Answer(OTHER)] * 3, "SHA-256", HASH_DIFFERS),
        (
            [Answer(OTHER), Answer(OTHER), Answer(status=502)],
            r"SHA-256 \(2 times\); then HTTP 502",
            "unreadable shard",
        ),
    ],
)
def test_never_right(
    site: Site, cache: ShardCache, entry: ManifestEntry, answers: list[Answer], problem: str, reason: str
) -> None:
    site.plans["/a.tar"] = list(answers)
    with pytest.raises(ShardError, match=rf"/a.tar: couldn't be fetched in 3 attempts: .*{problem}") as raised:
        cache.fetch(entry)
    assert raised.value.reason == reason
    assert "\n" not in str(raised.value)
    assert len(site.requests) == 3 and kept(cache) == []


@pytest.mark.parametrize(
    ("status", "problem", "reason"),
    [
        (404, "doesn't exist", "missing shard"),
        (410, "doesn't exist", "missing shard"),
        (403, "access is refused", "unreadable shard"),
        (401, "access is refused", "unreadable shard"),
        (400, "the server refuses", "unreadable shard"),
    ],
)
def test_no_second_attempt(
    site: Site, cache: ShardCache, entry: ManifestEntry, delays: list[float], status: int, problem: str, reason: str
) -> None:
    site.plans["/a.tar"] = [Answer(PAGE, status)]
    with pytest.raises(ShardError, match=f"{site.address}/a.tar: {problem}") as raised:
        cache.fetch(entry)
    assert raised.value.reason == reason
    assert site.requests == ["/a.tar"] and delays == [] and kept(cache) == []


class NoCredentialsError(Exception):
    """As botocore names it."""


class CredentialRetrievalError(Exception):
    """As botocore calls it when credentials can't be had just now."""


class Failing(AbstractFileSystem):
    """Fails like s3fs: as often as it tries, by itself."""

    protocol = "s3"
    retries = 5

    def __init__(self, error: Exception, **options: Any) -> None:
        super().__init__(**options)
        self.error = error
        self.config_kwargs: dict[str, Any] = {"read_timeout": 7}
        self.tried = 0

    def open(self, path: str, *_: Any, **__: Any) -> None:
        self.tried += self.retries
        raise self.error


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[Failing]:
    """Puts ``Failing`` in the place of what opens ``s3://``; gives those that were made."""
    made: list[Failing] = []

    class Noted(Failing):
        def __init__(self, **options: Any) -> None:
            super().__init__(error, **options)
            made.append(self)

    monkeypatch.setitem(_registry, "s3", Noted)
    return made


def test_no_attempts_within_attempts(cache: ShardCache, delays: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    made = failing(monkeypatch, OSError(errno.EBUSY, "Service Unavailable"))
    with pytest.raises(
        ShardError, match=r"s3://bucket/shards/manifest.json: .* in 3 attempts: .*Unavailable \(3 times"
    ):
        remote_manifest("s3://bucket/shards", cache)
    assert [one.tried for one in made] == [1, 1, 1] and len(delays) == 2
    assert made[0].config_kwargs == {"read_timeout": 7, "retries": {"total_max_attempts": 1}}


def test_credentials_that_are_missing(cache: ShardCache, delays: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    made = failing(monkeypatch, NoCredentialsError("Unable to locate credentials"))
    problem = r"^s3://bucket/shards/manifest.json: access is refused \(NoCredentialsError: .*check the credentials$"
    with pytest.raises(ShardError, match=problem):
        remote_manifest("s3://bucket/shards", cache)
    assert len(made) == 1 and delays == []


def test_credentials_that_are_late(cache: ShardCache, delays: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    made = failing(monkeypatch, CredentialRetrievalError("the metadata service is busy"))
    with pytest.raises(ShardError, match=r"in 3 attempts: .*metadata service is busy"):
        remote_manifest("s3://bucket/shards", cache)
    assert len(made) == 3 and len(delays) == 2


def test_nobody_answers(cache: ShardCache, delays: list[float]) -> None:
    with serving() as site:
        address = site.address
    with pytest.raises(ShardError, match=r"in 3 attempts: .*Connect"):
        remote_manifest(address, cache)
    assert len(delays) == 2


def test_server_that_falls_silent(
    site: Site, cache: ShardCache, entry: ManifestEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_SILENCE", 0.2)
    hold = threading.Event()
    site.plans["/a.tar"] = [Answer(CONTENT, hold=hold)]
    assert cache.fetch(entry).read_bytes() == CONTENT
    assert not hold.is_set() and len(site.requests) == 2
    hold.set()


def test_manifest_after_an_error(site: Site, cache: ShardCache) -> None:
    whole = site.files["/manifest.json"]
    cut = Answer(whole[:50], headers={"Content-Length": str(len(whole))})
    site.plans["/manifest.json"] = [Answer(status=500), cut]
    assert remote_manifest(site.address, cache).total == 2


@pytest.mark.parametrize("answer", [Answer(PAGE), Answer(b'{"shardlist": []}'), Answer(CONTENT)])
def test_no_manifest_in_the_answer(site: Site, cache: ShardCache, answer: Answer) -> None:
    site.plans["/manifest.json"] = [answer]
    with pytest.raises(DataError, match=f"{site.address}/manifest.json: ") as raised:
        remote_manifest(site.address, cache)
    assert raised.value.reason == "damaged manifest"


def test_redirects(site: Site, cache: ShardCache, entry: ManifestEntry, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)  # as the manifest wants it
    site.plans["/a.tar"] = [Answer(status=302, headers={"Location": (tmp_path / "secret").as_uri()})] * 3
    with pytest.raises(ShardError, match="Redirect"):
        cache.fetch(entry)
    site.plans["/a.tar"] = [Answer(status=302, headers={"Location": "/elsewhere"})]
    site.files["/elsewhere"] = CONTENT
    assert cache.fetch(entry).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "command", ["cat {shard}; exit 3", "head -c 1000 {shard}; exit 3", "exit 3 # {shard}", "sh -c 'exit 3' {shard}"]
)
def test_command_that_fails(cache: ShardCache, entry: ManifestEntry, tmp_path: Path, command: str) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    address = "pipe:" + command.format(shard=tmp_path / "a.tar")
    with pytest.raises(ShardError, match=r"in 3 attempts: the command ended with status 3 \(3 times\)"):
        cache.fetch(ManifestEntry("a.tar", entry.path, 1, len(CONTENT), entry.sha256, address))
    assert kept(cache) == []


def test_command_that_goes_on_for_ever(cache: ShardCache, entry: ManifestEntry) -> None:
    with pytest.raises(ShardError, match=r"more came than the 512,000 bytes"):
        cache.fetch(ManifestEntry("a.tar", entry.path, 1, len(CONTENT), entry.sha256, "pipe:yes a.tar"))
    assert kept(cache) == []


@pytest.mark.parametrize(
    "name",
    ["a;touch canary;.tar", "$(touch canary).tar", "a b.tar", "-rf.tar", "x/-n.tar", "'a'.tar", "a\n.tar", "~.tar"],
)
def test_names_that_a_shell_would_run(
    cache: ShardCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manifest.json").write_bytes(manifest_of({name: CONTENT}))
    with pytest.raises(DataError, match="can't be put into a command"):
        remote_manifest("pipe:cat manifest.json", cache)
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    "url", ["pipe:touch canary", "file:///etc/passwd", "/etc/passwd", "../a.tar", "a/../../a.tar", "a\\..\\a.tar"]
)
def test_manifests_that_name_other_places(site: Site, cache: ShardCache, url: str) -> None:
    site.files["/manifest.json"] = manifest_of({url: CONTENT})
    with pytest.raises(DataError, match="must lie within the manifest's folder"):
        remote_manifest(site.address, cache)


def test_manifests_that_name_other_protocols(cache: ShardCache) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/hostile/manifest.json", manifest_of({"x/a::secret.tar": CONTENT}))
    try:
        entry = remote_manifest("memory://hostile", cache).shards[0]
    finally:
        memory.rm("/hostile", recursive=True)
    with pytest.raises(UsageError, match="chained"):
        cache.fetch(entry)


def test_copy_of_another_size(site: Site, cache: ShardCache, entry: ManifestEntry) -> None:
    cache.max_bytes = len(CONTENT)
    path = cache.fetch(entry)
    with path.open("r+b") as file:
        file.truncate(1000)
    assert cache.fetch(entry).read_bytes() == CONTENT
    assert len(site.requests) == 2


def test_larger_than_the_cache(site: Site, cache: ShardCache, entry: ManifestEntry) -> None:
    cache.max_bytes = len(CONTENT) - 1
    with pytest.raises(OptionError, match=r"/a.tar: is 512,000 bytes, .* may hold 511,999"):
        cache.fetch(entry)
    assert site.requests == [] and not cache.folder.exists()


def test_disk_without_room(
    site: Site, cache: ShardCache, entry: ManifestEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(OutputError, match=r"the disk is full: .*/a.tar needs 512,000 bytes, 1,000 are free"):
        cache.fetch(entry)
    assert site.requests == [] and kept(cache) == []
    monkeypatch.undo()
    assert cache.fetch(entry).read_bytes() == CONTENT


def test_shards_make_room_on_the_disk(site: Site, cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = remote_manifest(site.address, cache).shards
    cache.fetch(first)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 1000, 1000))
    assert cache.fetch(second).read_bytes() == OTHER
    assert kept(cache) == [second.path.name]


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, r"the disk is full: .* needs 512,000 bytes"), (errno.EIO, "can't be written")]
)
def test_writing_fails(
    site: Site,
    cache: ShardCache,
    entry: ManifestEntry,
    delays: list[float],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    message: str,
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=message):
        cache.fetch(entry)
    assert delays == [] and kept(cache) == []


def test_folder_that_cannot_be_made(tmp_path: Path, entry: ManifestEntry) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"the cache of shards .*/file/cache: can't be written"):
        ShardCache(tmp_path / "file" / "cache").fetch(entry)


def test_killed_in_the_middle(site: Site, cache: ShardCache, entry: ManifestEntry) -> None:
    hold = threading.Event()
    site.plans["/a.tar"] = [Answer(CONTENT, hold=hold)]
    process = FORK.Process(target=cache.fetch, args=(entry,))
    process.start()
    wait_for(lambda: cache.folder.exists() and any(path.suffix == ".tmp" for path in cache.folder.iterdir()))
    time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    hold.set()
    left = kept(cache)
    assert len(left) == 1 and left[0].endswith(".tmp")
    second = remote_manifest(f"{site.address}/b.tar", cache).shards[0]
    cache.fetch(second)  # of another shard: cleans up all the same
    assert kept(cache) == [second.path.name]
    assert cache.fetch(entry).read_bytes() == CONTENT


def test_processes_that_want_the_same(site: Site, cache: ShardCache, entry: ManifestEntry) -> None:
    hold = threading.Event()
    site.plans["/a.tar"] = [Answer(CONTENT, hold=hold)]
    with FORK.Pool(3) as pool:
        results = [pool.apply_async(cache.fetch, (entry,)) for _ in range(3)]
        wait_for(lambda: site.requests)
        time.sleep(0.1)
        assert not any(result.ready() for result in results)
        hold.set()
        assert {result.get(20) for result in results} == {entry.path}
    assert site.requests == ["/a.tar"]
    assert entry.path.read_bytes() == CONTENT


def fetch_afresh(cache: ShardCache, entry: ManifestEntry) -> None:
    """Fetches in a process that has no connections of its parent."""
    assert not [thing for thing in gc.get_objects() if isinstance(thing, ClientSession) and not thing.closed]
    cache.fetch(entry)


def test_forked_after_fetching(site: Site, cache: ShardCache) -> None:
    first, second = remote_manifest(site.address, cache).shards
    site.plans["/a.tar"] = [Answer(status=500)]
    cache.fetch(first)
    process = FORK.Process(target=fetch_afresh, args=(cache, second))
    process.start()
    process.join(20)
    assert process.exitcode == 0 and second.path.read_bytes() == OTHER


def test_transfers_wait_for_room(site: Site, cache: ShardCache) -> None:
    cache.max_bytes = len(CONTENT) * 8 // 5  # enough for one, and the half of another that has come
    cache.retries = ShardCache(cache.folder).retries  # that really sleeps
    first, second = remote_manifest(site.address, cache).shards
    site.requests.clear()
    hold = threading.Event()
    site.plans["/a.tar"] = [Answer(CONTENT, hold=hold)]
    threads = [threading.Thread(target=cache.fetch, args=(entry,)) for entry in (first, second)]
    threads[0].start()
    wait_for(lambda: site.requests)
    threads[1].start()
    time.sleep(0.2)
    assert site.requests == ["/a.tar"]
    hold.set()
    for thread in threads:
        thread.join(20)
    assert kept(cache) == [second.path.name] and second.path.read_bytes() == OTHER


def test_errors_cross_processes(site: Site, cache: ShardCache, entry: ManifestEntry) -> None:
    site.plans["/a.tar"] = [Answer(status=404)]
    with FORK.Pool(1) as pool, pytest.raises(ShardError, match="doesn't exist"):
        pool.apply(cache.fetch, (entry,))
