from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import picture, some_samples, write_tar

from mm.data.shards import inspecting
from mm.data.shards.inspecting import _pieces, inspect_shard, inspect_shards
from mm.data.shards.inspection import Inspection
from mm.data.shards.manifest import Manifest, ManifestEntry
from mm.data.shards.reading import IndexedShards
from mm.data.shards.writing import write_shards


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_shards(some_samples(10), tmp_path / "out", max_samples=4)


def test_a_good_shard(manifest: Manifest) -> None:
    entry = manifest.shards[0]
    found = inspect_shard(entry.path, entry)
    assert found == Inspection(replace(entry, sha256=None), [], [], ["en zh"] * 4)
    verified = inspect_shard(entry.path, entry, verify=True, images=True)
    assert verified.entry == entry and not verified.problems and not verified.damaged
    assert verified.digests is not None and len(verified.digests) == 32
    assert pickle.loads(pickle.dumps(verified)) == verified


def test_a_shard_without_a_manifest(manifest: Manifest) -> None:
    path = manifest.shards[2].path
    assert inspect_shard(path, verify=True).entry == manifest.shards[2]
    path.write_bytes(path.read_bytes()[:2000])
    found = inspect_shard(path)
    assert found.damaged and (found.entry.nsamples, found.entry.bytes) == (len(found.languages), 2000)
    (problem,) = found.problems
    assert (problem.reason, problem.samples, found.unusable) == ("shard cut short", 1, [len(found.languages)])


def test_languages(tmp_path: Path) -> None:
    documents = {
        "a": {"captions": ["x"], "captions_zh": ["y"]},
        "b": {"captions_zh": ["y"]},
        "c": {"captions": [" "], "captions_fr": ["z"]},
        "d": {"n": 1},
    }
    members = {}
    for key, document in documents.items():
        members |= {f"{key}.png": picture(), f"{key}.json": json.dumps(document).encode()}
    members["e.txt"], members["e.png"] = b"a caption", picture()
    found = inspect_shard(write_tar(tmp_path / "x.tar", members), captions=False)
    assert found.languages == ["en zh", "zh", "fr", "", "en"] and not found.problems
    found = inspect_shard(tmp_path / "x.tar")
    assert found.languages == ["en zh", "zh", "fr", "", "en"] and found.unusable == [3] and not found.damaged


def test_images_are_decoded_on_request(tmp_path: Path) -> None:
    whole = picture(1, "JPEG", (64, 64))
    members = {"a.jpg": whole, "a.txt": b"a", "b.jpg": whole[:-200], "b.txt": b"b", "c.jpg": b"text", "c.txt": b"c"}
    path = write_tar(tmp_path / "x.tar", members)
    assert not inspect_shard(path).problems
    for verify in (False, True):
        found = inspect_shard(path, images=True, verify=verify)
        assert [(problem.key, problem.reason) for problem in found.problems] == [
            ("b", "truncated"),
            ("c", "not an image"),
        ]
        assert found.unusable == [1, 2] and found.languages == ["en"] * 3 and not found.damaged
        assert [problem.offset for problem in found.problems] == sorted(
            path.read_bytes().index(name) for name in (b"b.jpg", b"c.jpg")
        )
    assert inspect_shard(path, images=True, max_pixels=1000).problems[0].reason == "too many pixels"


def test_digests_depend_on_the_content_alone(tmp_path: Path) -> None:
    image, text, document = picture(3), b"a cat", b'{"n": 1}'
    paths = [
        write_tar(tmp_path / "1.tar", {"a.png": image, "a.txt": text, "a.json": document}),
        write_tar(tmp_path / "2.tar", {"b.json": document, "b.png": image, "b.txt": text}),
        write_tar(tmp_path / "3.tar", {"a.png": image, "a.txt": document, "a.json": text}),
        write_tar(tmp_path / "4.tar", {"a.png": image, "a.txt": text}),
    ]
    digests = [inspect_shard(path, verify=True).digests for path in paths]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_digests_are_those_of_reading(manifest: Manifest) -> None:
    shards = IndexedShards(manifest, inspections=inspect_shards(manifest.shards, verify=True))
    assert [shards[index].key for index in range(10)] == [sample.key for sample in some_samples(10)]


