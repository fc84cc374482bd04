from __future__ import annotations

from pathlib import Path

import pytest

from mm.data.making.journal import JOURNAL_NAME, FinishedShard, Journal, is_begun
from mm.data.samples import Rejection
from mm.errors import OutputError

TASK = {"source 1": "photos: 3 files", "max_side": None, "languages": ["en"]}


def record(folder: Path, split: str, number: int) -> FinishedShard:
    """The record of a shard that is there."""
    (folder / split).mkdir(exist_ok=True)
    (folder / split / f"x-{number}.tar").write_bytes(b"x" * number)
    rejections = [Rejection("a", "b", "truncated", "图\udce9", 2, 512)]
    return FinishedShard(
        split, f"x-{number}.tar", 3, number, "0" * 64, 10 * number, {"n": 1}, rejections, ["k"], ["00ff"]
    )


def begin(folder: Path) -> list[FinishedShard]:
    journal = Journal(folder, TASK)
    records = [record(folder, split, number) for number in (1, 2, 3) for split in ("train", "val")]
    for one in records:
        journal.add(one)
    journal.close()
    return records


def reopened(folder: Path) -> list[FinishedShard]:
    journal = Journal(folder, TASK)
    journal.close()
    return journal.records


def test_records_are_read_back(tmp_path: Path) -> None:
    records = begin(tmp_path)
    assert is_begun(tmp_path) and reopened(tmp_path) == records == reopened(tmp_path)
    entry = records[3].entry(tmp_path / "val")
    assert (entry.url, entry.path, entry.bytes) == ("x-2.tar", tmp_path / "val" / "x-2.tar", 2)
    journal = Journal(tmp_path, TASK)
    journal.remove()
    journal.close()
    assert not is_begun(tmp_path) and reopened(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_shard_ends_its_split_alone(tmp_path: Path, split: str) -> None:
    records = begin(tmp_path)
    (tmp_path / split / "x-2.tar").unlink()
    expected = [one for one in records if one.split != split or one.url == "x-1.tar"]
    assert reopened(tmp_path) == expected
    (tmp_path / split / "x-2.tar").write_bytes(b"xx")
    assert reopened(tmp_path) == expected  # what was dropped doesn't come back


def test_a_journal_cut_anywhere_holds_the_records_before(tmp_path: Path) -> None:
    records = begin(tmp_path)
    path = tmp_path / JOURNAL_NAME
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        count = max(whole[:end].count(b"\n") - 1, 0)
        assert reopened(tmp_path) == records[:count]
    path.write_bytes(whole.replace(b'"position": 20', b'"position": ', 1))
    assert reopened(tmp_path) == records[:2]


def test_another_task_is_refused_while_shards_are_finished(tmp_path: Path) -> None:
    Journal(tmp_path, TASK | {"max_side": 5}).close()
    begin(tmp_path)
    with pytest.raises(OutputError, match=r"begun with max_side null, not 5; give the same"):
        Journal(tmp_path, TASK | {"max_side": 5})
    with pytest.raises(OutputError, match='source 2 null, not "b"'):
        Journal(tmp_path, TASK | {"source 2": "b"})
    assert len(reopened(tmp_path)) == 6


def test_one_run_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TASK)
    with pytest.raises(OutputError, match=r"another .* is at work"):
        Journal(tmp_path, TASK)
    journal.close()
    assert reopened(tmp_path) == []
    with pytest.raises(OutputError, match="can't be opened"):
        Journal(tmp_path / "nowhere", TASK)
