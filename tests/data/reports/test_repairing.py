from __future__ import annotations

import json
from pathlib import Path

import pytest
from broken import FAULTS, SECOND, Fault, make_shards
from pictures import contents, picture, some_samples, write_tar

from mm.data.reports.checking import check_shards
from mm.data.reports.repairing import REJECTS_NAME, repair_shards
from mm.data.samples import Sample
from mm.data.shards.reading import read_shard
from mm.data.shards.writing import write_shards
from mm.errors import OutputError, ShardError

WHOLE = {sample.key: contents(sample) for sample in some_samples(6)}


def samples_in(folder: Path) -> list[Sample]:
    items = [item for shard in sorted(folder.glob("*.tar")) for item in read_shard(shard)]
    samples = [item for item in items if isinstance(item, Sample)]
    assert len(samples) == len(items)
    return samples


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_repaired_shards_hold_exactly_the_good_samples(tmp_path: Path, fault: Fault) -> None:
    folder, out = make_shards(tmp_path / "shards"), tmp_path / "out"
    fault.make(folder)
    report = check_shards(folder, captions=True, decode=True)
    steps: list[int] = []
    repair = repair_shards(report, out, steps.append)
    assert [contents(sample) for sample in samples_in(out)] == [WHOLE[key] for key in fault.good]
    checked = check_shards(out, captions=True, decode=True)
    assert checked.ok and checked.samples == len(fault.good) == repair.tally.used
    assert repair.tally.seen == report.tally.seen
    assert sum(steps) == repair.tally.used + len(repair.tally.rejections)
    lines = [json.loads(line) for line in (out / REJECTS_NAME).read_text().splitlines()]
    assert sum(line["samples"] for line in lines) == report.tally.seen - len(fault.good)
    (line, *_) = [line for line in lines if line["reason"] == fault.reason]
    assert line.keys() == {"source", "key", "reason", "detail", "samples", "offset"}
    assert (line["offset"] is not None) == fault.placed and line["source"].endswith(fault.source)


def test_keys_that_several_shards_have_are_made_unique(tmp_path: Path) -> None:
    for name, number in (("one", 0), ("two", 3)):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "x.tar", {"a.png": picture(number), "a.txt": name.encode()})
    report = check_shards([tmp_path / "one", tmp_path / "two"])
    assert [problem.reason for problem in report.problems] == ["key in several shards"]
    repair = repair_shards(report, tmp_path / "out")
    assert [(sample.key, sample.captions["en"]) for sample in samples_in(tmp_path / "out")] == [
        ("a", ["one"]),
        ("a_2", ["two"]),
    ]
    assert (repair.tally.used, repair.tally.rejected) == (2, 0)
    assert json.loads((tmp_path / "out" / REJECTS_NAME).read_text())["samples"] == 0


def test_nothing_left_to_write(tmp_path: Path) -> None:
    write_shards(some_samples(2), tmp_path / "shards")
    (tmp_path / "shards" / "shard-000000.tar").write_bytes(b"")
    repair = repair_shards(check_shards(tmp_path / "shards"), tmp_path / "out")
    assert repair.manifest is None and (repair.tally.used, repair.tally.rejected) == (0, 2)
    assert json.loads(repair.rejects.read_text())["reason"] == "empty shard"
    assert not list((tmp_path / "out").glob("*.tar"))


def test_shards_are_never_overwritten(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards")
    before = (folder / SECOND).read_bytes()
    with pytest.raises(OutputError, match="already holds shards"):
        repair_shards(check_shards(folder), folder)
    assert (folder / SECOND).read_bytes() == before


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_shards(tmp_path / "shards")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm.data.shards.writing.open_file", full)
    with pytest.raises(ShardError, match="No space left"):
        repair_shards(check_shards(folder), tmp_path / "out")