def test_a_shard_that_is_not_the_manifests_is_not_used(manifest: Manifest) -> None:
    entry = manifest.shards[0]
    for wrong, reason, lost in (
        (replace(entry, nsamples=7), "fewer samples than the manifest says", 7),
        (replace(entry, nsamples=3), "more samples than the manifest says", 4),
        (replace(entry, bytes=10**6), "shard cut short", 4),
        (replace(entry, bytes=1), "shard larger than the manifest says", 4),
        (replace(entry, sha256="0" * 64), "shard hash differs", 4),
    ):
        found = inspect_shard(entry.path, wrong, verify=True)
        assert [(problem.reason, problem.samples) for problem in found.problems] == [(reason, lost)]
        assert found.damaged and found.unusable == list(range(lost))
        assert found.entry == entry  # as it is, and not as it should be
    assert not inspect_shard(entry.path, replace(entry, bytes=None, sha256=None), verify=True).problems
    assert not inspect_shard(entry.path, replace(entry, sha256="0" * 64)).problems


def test_remote_shards_go_by_their_address(manifest: Manifest) -> None:
    entry = replace(manifest.shards[0], remote="s3://photos/0.tar", nsamples=9)
    (problem,) = inspect_shard(entry.path, entry).problems
    assert problem.source == "s3://photos/0.tar" and problem.detail.startswith("s3://photos/0.tar: ")


def test_all_shards_in_order(manifest: Manifest, tmp_path: Path) -> None:
    manifest.shards[1].path.write_bytes(b"<html>")
    extra = write_tar(tmp_path / "extra.tar", {"a.jpg": b""})
    seen: list[int] = []
    found = inspect_shards([*manifest.shards, extra], progress=seen.append)
    assert [inspection.damaged for inspection in found] == [False, True, False, False]
    assert [inspection.entry.nsamples for inspection in found] == [4, 0, 2, 1] and sum(seen) == 7
    assert found == [inspect_shard(entry.path, entry) for entry in manifest.shards] + [inspect_shard(extra)]


def test_in_several_processes(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = inspect_shards(manifest.shards, verify=True)
    monkeypatch.setattr("mm.data.shards.inspecting._MANY_SAMPLES", 1)
    monkeypatch.setattr("mm.data.shards.inspecting.usable_cpus", lambda: 2)
    monkeypatch.setattr("mm.data.shards.inspecting._inspect", None)  # not in this process
    assert inspect_shards(manifest.shards, verify=True) == alone


def test_small_shards_share_a_task(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = replace(manifest.shards[0], bytes=9 << 20), replace(manifest.shards[0], bytes=1 << 20)
    entries = [small] * 5 + [large, large, small, ManifestEntry("x.tar", tmp_path / "x.tar", 1)]
    assert [len(piece) for piece in _pieces(entries, 64, 4 << 20)] == [4, 2, 1, 2]
    assert [len(piece) for piece in _pieces(entries, 3, None)] == [3, 3, 3]
    unlisted = replace(manifest.shards[0], bytes=None)
    assert [len(piece) for piece in _pieces([unlisted] * 3, 64, unlisted.path.stat().st_size)] == [1, 1, 1]
    sizes: list[int] = []
    original = inspecting._inspect_all

    def inspect_all(how: inspecting.Thoroughness, some: list[ManifestEntry]) -> object:
        sizes.append(len(some))
        return original(how, some)

    monkeypatch.setattr(inspecting, "_inspect_all", inspect_all)
    found = inspect_shards([manifest.shards[0]] * 40, verify=True)
    assert sizes == [10] * 4 and len(found) == 40 and not any(shard.problems for shard in found)


def test_hash_of_a_damaged_shard(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"not a tar at all" * 100)
    assert inspect_shard(path, verify=True).entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_shard_loses_what_it_was_to_have(tmp_path: Path) -> None:
    entry = ManifestEntry("x.tar", tmp_path / "x.tar", 3)
    found = inspect_shard(entry.path, entry)
    assert found.unusable == [0, 1, 2] and found.problems[0].samples == 3 and found.languages == []


def test_a_shard_that_changes_meanwhile_is_not_trusted(manifest: Manifest) -> None:
    entry = manifest.shards[0]

    def change(count: int) -> None:
        with entry.path.open("ab") as file:
            file.write(bytes(512))

    (problem,) = inspect_shard(entry.path, entry, each=change).problems
    assert (problem.reason, problem.samples) == ("shard changed", 4)
