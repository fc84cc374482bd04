from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pictures import some_samples, write_tar

from mm.data.shards.manifest import KIND, Manifest
from mm.data.shards.writing import write_shards
from mm.errors import DataError, OutputError, ShardError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(some_samples(5), tmp_path / "out", max_samples=2)
    return tmp_path / "out"


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))
    return path


def test_format_is_the_shard_index_of_wids(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    assert (document["__kind__"], document["wids_version"]) == ("wids-shard-index-v1", 1)
    assert [set(shard) for shard in document["shardlist"]] == [{"url", "nsamples", "bytes", "sha256"}] * 3
    shard = folder / document["shardlist"][0]["url"]
    assert document["shardlist"][0] == {
        "url": "shard-000000.tar",
        "nsamples": 2,
        "bytes": shard.stat().st_size,
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
    }


def test_read_build_and_write_agree(folder: Path, tmp_path: Path) -> None:
    read = Manifest.read(folder)
    seen: list[int] = []
    assert read == Manifest.read(folder / "manifest.json") == Manifest.build(folder, seen.append)
    assert read.total == sum(seen) == 5
    written = read.write(tmp_path / "copy.json")
    assert written.read_bytes() == (folder / "manifest.json").read_bytes()
    assert not [path for path in (*tmp_path.iterdir(), *folder.iterdir()) if path.name.endswith(".tmp")]


def test_digest_identifies_the_content_and_order(folder: Path) -> None:
    manifest = Manifest.read(folder)
    (folder / "manifest.json").unlink()
    counted = Manifest.of(folder)
    assert counted.shards[0].sha256 is None and counted.total == 5
    assert counted.digest == manifest.digest and len(manifest.digest) == 64
    assert Manifest(manifest.shards[::-1]).digest != manifest.digest
    assert Manifest(manifest.shards[:2]).digest != manifest.digest


def test_of_takes_folders_and_shards(folder: Path) -> None:
    manifest = Manifest.read(folder)
    assert Manifest.of(folder) == manifest
    assert Manifest.of([folder / "shard-000001.tar"]).shards == manifest.shards[1:2]
    write_tar(folder / "extra.tar", {"a.jpg": b"", "a.txt": b"", "b.jpg": b""})
    extra = Manifest.of([str(folder), folder / "extra.tar"])
    assert extra.shards[:3] == manifest.shards and extra.total == 7


@pytest.mark.parametrize("listed", [True, False])
def test_of_counts_a_shard_once(folder: Path, monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    if not listed:
        (folder / "manifest.json").unlink()
    last = folder / "shard-000002.tar"
    monkeypatch.chdir(folder)
    manifest = Manifest.of([last, folder, last, Path("shard-000000.tar")])
    assert [shard.path.name[6:12] for shard in manifest.shards] == ["000002", "000000", "000001"]
    assert manifest.total == 5


def test_of_indexes_shards_without_a_manifest(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = Manifest.read(folder)
    (folder / "manifest.json").unlink()
    before = sorted(folder.iterdir())
    found = Manifest.of(folder)
    assert sorted(folder.iterdir()) == before
    assert found.shards == [replace(shard, sha256=None) for shard in written.shards]
    (record,) = caplog.records
    assert "no manifest.json lists these 3 shards" in record.getMessage() and "mm shards" in record.getMessage()


def test_of_counts_a_damaged_shard_up_to_the_damage(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"", "b.jpg": b"", "c.jpg": b""})
    path.write_bytes(path.read_bytes()[:1536])
    (entry,) = Manifest.of(path).shards
    assert (entry.nsamples, entry.bytes) == (3, 1536)  # two before the damage, and at least one lost


def test_shards_that_the_manifest_does_not_list_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("x.tar", "y.tar"):
        write_tar(folder / name, {"a.jpg": b""})
    assert Manifest.of(folder).total == 5
    (record,) = caplog.records
    assert "2 .tar files aren't listed" in record.getMessage() and str(folder) in record.getMessage()
    caplog.clear()
    assert Manifest.of(folder / "shard-000000.tar").total == 2 and not caplog.records


def test_parse_places_shards(tmp_path: Path, folder: Path) -> None:
    content = (folder / "manifest.json").read_bytes()
    local = Manifest.parse(content, "somewhere", tmp_path)
    assert local.shards[0].path == tmp_path / "shard-000000.tar"
    assert local.shards[0].name == str(tmp_path / "shard-000000.tar")
    assert replace(local.shards[0], remote="s3://photos/0.tar").name == "s3://photos/0.tar"
    with pytest.raises(DataError, match=r"^s3://photos/manifest\.json: holds a list"):
        Manifest.parse(b"[]", "s3://photos/manifest.json", tmp_path)


def test_digest_needs_shards_that_are_there(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    manifest = Manifest.of(folder)
    manifest.shards[1].path.unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar: doesn't exist"):
        _ = manifest.digest
    remote = Manifest([replace(shard, remote=f"s3://{shard.url}") for shard in manifest.shards])
    assert len(remote.digest) == 64


def test_digest_reads_each_shard_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "manifest.json").unlink()
    digest = Manifest.of(folder).digest
    monkeypatch.setattr("mm.data.shards.inspecting.Archive", None)  # nothing is opened any more
    assert Manifest.of(folder).digest == digest


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"url": "../x.tar", "nsamples": 1}, "'../x.tar'"),
        ({"url": "a/../../x.tar", "nsamples": 1}, "within the manifest's folder"),
        ({"url": "/etc/x.tar", "nsamples": 1}, "within the manifest's folder"),
        ({"url": "http://example.org/x.tar", "nsamples": 1}, "within the manifest's folder"),
        ({"url": "pipe:cat x.tar", "nsamples": 1}, "within the manifest's folder"),
        ({"url": "C:\\x.tar", "nsamples": 1}, "within the manifest's folder"),
        ({"url": "x\0.tar", "nsamples": 1}, "within the manifest's folder"),
        ({"url": "", "nsamples": 1}, r"shardlist\[1\]\['url'\]"),
        ({"nsamples": 1}, r"shardlist\[1\]\['url'\]"),
        ({"url": "x.tar"}, r"shardlist\[1\]\['nsamples'\]"),
        ({"url": "x.tar", "nsamples": -1}, r"shardlist\[1\]\['nsamples'\]"),
        ({"url": "x.tar", "nsamples": True}, r"shardlist\[1\]\['nsamples'\]"),
        ({"url": "x.tar", "nsamples": 1.5}, r"shardlist\[1\]\['nsamples'\]"),
        ({"url": "x.tar", "nsamples": 1, "bytes": "9"}, r"shardlist\[1\]\['bytes'\]"),
        ({"url": "x.tar", "nsamples": 1, "sha256": "abc"}, r"shardlist\[1\]\['sha256'\]"),
        ({"url": "ok.tar", "nsamples": 1}, "'ok.tar' twice"),
        ("x.tar", r"shardlist\[1\] must be an object"),
    ],
)
def test_wrong_entries_name_file_and_key(folder: Path, entry: Any, says: str) -> None:
    path = edit(folder, shardlist=[{"url": "ok.tar", "nsamples": 1}, entry])
    with pytest.raises(DataError, match=says) as caught:
        Manifest.read(folder)
    assert str(caught.value).startswith(f"{path}: ") and caught.value.reason == "damaged manifest"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "isn't valid JSON"),
        (b"\xff\xfe", "isn't valid JSON"),
        (b"[" * 100_000, "isn't valid JSON"),
        (b"[]", "holds a list"),
        (b"{}", "'__kind__' is None"),
        (b'{"__kind__": "x"}', "'__kind__' is 'x'"),
        (json.dumps({"__kind__": KIND}).encode(), "'shardlist'"),
        (json.dumps({"__kind__": KIND, "shardlist": []}).encode(), "'shardlist'"),
        (json.dumps({"__kind__": KIND, "wids_version": 2, "shardlist": [{}]}).encode(), "'wids_version' is 2"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        Manifest.read(tmp_path)
    assert caught.value.reason == "damaged manifest"


def test_missing_things(tmp_path: Path) -> None:
    for action in (Manifest.read, Manifest.of, Manifest.build):
        with pytest.raises(UsageError, match="nowhere"):
            action(tmp_path / "nowhere")
    for action in (Manifest.of, Manifest.build):
        with pytest.raises(UsageError, match=r"no \.tar shards"):
            action(tmp_path)


def test_build_refuses_a_damaged_shard(folder: Path) -> None:
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.truncate(700)
    with pytest.raises(ShardError, match=r"shard-000001\.tar"):
        Manifest.build(folder)


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        Manifest([]).write(tmp_path / "none" / "manifest.json")


def test_a_manifest_of_something_else_is_left_alone(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "a web app"}')
    assert Manifest.of(folder).total == 5


def test_minimal_wids_manifest(folder: Path) -> None:
    edit(folder, shardlist=[{"url": "shard-000002.tar", "nsamples": 1}])
    manifest = Manifest.read(folder)
    assert manifest.total == 1 and manifest.shards[0].bytes is None and len(manifest.digest) == 64


def test_relative_paths_and_subfolders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    write_tar(tmp_path / "train" / "x.tar", {"a.jpg": b""})
    index = {"__kind__": KIND, "shardlist": [{"url": "train/x.tar", "nsamples": 1}]}
    (tmp_path / "manifest.json").write_text(json.dumps(index))
    monkeypatch.chdir(tmp_path)
    assert Manifest.of(".").shards[0].path == Path("train/x.tar")
    assert Manifest.of(tmp_path).shards[0].path.samefile("train/x.tar")
