from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import FullDisk
from pictures import contents, picture, some_samples

from mm.data.reports.checking import check_shards
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards import writing
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import read_shard
from mm.data.shards.writing import prepare_folder, write_shards
from mm.errors import DataError, OptionError, OutputError, ShardError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
SAMPLES = st.builds(
    Sample,
    key=st.from_regex(r"([a-z]{1,4}/)?[a-z0-9\u4e00-\u4eff]{1,150}", fullmatch=True),
    source=st.just("made"),
    image=st.builds(lambda number, tail: picture(number) + tail, st.integers(0, 99), st.binary(max_size=2000)),
    captions=st.dictionaries(st.sampled_from(["en", "zh"]), st.lists(TEXT, min_size=1, max_size=3)),
    metadata=st.dictionaries(st.sampled_from(["a", "图"]), st.none() | st.integers() | st.lists(TEXT)),
)


def read_back(manifest: Manifest) -> list[Sample | Rejection]:
    return [item for entry in manifest.shards for item in read_shard(entry.path, entry)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(SAMPLES, min_size=1, max_size=8, unique_by=lambda sample: sample.key),
    st.integers(1, 4),
    st.integers(1, 9999),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], max_samples: int, max_bytes: int
) -> None:
    out = tmp_path_factory.mktemp("out")
    manifest = write_shards(samples, out, "x", max_samples, max_bytes)
    assert [contents(item) for item in read_back(manifest) if isinstance(item, Sample)] == list(map(contents, samples))
    assert manifest == Manifest.read(out) == Manifest.build(out) and manifest.total == len(samples)
    assert max(entry.nsamples for entry in manifest.shards) <= max_samples
    assert check_shards(out, decode=True).ok


def test_bytes_are_always_the_same(tmp_path: Path) -> None:
    first = write_shards(some_samples(5), tmp_path / "a", max_samples=2)
    second = write_shards(some_samples(5), tmp_path / "b", max_samples=2)
    assert first.digest == second.digest
    with tarfile.open(first.shards[0].path) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in tar} == {
            (0, 0, 0, "", "", 0o644)
        }


def test_shards_are_cut_by_number_and_size(tmp_path: Path) -> None:
    by_number = write_shards(some_samples(5), tmp_path / "a", "train", max_samples=2)
    assert [(entry.url, entry.nsamples) for entry in by_number.shards] == [
        ("train-000000.tar", 2),
        ("train-000001.tar", 2),
        ("train-000002.tar", 1),
    ]
    by_size = write_shards(some_samples(5), tmp_path / "b", max_bytes=1)
    assert [entry.nsamples for entry in by_size.shards] == [1] * 5


def test_colliding_keys_get_numbers(tmp_path: Path) -> None:
    samples = [Sample(key, "s", picture(i)) for i, key in enumerate(["a", "a", "a_2", "a.b", "a_b", "a"])]
    keys = [item.key for item in read_back(write_shards(samples, tmp_path / "out")) if isinstance(item, Sample)]
    assert len(set(keys)) == 6 and keys[:2] == ["a", "a_2"]


def test_rejections_are_tallied_or_raised(tmp_path: Path) -> None:
    good, bad = some_samples(2), Sample("bad", "photos/bad", b"text")
    items = [good[0], bad, Rejection("photos/worse", "worse", "truncated", "photos/worse: truncated"), good[1]]
    tally, steps = Tally(), []
    manifest = write_shards(items, tmp_path / "a", tally=tally, progress=steps.append)
    assert manifest.total == tally.used == 2 and tally.seen == sum(steps) == 4
    assert tally.by_reason() == {"not an image": 1, "truncated": 1}
    with pytest.raises(DataError, match="photos/bad"):
        write_shards(items, tmp_path / "b")
    with pytest.raises(DataError, match="no sample"):
        write_shards([bad], tmp_path / "c", tally=Tally())
    assert list((tmp_path / "c").iterdir()) == []


def test_metadata_named_like_captions_is_rejected_not_lost(tmp_path: Path) -> None:
    clash = Sample("a", "photos/a.png", picture(), {"en": ["a dog"]}, {"captions_zh": "一只狗"})
    tally = Tally()
    manifest = write_shards([clash, *some_samples(1)], tmp_path / "out", tally=tally)
    assert (manifest.total, tally.by_reason()) == (1, {"metadata named like captions": 1})
    assert "'captions_zh'" in tally.rejections[0].detail


def never() -> Iterator[Sample]:
    raise AssertionError("read before the output was checked")
    yield


def test_output_is_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_shards(never(), tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        write_shards(never(), tmp_path / "file" / "out")
    write_shards(some_samples(1), tmp_path / "out")
    before = (tmp_path / "out" / "shard-000000.tar").read_bytes()
    with pytest.raises(OutputError, match="already holds shards"):
        write_shards(never(), tmp_path / "out")
    assert (tmp_path / "out" / "shard-000000.tar").read_bytes() == before
    for options in ({"max_samples": 0}, {"max_bytes": 0}, {"prefix": "../x"}, {"prefix": ""}, {"prefix": ".x"}):
        with pytest.raises(OptionError):
            write_shards(never(), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_what_a_killed_run_left_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / ".other-000001.tar.tmp").write_bytes(b"half a shard")
    (tmp_path / ".manifest.json.0011aabb.tmp").write_bytes(b"half a manifest")
    prepare_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".x-000000.tar.tmp").mkdir()
    with pytest.raises(OutputError, match=r"\.x-000000\.tar\.tmp: can't be removed"):
        write_shards(never(), tmp_path)


@pytest.mark.parametrize(("room", "kept"), [(5000, 0), (25_000, 2), (40_959, 3)])
def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, kept: int) -> None:
    monkeypatch.setattr(FullDisk, "room", room)
    monkeypatch.setattr(writing, "open_file", FullDisk)
    out = tmp_path / "out"
    with pytest.raises(ShardError, match="No space left on device") as caught:
        write_shards(some_samples(20), out, max_samples=2)
    message = str(caught.value)
    assert f"shard-{kept:06d}.tar" in message and "\n" not in message
    assert len(list(out.glob("*.tar"))) == kept and not list(out.glob(".*"))
    if kept:
        assert f"shard-000000.tar to shard-{kept - 1:06d}.tar ({2 * kept} samples)" in message
        assert check_shards(out, decode=True).samples == 2 * kept == Manifest.read(out).total
    else:
        assert "no shard was finished" in message


@pytest.mark.slow
def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from mm.data.shards.writing import write_shards; from mm.data.samples import Sample\n"
        "from pathlib import Path; import mm.data.images\n"
        "image = Path(sys.argv[1]).read_bytes()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))\n"
        "def samples():\n"
        "    for i in range(9): yield Sample(f'k{i}', 's', image + bytes(1000 if i < 5 else 50_000))\n"
        "write_shards(samples(), sys.argv[2], max_samples=2)\n"
    )
    (tmp_path / "image.png").write_bytes(picture())
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "image.png"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and last.startswith("mm.errors.ShardError: "), run.stderr
    assert "File too large" in last and "shard-000000.tar to shard-000001.tar (4 samples)" in last
    assert "Exception ignored" not in run.stderr
    assert check_shards(tmp_path / "out", decode=True).samples == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted(tmp_path: Path, error: type[BaseException]) -> None:
    def samples() -> Iterator[Sample]:
        yield from some_samples(5)
        raise error

    with pytest.raises(error):
        write_shards(samples(), tmp_path, max_samples=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "shard-000000.tar", "shard-000001.tar"]
    assert check_shards(tmp_path).samples == 4
