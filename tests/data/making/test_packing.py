"""Runs that end early, and go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from making import PARTS, FullDisk, content, make, mixed_sources
from pictures import picture

from mm.data.making.journal import JOURNAL_NAME
from mm.data.making.packing import Packing
from mm.data.making.reworking import Rework
from mm.data.making.selection import Selection
from mm.data.making.shards import Reading
from mm.data.samples import Rejection, Tally
from mm.data.shards import writing
from mm.errors import OutputError, ShardError


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """31 items in a folder, a table and shards."""
    return mixed_sources(tmp_path)


class Stopped(BaseException):
    """Ends a run."""


def stop_after(count: int) -> Any:
    """A progress function that ends the run after so many items."""

    def progress(done: int, total: int | None) -> None:
        if done == count:
            raise Stopped

    return progress


@pytest.mark.slow
def test_stopped_at_any_item_the_outcome_is_the_same(tmp_path: Path, sources: list[Path]) -> None:
    whole = Tally()
    expected = make(sources, tmp_path / "whole", *PARTS, tally=whole)
    stops = 0
    for count in range(1, 32):
        out = tmp_path / f"stopped{count}"
        with pytest.raises(Stopped):
            make(sources, out, *PARTS, tally=Tally(), progress=stop_after(count), workers=1)
        stops += any(out.rglob("*.tar"))
        tally = Tally()
        made = make(sources, out, *PARTS, tally=tally, workers=2)
        assert content(out) == content(tmp_path / "whole"), count
        assert (made.counts, made.members, tally.used) == (expected.counts, expected.members, whole.used)
        assert sorted(tally.rejections, key=str) == sorted(whole.rejections, key=str)
    assert stops > 15


def test_stopped_again_and_again(tmp_path: Path, sources: list[Path]) -> None:
    make(sources, tmp_path / "whole", *PARTS, tally=Tally())
    for count in range(1, 32):
        with pytest.raises(Stopped):
            make(sources, tmp_path / "out", *PARTS, tally=Tally(), progress=stop_after(count), workers=1)
    make(sources, tmp_path / "out", *PARTS, tally=Tally())
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_a_run_left_within_its_source_is_no_source(tmp_path: Path, sources: list[Path]) -> None:
    make(tmp_path, tmp_path / "whole", *PARTS, tally=Tally())
    expected = content(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    with pytest.raises(Stopped):
        make(tmp_path, tmp_path / "whole", *PARTS, tally=Tally(), progress=stop_after(20), workers=1)
    assert list((tmp_path / "whole").rglob("*.tar"))
    make(tmp_path, tmp_path / "whole", *PARTS, tally=Tally())
    assert content(tmp_path / "whole") == expected


@pytest.fixture
def begun(tmp_path: Path, sources: list[Path]) -> Path:
    """A folder in which some shards are finished."""
    with pytest.raises(Stopped):
        make(sources, tmp_path / "out", *PARTS, tally=Tally(), progress=stop_after(29), workers=1)
    assert len(list((tmp_path / "out").rglob("*.tar"))) > 2
    return tmp_path / "out"


@pytest.mark.parametrize("damage", ["missing", "shorter", "left unfinished", "torn journal"])
def test_finished_shards_that_are_not_as_they_were_are_made_again(
    tmp_path: Path, sources: list[Path], begun: Path, damage: str
) -> None:
    make(sources, tmp_path / "whole", *PARTS, tally=Tally())
    shard, journal = begun / "train" / "x-000000.tar", begun / JOURNAL_NAME
    if damage == "missing":
        shard.unlink()
    elif damage == "shorter":
        shard.write_bytes(shard.read_bytes()[:-512])
    elif damage == "torn journal":
        journal.write_bytes(journal.read_bytes()[:-20])
    else:
        (begun / "train" / ".x-000009.tar.tmp").write_bytes(b"half a shard")
        (begun / "val" / ".manifest.json.0011aabb.tmp").write_bytes(b"half a manifest")
    make(sources, begun, *PARTS, tally=Tally())
    assert content(begun) == content(tmp_path / "whole")


def test_another_task_is_refused_where_shards_are_finished(tmp_path: Path, sources: list[Path], begun: Path) -> None:
    before = content(begun)
    others: list[tuple[list[Path], tuple[Any, ...], str]] = [
        (sources, (Rework(max_side=16), *PARTS[1:]), "max_side 32, not 16"),
        (sources, (PARTS[0], Selection(languages=["zh"]), PARTS[2]), r'languages \["en"\], not \["zh"\]'),
        (sources, (*PARTS[:2], Packing("x", 3, drop_duplicates=True)), 'shares .*"train": 0.6.*, not'),
        (sources[:3], PARTS, "source 4 .*odd.tar.*, not null"),
        (sources[::-1], PARTS, "source 1 .*photos: 13 files"),
        (sources, (*PARTS, Reading(add=[f"en={sources[1]}"])), "add .*table.csv"),
    ]
    for paths, parts, says in others:
        with pytest.raises(OutputError, match=says) as caught:
            make(paths, begun, *parts, tally=Tally())
        assert str(begun) in str(caught.value) and "\n" not in str(caught.value)
    (sources[0] / "photo0.png").write_bytes(picture(50))
    with pytest.raises(OutputError, match=r"source 1 .*photos: 13 files"):
        make(sources, begun, *PARTS, tally=Tally())
    assert content(begun) == before


def test_two_runs_at_once_are_refused(tmp_path: Path, sources: list[Path]) -> None:
    def second(done: int, total: int | None) -> None:
        if done == 25:
            assert list((tmp_path / "out").rglob(".*.tmp"))
            with pytest.raises(OutputError, match=r"another .* is at work"):
                make(sources, tmp_path / "out", *PARTS, tally=Tally())

    make(sources, tmp_path / "whole", *PARTS, tally=Tally())
    make(sources, tmp_path / "out", *PARTS, tally=Tally(), progress=second, workers=1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    with pytest.raises(OutputError, match="already holds shards"):
        make(sources, tmp_path / "out", *PARTS, tally=Tally())
    with pytest.raises(OutputError, match="already holds shards"):
        make(sources, tmp_path / "out" / "train", tally=Tally())


def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(sources, tmp_path / "whole", *PARTS, tally=Tally())
    monkeypatch.setattr(FullDisk, "room", 35_000)
    monkeypatch.setattr(writing, "open_file", FullDisk)
    with pytest.raises(ShardError, match=r"No space left.*finished and kept in .*: x-000000.tar.*goes on") as caught:
        make(sources, tmp_path / "out", *PARTS, tally=Tally())
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    make(sources, tmp_path / "out", *PARTS, tally=Tally())
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_an_added_file_has_in_vain_is_told_once(tmp_path: Path, sources: list[Path]) -> None:
    (tmp_path / "fr.txt").write_text("key1.png#0 un\nphoto1.png#0 deux\nnone.png#0 trois\nno caption\n")
    parts, stopped, whole = (*PARTS, Reading(add=[f"fr={tmp_path / 'fr.txt'}"])), Tally(), Tally()
    with pytest.raises(Stopped):
        make(sources, tmp_path / "out", *parts, tally=stopped, progress=stop_after(29), workers=1)
    made = make(sources, tmp_path / "out", *parts, tally=whole)
    for tally in (stopped, whole):
        assert [tally.by_reason()[reason] for reason in ("ambiguous image name", "malformed row")] == [1, 1]
    assert (made.added_not_found, made.rows_rejected) == (1, 2)


def test_rejections_are_remembered_with_everything(tmp_path: Path, sources: list[Path], begun: Path) -> None:
    tally = Tally()
    make(sources, begun, *PARTS, tally=tally)
    (latin,) = [rejection for rejection in tally.rejections if rejection.reason == "caption is not UTF-8"]
    name = str(sources[0] / "photo6.png")
    assert latin == Rejection(name, "photo6", "caption is not UTF-8", latin.detail) and "photo6.txt" in latin.detail
