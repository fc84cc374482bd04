from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from making import mixed_sources, photo

from mm.data.making.items import gather
from mm.data.samples import Rejection, Sample


def test_sources_of_all_kinds(tmp_path: Path) -> None:
    photos, table, shards, odd = gather(mixed_sources(tmp_path), tmp_path / "out")
    assert [items.count for items in (photos, table, shards, odd)] == [13, 6, 10, None]
    assert [len(list(items)) for items in (photos, table, shards, odd)] == [13, 6, 10, 2]
    assert [items.members_left_out() for items in (photos, table, shards, odd)] == [Counter()] * 3 + [{".cls": 2}]


def test_keys_are_listed_without_reading_images(tmp_path: Path) -> None:
    for items in gather(mixed_sources(tmp_path), tmp_path / "out"):
        assert sorted(items.keys()) == sorted(item.key for item in items)


def test_images_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    (tmp_path / "t.csv").write_text("image,caption\n0.png,zero\n1.png,one\n")
    folder, table = gather([tmp_path, tmp_path / "t.csv"], tmp_path / "out")
    from_folder, from_table = list(folder), list(table)
    assert from_table[1].told == Sample("1", str(tmp_path / "1.png"), b"", {"en": ["one"]})
    (tmp_path / "1.png").write_bytes(photo(9))
    (tmp_path / "0.png").unlink()
    for items in (from_folder, from_table):
        gone, changed = items[0].load(), items[1].load()
        assert isinstance(gone, Rejection) and gone.key == "0" and str(tmp_path / "0.png") in gone.detail
        assert isinstance(changed, Sample) and (changed.key, changed.image) == ("1", photo(9))


def test_the_state_of_a_source_is_that_of_its_files(tmp_path: Path) -> None:
    sources = mixed_sources(tmp_path)

    def states() -> list[str]:
        return [items.state for items in gather(sources, tmp_path / "out")]

    before = states()
    assert states() == before and len(set(before)) == 4
    (sources[0] / "extra.png").write_bytes(photo(1))
    sources[1].write_text(sources[1].read_text() + "photos/photo9.png,nine\n")
    os.utime(sources[2] / "shard-000001.tar", (1, 1))
    assert [old == new for old, new in zip(before, states(), strict=True)] == [False, False, False, True]


def test_images_may_lie_anywhere(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(photo(1))
    (tmp_path / "t.csv").write_text(f"image,caption\na.png,one\n{tmp_path}/photos/a.png,two\n../photos/a.png,three\n")
    (items,) = gather([tmp_path / "t.csv"], tmp_path / "out", tmp_path / "photos")
    loaded = [item.load() for item in items]
    assert [sample.image == photo(1) for sample in loaded if isinstance(sample, Sample)] == [True] * 3
