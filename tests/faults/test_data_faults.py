"""Shards cut or damaged anywhere: what is read is right, and what isn't read is accounted for."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import facts

from mm.data.reports.checking import check_shards
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards.inspecting import inspect_shards
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import IndexedShards, read_shard
from mm.data.shards.writing import write_shards
from mm.errors import DataError

COUNT = 6
BLOCK = 512


def make_samples() -> list[Sample]:
    samples = []
    for number in range(COUNT):
        buffer = BytesIO()
        Image.effect_noise((8 + 5 * number, 9), 80).convert("RGB").save(buffer, "PNG")
        captions = {"en": [f"noise {number}"] * (number % 3 + 1), "zh": [f"噪声 {number}"]}
        samples.append(Sample(f"k{number}", "made", buffer.getvalue(), captions, {"n": number}))
    return samples


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_shards(make_samples(), tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole(shard: Manifest) -> bytes:
    return shard.shards[0].path.read_bytes()


@pytest.fixture(scope="module")
def originals(shard: Manifest) -> list[tuple[object, ...]]:
    return [facts(item) for item in read_shard(shard.shards[0].path) if isinstance(item, Sample)]


def read_damaged(folder: Path, content: bytes, with_manifest: Manifest | None) -> tuple[list[Sample], Tally]:
    path = folder / "shard-000000.tar"
    path.write_bytes(content)
    tally = Tally()
    items = read_shard(path, with_manifest.shards[0] if with_manifest else None)
    samples = list(tally.accept(items))
    for rejection in tally.rejections:
        assert rejection.reason and str(path) in rejection.source and str(path) in rejection.detail
    return samples, tally


@settings(max_examples=300, deadline=None)
@given(data=st.data(), known=st.booleans())
def test_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    shard: Manifest,
    whole: bytes,
    originals: list[tuple[object, ...]],
    data: st.DataObject,
    known: bool,
) -> None:
    blocks = len(whole) // BLOCK
    at_boundary = st.integers(0, blocks - 1).map(lambda block: block * BLOCK)
    cut = data.draw(at_boundary | st.integers(0, len(whole) - 1))
    samples, tally = read_damaged(tmp_path_factory.mktemp("cut"), whole[:cut], shard if known else None)
    assert [facts(sample) for sample in samples] == originals[: len(samples)]
    end_of_content = len(whole.rstrip(b"\0"))
    if known:
        assert tally.seen == COUNT
    if known or cut < end_of_content:
        assert tally.by_reason() == {"shard cut short" if cut else "empty shard": 1}
    whole_samples = sum(whole.index(f"k{number}.".encode()) + BLOCK <= cut for number in range(1, COUNT))
    assert len(samples) >= whole_samples


def test_cut_at_every_block_boundary_without_a_manifest(
    tmp_path: Path, whole: bytes, originals: list[tuple[object, ...]]
) -> None:
    end = -(-len(whole.rstrip(b"\0")) // BLOCK) * BLOCK
    for cut in range(BLOCK, end + 2 * BLOCK, BLOCK):
        samples, tally = read_damaged(tmp_path, whole[:cut], None)
        assert tally.by_reason() == {"shard cut short": 1}, cut
        assert [facts(sample) for sample in samples] == originals[: len(samples)]
    assert len(samples) == COUNT - 1  # the block of zeros may have been a header of the last one
    samples, tally = read_damaged(tmp_path, whole[: end + 2 * BLOCK], None)
    assert tally.ok and len(samples) == COUNT


def checksum(header: bytes | bytearray) -> int | None:
    """The checksum that a tar header states, or None where it is no number."""
    try:
        return int(tarfile.nti(bytes(header[148:156])))
    except tarfile.HeaderError:
        return None


@settings(max_examples=300, deadline=None)
@given(data=st.data(), known=st.booleans())
def test_damaged_header(
    tmp_path_factory: pytest.TempPathFactory,
    shard: Manifest,
    whole: bytes,
    originals: list[tuple[object, ...]],
    data: st.DataObject,
    known: bool,
) -> None:
    number = data.draw(st.integers(0, COUNT - 1))
    first = whole.index(f"k{number}.".encode())
    start = whole.index(f"k{number}.{data.draw(st.sampled_from(['png', 'json']))}".encode())
    damaged = bytearray(whole)
    position = start + data.draw(st.integers(0, BLOCK - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    in_checksum = 148 <= position - start < 156
    assume(not in_checksum or checksum(damaged[start:]) != checksum(whole[start:]))  # 07 and 7 are the same number
    samples, tally = read_damaged(tmp_path_factory.mktemp("flip"), bytes(damaged), shard if known else None)
    assert not tally.ok
    assert tally.by_reason().keys() <= {"corrupt tar header", "shard cut short"}
    # Nobody knows whether the damaged header was of the sample before, which would then lack a member.
    assert [facts(sample) for sample in samples] == originals[: max(0, number - 1) if start == first else number]
    if known:
        assert tally.seen == COUNT


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_zeroed_blocks_never_end_a_shard_quietly(
    tmp_path_factory: pytest.TempPathFactory, shard: Manifest, whole: bytes, data: st.DataObject
) -> None:
    last = len(whole.rstrip(b"\0")) // BLOCK
    first = data.draw(st.integers(0, last - 1))
    count = data.draw(st.integers(1, last - first))
    damaged = whole[: first * BLOCK] + bytes(count * BLOCK) + whole[(first + count) * BLOCK :]
    _, tally = read_damaged(tmp_path_factory.mktemp("zero"), damaged, shard)
    assert tally.seen == COUNT
    manifest = Manifest.read(shard.shards[0].path.parent)
    folder = tmp_path_factory.mktemp("check")
    (folder / "shard-000000.tar").write_bytes(damaged)
    manifest.write(folder)
    assert not check_shards(folder).ok


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_positions_stay_what_they_were_in_a_cut_shard(
    tmp_path_factory: pytest.TempPathFactory,
    shard: Manifest,
    whole: bytes,
    originals: list[tuple[object, ...]],
    cut: int,
) -> None:
    folder = tmp_path_factory.mktemp("index")
    (folder / "shard-000000.tar").write_bytes(whole[: min(cut, len(whole) - 1)])
    manifest = Manifest.read(shard.write(folder))
    (found,) = inspect_shards(manifest.shards)
    shards = IndexedShards(manifest, inspections=[found])
    assert len(shards) == COUNT and found.damaged
    lost = []
    for index in range(COUNT):
        try:
            assert facts(shards[index]) == originals[index]
        except DataError as error:
            assert error.reason == ("shard cut short" if cut else "empty shard")
            lost.append(index)
    assert lost == found.unusable and len(lost) == found.problems[0].samples


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=3000) | st.binary(max_size=600).map(lambda head: head.ljust(2048, b"\0")))
def test_any_bytes_at_all(tmp_path_factory: pytest.TempPathFactory, shard: Manifest, content: bytes) -> None:
    samples, tally = read_damaged(tmp_path_factory.mktemp("any"), content, shard)
    assert not samples and tally.seen == COUNT and not tally.ok


def test_good_shards_are_read_beside_damaged_ones(tmp_path: Path) -> None:
    manifest = write_shards(make_samples(), tmp_path, max_samples=2)
    path = manifest.shards[1].path
    path.write_bytes(path.read_bytes()[:300])
    items = [item for entry in manifest.shards for item in read_shard(entry.path, entry)]
    assert [item.key for item in items if isinstance(item, Sample)] == ["k0", "k1", "k4", "k5"]
    (rejection,) = [item for item in items if isinstance(item, Rejection)]
    assert (rejection.source, rejection.samples) == (str(path), 2)
    assert "0 of 2 samples read" in rejection.detail
