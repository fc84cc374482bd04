"""Faults of shards: each is named, nothing is lost silently, and no image gets another's caption."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tars import BLOCK, facts, member, sample_members, tar, unpack, write_folder

from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards.inspecting import inspect_shard, inspect_shards
from mm.data.shards.inspection import FAULTS, Inspection
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import IndexedShards, read_shard
from mm.errors import DataError, ShardError

COUNT = 4
A = [sample_members(f"a{number}", number) for number in range(COUNT)]
B = [sample_members(f"b{number}", number + COUNT) for number in range(COUNT)]
FIRST = [part for sample in A for part in sample]
OTHER = [part for sample in B for part in sample]
ALL = {"a0", "a1", "a2", "a3"}


def original(key: str) -> tuple[object, ...]:
    """What is read of a sample that nothing has happened to."""
    number = int(key[1])
    sample = (A if key[0] == "a" else B)[number]
    return (
        key,
        unpack(sample)[f"{key}.png"],
        {"en": [f"picture of {key}"]},
        {"number": COUNT * (key[0] == "b") + number},
    )


def start(members: list[bytes], number: int) -> int:
    """Where a member begins."""
    return sum(map(len, members[:number]))


def without(members: list[bytes], number: int) -> list[bytes]:
    return members[:number] + members[number + 1 :]


def with_bytes(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def flipped(content: bytes, at: int) -> bytes:
    return with_bytes(content, at, bytes([content[at] ^ 1]))


WHOLE = tar(FIRST)
Fault = tuple[bytes | None, str, set[str], int | None]
# The shard as it is found, or None for none; the reason given; keys of samples that can't be read; the byte.
PARTLY_LOST: dict[str, Fault] = {
    "cut at the edge of a sample": (WHOLE[: start(FIRST, 6)], "shard cut short", {"a1", "a2", "a3"}, start(FIRST, 6)),
    "cut at the edge of a member": (WHOLE[: start(FIRST, 7)], "shard cut short", {"a2", "a3"}, start(FIRST, 7)),
    "cut inside a member": (
        WHOLE[: start(FIRST, 6) + BLOCK + 9],
        "shard cut short",
        {"a2", "a3"},
        start(FIRST, 6) + BLOCK + 9,
    ),
    "cut inside a header": (WHOLE[: start(FIRST, 8) + 7], "shard cut short", {"a2", "a3"}, start(FIRST, 8) + 7),
    "cut before the end marker": (WHOLE[: -2 * BLOCK], "shard cut short", {"a3"}, len(WHOLE) - 2 * BLOCK),
    "cut within the end marker": (WHOLE[:-BLOCK], "shard cut short", {"a3"}, len(WHOLE) - BLOCK),
    "header zeroed, and cut after it": (
        WHOLE[: start(FIRST, 10)] + bytes(BLOCK),
        "shard cut short",
        {"a3"},
        start(FIRST, 10) + BLOCK,
    ),
    "first header zeroed": (with_bytes(WHOLE, 0, bytes(BLOCK)), "corrupt tar header", ALL, 0),
    "header zeroed": (
        with_bytes(WHOLE, start(FIRST, 7), bytes(BLOCK)),
        "corrupt tar header",
        {"a2", "a3"},
        start(FIRST, 7),
    ),
    "header altered": (flipped(WHOLE, start(FIRST, 6)), "corrupt tar header", {"a1", "a2", "a3"}, start(FIRST, 6)),
    "size altered": (flipped(WHOLE, start(FIRST, 9) + 133), "corrupt tar header", {"a2", "a3"}, start(FIRST, 9)),
    "captions swapped within the shard": (
        tar([FIRST[0], FIRST[4], *FIRST[2:4], FIRST[1], *FIRST[5:]]),
        "members of a sample not adjacent",
        {"a0", "a1"},
        None,
    ),
    "members not adjacent": (
        tar([*without(FIRST, 4), FIRST[4]]),
        "members of a sample not adjacent",
        {"a1"},
        start(FIRST, 11) + len(FIRST[11]) - len(FIRST[4]),
    ),
    "missing": (None, "missing shard", ALL, None),
    "empty": (b"", "empty shard", ALL, 0),
    "HTML page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not a tar", ALL, 0),
    "JSON message": (b'{"error": "AccessDenied"}', "not a tar", ALL, 0),
    "compressed": (gzip.compress(WHOLE), "not a tar", ALL, 0),
    "something else": (b"once upon a time " * 100, "not a tar", ALL, 0),
}
# The same, of shards that are well-formed but not the ones that the manifest describes: nothing of them is used.
OTHERS: dict[str, Fault] = {
    "caption removed": (tar(without(FIRST, 4)), "shard cut short", {"a1"}, len(WHOLE) - 2 * BLOCK),
    "image removed": (tar(without(FIRST, 3)), "no image", {"a1"}, start(FIRST, 3)),
    "sample removed": (tar(FIRST[:3] + FIRST[6:]), "fewer samples than the manifest says", {"a1"}, None),
    "caption swapped with another shard's": (
        tar([*FIRST[:4], OTHER[4], *FIRST[5:]]),
        "members of a sample not adjacent",
        {"a1", "a3"},
        start(FIRST, 5),
    ),
    "image swapped with another shard's": (
        tar([*FIRST[:9], OTHER[0], *FIRST[10:]]),
        "more samples than the manifest says",
        {"a3"},
        None,
    ),
    "same key twice in a row": (tar(FIRST[:3] + FIRST), "duplicate key", {"a0", "a3"}, start(FIRST, 3)),
    "same key twice": (tar(FIRST + FIRST[:3]), "duplicate key", {"a0"}, len(WHOLE) - 2 * BLOCK),
    "same member twice": (tar([*FIRST[:5], *FIRST[4:]]), "duplicate member", {"a1"}, start(FIRST, 5)),
    "another shard's sample appended": (
        tar(FIRST + B[0]),
        "more samples than the manifest says",
        set(),
        len(tar(FIRST + B[0])),
    ),
    "bytes appended": (WHOLE + bytes(BLOCK), "shard larger than the manifest says", set(), len(WHOLE)),
}
FAULTS_OF_SHARDS = PARTLY_LOST | OTHERS
KEPT = [content for content, *_ in PARTLY_LOST.values()]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_folder(tmp_path / "shards", {"a.tar": FIRST, "b.tar": OTHER})


def damage(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def check_names(problems: list[Rejection], path: Path) -> None:
    """Every problem names shard and reason on one line."""
    for problem in problems:
        assert problem.reason and problem.source.startswith(str(path)) and problem.detail.startswith(str(path))
        assert "\n" not in problem.detail and problem.key in problem.detail


def read(path: Path, manifest: Manifest) -> tuple[list[Sample], Tally]:
    tally = Tally()
    return list(tally.accept(read_shard(path, manifest.shards[0]))), tally


@pytest.mark.parametrize(
    ("content", "reason", "lost", "offset"), FAULTS_OF_SHARDS.values(), ids=FAULTS_OF_SHARDS.keys()
)
class TestFault:
    """A fault of the first of two shards."""

    def test_in_order(
        self, manifest: Manifest, content: bytes | None, reason: str, lost: set[str], offset: int | None
    ) -> None:
        path = manifest.shards[0].path
        damage(path, content)
        samples, tally = read(path, manifest)
        assert reason in tally.by_reason()
        check_names(tally.rejections, path)
        captioned = [sample for sample in samples if sample.captions]
        found = {sample.key for sample in captioned}
        assert ALL - lost <= found | {"a3"} and not found & lost - {"a3"}
        for sample in samples:
            parts = None if sample.captions else 2  # without captions it's its own image at least
            assert facts(sample)[:parts] == original(sample.key)[:parts]
        assert tally.seen == max(COUNT, len(samples) + sum(1 for problem in tally.rejections if problem.key))

    def test_inspected(
        self, manifest: Manifest, content: bytes | None, reason: str, lost: set[str], offset: int | None
    ) -> None:
        entry = manifest.shards[0]
        damage(entry.path, content)
        found = inspect_shard(entry.path, entry)
        assert found.damaged and not inspect_shard(manifest.shards[1].path, manifest.shards[1]).problems
        problem = next(problem for problem in found.problems if problem.reason == reason)
        assert offset is None or problem.offset == offset
        check_names(found.problems, entry.path)
        check_ledger(found, COUNT)

    def test_by_position(
        self, manifest: Manifest, content: bytes | None, reason: str, lost: set[str], offset: int | None
    ) -> None:
        damage(manifest.shards[0].path, content)
        found = inspect_shards(manifest.shards)
        shards = IndexedShards(manifest, inspections=found)
        unusable = set(found[0].unusable)
        read = [facts(shards[place]) for place in range(COUNT) if place not in unusable]
        assert read == [original(str(sample[0])) for sample in read]
        assert {sample[0] for sample in read} == (ALL - lost if content in KEPT else set())
        assert [facts(shards[COUNT + place]) for place in range(COUNT)] == [original(f"b{i}") for i in range(COUNT)]

    def test_refused_without_an_inspection(
        self, manifest: Manifest, content: bytes | None, reason: str, lost: set[str], offset: int | None
    ) -> None:
        damage(manifest.shards[0].path, content)
        shards = IndexedShards(manifest)
        errors = []
        for place in range(COUNT):
            try:
                assert facts(shards[place]) == original(shards.key(place))
            except DataError as error:
                errors.append(error)
                assert str(manifest.shards[0].path) in str(error)
        assert any(error.reason in FAULTS for error in errors)
        assert facts(shards[COUNT]) == original("b0")


def check_ledger(found: Inspection, promised: int) -> None:
    """Samples in = used + rejected by reason."""
    total = max(promised, len(found.languages))
    assert sum(problem.samples for problem in found.problems) == len(found.unusable) == len(set(found.unusable))
    assert set(found.unusable) <= set(range(total))
    assert sum(1 for problem in found.problems if not problem.key) <= 1
    assert found.entry.nsamples == len(found.languages)


def test_shards_in_each_others_place(manifest: Manifest) -> None:
    first, second = (shard.path for shard in manifest.shards)
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    for found in inspect_shards(manifest.shards, verify=True):
        assert found.damaged and found.unusable == list(range(COUNT))
        (problem,) = found.problems
        assert problem.samples == COUNT


def uncompressed(tmp_path: Path) -> Manifest:
    """A shard with images in which any bit may flip unseen."""
    members = [part for number in range(COUNT) for part in sample_members(f"a{number}", number, "BMP")]
    return write_folder(tmp_path / "bmp", {"a.tar": members})


def test_a_flipped_bit_that_no_decoder_sees(tmp_path: Path) -> None:
    manifest = uncompressed(tmp_path)
    entry = manifest.shards[0]
    before = inspect_shards(manifest.shards, verify=True)
    content = entry.path.read_bytes()
    at = content.index(b"a2.bmp") + BLOCK + 80
    state = entry.path.stat()
    entry.path.write_bytes(flipped(content, at))
    os.utime(entry.path, ns=(state.st_atime_ns, state.st_mtime_ns))

    assert not inspect_shard(entry.path, entry, images=True).problems
    found = inspect_shard(entry.path, entry, verify=True)
    assert [(problem.reason, problem.samples) for problem in found.problems] == [("shard hash differs", COUNT)]
    assert found.damaged and str(entry.path) in found.problems[0].detail
    *samples, last = read_shard(entry.path, entry, verify=True)
    assert len(samples) == COUNT and isinstance(last, Rejection)
    assert (last.reason, last.source, last.samples) == ("shard hash differs", str(entry.path), 0)
    assert all(isinstance(item, Sample) for item in read_shard(entry.path, entry))

    shards = IndexedShards(manifest, inspections=before)
    for place in (0, 1, 3):
        assert shards[place].key == f"a{place}"
    for images in (True, False):
        shards = IndexedShards(manifest, images=images, inspections=before)
        with pytest.raises(DataError, match=r"a\.tar/a2: content differs") as caught:
            shards[2]
        assert caught.value.offset == content.index(b"a2.bmp")


CAPTION_FAULTS: dict[str, tuple[dict[str, bytes], str]] = {
    "no file": ({}, "missing caption"),
    "no field": ({"json": b'{"n": 1}'}, "missing caption"),
    "empty file": ({"txt": b""}, "empty caption"),
    "blank": ({"txt": b" \n\t"}, "empty caption"),
    "byte order mark": ({"txt": b"\xef\xbb\xbf"}, "empty caption"),
    "empty list": ({"json": b'{"captions": []}'}, "empty caption"),
    "blank in a list": ({"json": b'{"captions": ["", " "], "captions_zh": []}'}, "empty caption"),
    "Latin-1": ({"txt": "café".encode("latin-1")}, "caption is not UTF-8"),
    "UTF-16": ({"txt": "a cat".encode("utf-16")}, "caption is not UTF-8"),
    "JSON in Latin-1": ({"json": '{"captions": ["café"]}'.encode("latin-1")}, "caption is not UTF-8"),
    "half a surrogate pair": ({"json": b'{"captions": ["\\ud83d"]}'}, "caption is not UTF-8"),
    "no JSON": ({"json": b'{"captions": ['}, "caption file is not JSON"),
    "JSON list": ({"json": b"[1]"}, "caption file is not a JSON object"),
    "JSON number": ({"json": b'{"captions": 3}'}, "captions are not a list of strings"),
}


@pytest.mark.parametrize(("files", "reason"), CAPTION_FAULTS.values(), ids=CAPTION_FAULTS.keys())
def test_captions(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    bad = [A[1][0], *(member(f"a1.{suffix}", content) for suffix, content in files.items())]
    entry = write_folder(tmp_path / "shards", {"a.tar": A[0] + bad + A[2]}).shards[0]
    found = inspect_shard(entry.path, entry)
    assert not found.damaged and found.unusable == [1] and found.languages == ["en", "", "en"]
    (problem,) = found.problems
    assert (problem.reason, problem.key, problem.samples, problem.offset) == (reason, "a1", 1, sum(map(len, A[0])))
    assert problem.source == f"{entry.path}/a1" and problem.detail.startswith(problem.source)
    first, middle, last = read_shard(entry.path, entry)
    assert isinstance(first, Sample) and isinstance(last, Sample)
    assert "\ufffd" not in "".join(first.captions["en"] + last.captions["en"])
    if reason not in ("missing caption", "empty caption"):
        assert middle == problem
        with pytest.raises(DataError) as caught:
            IndexedShards(Manifest([entry]), inspections=[found])[1]
        assert caught.value.reason == reason
        return
    assert isinstance(middle, Sample) and not middle.captions
    if not files.get("json"):
        assert not inspect_shard(entry.path, entry, captions=False).problems


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch {self.path}",)


UNSAFE: dict[str, Callable[[Path], list[bytes]]] = {
    "parent folder": lambda root: [member("../a1.png", unpack(A[1])["a1.png"]), member("../a1.txt", b"x")],
    "parent folder within": lambda root: [member("x/../../a1.png", unpack(A[1])["a1.png"])],
    "backslashes": lambda root: [member("..\\a1.png", unpack(A[1])["a1.png"])],
    "absolute": lambda root: [member(f"{root}/escaped.png", unpack(A[1])["a1.png"])],
    "drive": lambda root: [member("C:\\a1.png", unpack(A[1])["a1.png"])],
    "hidden and absolute": lambda root: [member(f"{root}/.bashrc", b"x")],
    "symbolic link": lambda root: [member("a1.png", kind=tarfile.SYMTYPE, link="/etc/passwd"), A[1][1]],
    "link as caption": lambda root: [A[1][0], member("a1.txt", kind=tarfile.SYMTYPE, link="/etc/passwd")],
    "hard link": lambda root: [member("a1.png", kind=tarfile.LNKTYPE, link="a0.png"), A[1][1]],
    "character device": lambda root: [member("a1.png", kind=tarfile.CHRTYPE), A[1][1]],
    "block device": lambda root: [member("a1.png", kind=tarfile.BLKTYPE), A[1][1]],
    "named pipe": lambda root: [member("a1.png", kind=tarfile.FIFOTYPE), A[1][1]],
    "pickle": lambda root: [*A[1], member("a1.pkl", pickle.dumps(Canary(root / "canary")))],
    "pickle alone": lambda root: [member("a1.pickle", pickle.dumps(Canary(root / "canary")))],
    "weights": lambda root: [*A[1], member("a1.pth", pickle.dumps(Canary(root / "canary")))],
    "Python extension": lambda root: [*A[1], member("a1.PYD", b"MZ")],
    "program": lambda root: [*A[1], member("a1.seg.exe", b"MZ")],
    "gzip": lambda root: [*A[1], member("a1.txt.gz", gzip.compress(bytes(1 << 26)))],
    "archive": lambda root: [*A[1], member("a1.zip", b"PK\x03\x04")],
}


@pytest.mark.parametrize("make", UNSAFE.values(), ids=UNSAFE.keys())
def test_unsafe_members(tmp_path: Path, make: Callable[[Path], list[bytes]]) -> None:
    entry = write_folder(tmp_path / "shards", {"a.tar": A[0] + make(tmp_path) + A[2]}).shards[0]
    before = sorted(tmp_path.rglob("*"))
    tracemalloc.start()
    found = inspect_shard(entry.path, entry, verify=True, images=True)
    items = list(read_shard(entry.path, entry, verify=True))
    shards = IndexedShards(Manifest([entry]), inspections=[found])
    with pytest.raises(DataError, match="isn't opened"):
        shards[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.unusable == [1] and not found.damaged
    assert [problem.reason for problem in found.problems] == ["unsafe member"]
    assert [isinstance(item, Sample) for item in items] == [True, False, True]
    assert [facts(item) for item in items if isinstance(item, Sample)] == [original("a0"), original("a2")]
    assert isinstance(items[1], Rejection) and items[1].reason == "unsafe member"
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written
    assert peak < 1 << 23


def test_a_shard_is_never_held_in_memory(tmp_path: Path) -> None:
    size = 1 << 27
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("a0.png")
    info.size = size
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    with path.open("r+b") as file:  # a file of zeros that takes no space
        file.truncate(BLOCK + size)
        file.seek(BLOCK + size)
        file.write(tar([A[0][1]]))
    tracemalloc.start()
    found = inspect_shard(path, verify=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.problems and found.languages == ["en"] and found.entry.sha256 is not None
    assert peak < 1 << 23


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_a_caption_file_that_is_too_large(tmp_path: Path, suffix: str) -> None:
    large = member(f"a0.{suffix}", b" " * ((1 << 24) + 1))
    entry = write_folder(tmp_path / "shards", {"a.tar": [A[0][0], large, *A[1]]}).shards[0]
    found = inspect_shard(entry.path, entry)
    assert [(problem.reason, problem.key) for problem in found.problems] == [("file too large", "a0")]


def test_a_shard_that_changes_while_it_is_in_use(manifest: Manifest) -> None:
    shards = IndexedShards(manifest)
    assert shards[0].key == "a0"
    path = manifest.shards[0].path
    with path.open("ab") as file:
        file.write(bytes(BLOCK))
    with pytest.raises(ShardError, match="changed"):
        shards[1]
    inspections = inspect_shards(manifest.shards)
    path.write_bytes(WHOLE)
    with pytest.raises(ShardError, match="changed"):
        IndexedShards(manifest, inspections=inspections)[0]


def test_something_that_is_no_file(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "a.tar", tmp_path / "b.tar"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):  # a pipe that nobody writes to would be waited for
        (rejection,) = read_shard(path)
        assert isinstance(rejection, Rejection) and rejection.reason == "unreadable shard"
        assert inspect_shard(path).problems == [rejection]
