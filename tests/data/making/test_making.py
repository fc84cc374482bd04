from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from making import PARTS, SPLITS, content, make, mixed_sources, samples_in
from pictures import picture, some_samples

from mm.data.making.packing import ADDED, DUPLICATE_CAPTIONS, DUPLICATES, RENAMED, UNCAPTIONED, Packing
from mm.data.making.selection import Selection
from mm.data.making.shards import Reading
from mm.data.samples import Sample, Tally
from mm.data.shards.writing import write_shards
from mm.errors import DataError, OptionError, UsageError


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """31 items in a folder, a table and shards."""
    return mixed_sources(tmp_path)


def test_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub" / ".hidden").mkdir(parents=True)
    files = {
        "a.png": picture(1),
        "a.txt": b"a dog\n",
        "b.JPG": picture(2, "JPEG"),
        "b.json": '{"captions": ["x", "y"], "captions_zh": ["狗"], "width": 3}'.encode(),
        "b.txt": b"unused",
        "sub/c.v1.png": picture(3),
        "sub/c.v1.txt": b"dotted",
        "none.png": picture(4),
        "latin.png": picture(5),
        "latin.txt": b"caf\xe9",
        "empty.png": b"",
        "text.png": b"text",
        "cut.jpg": picture(6, "JPEG", (64, 64))[:600],
        "notes.pdf": b"ignored",
        "._a.png": b"ignored",
        "sub/.hidden/d.png": picture(),
    }
    for name, data in files.items():
        (photos / name).write_bytes(data)
    tally = Tally()
    made = make(photos, tmp_path / "out", tally=tally)
    samples = samples_in(tmp_path / "out")
    assert {key: sample.captions for key, sample in samples.items()} == {
        "a": {"en": ["a dog"]},
        "b": {"en": ["x", "y"], "zh": ["狗"]},
        "none": {},
        "sub/c_v1": {"en": ["dotted"]},
    }
    assert samples["b"].metadata == {"width": 3} and samples["a"].image == picture(1)
    assert {rejection.key: rejection.reason for rejection in tally.rejections} == {
        "latin": "caption is not UTF-8",
        "empty": "empty file",
        "text": "not an image",
        "cut": "truncated",
    }
    assert (tally.used, made.counts) == (4, {UNCAPTIONED: 1})


def test_every_item_is_counted_once(tmp_path: Path, sources: list[Path]) -> None:
    tally, told = Tally(), []
    made = make(sources, tmp_path / "out", *PARTS, tally=tally, progress=lambda *done: told.append(done))
    written = sum(manifest.total for manifest in made.manifests.values())
    assert written == tally.used == 21
    assert made.left_out == {"no caption in en": 3}
    assert tally.by_reason() == {"caption is not UTF-8": 1, "truncated": 1, "missing image": 1}
    assert (made.counts[DUPLICATES], made.counts[DUPLICATE_CAPTIONS], made.counts[RENAMED]) == (4, 5, 1)
    assert written + sum(made.left_out.values()) + made.counts[DUPLICATES] + tally.rejected == 31
    assert told == [(number, None) for number in range(1, 32)]
    assert made.members == {".cls": 2}


def test_bytes_depend_on_source_and_options_alone(tmp_path: Path, sources: list[Path]) -> None:
    for workers in (1, 2, 5):
        make(sources, tmp_path / str(workers), *PARTS, tally=Tally(), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "5")
    make(sources, tmp_path / "other", *PARTS[1:], tally=Tally())
    assert content(tmp_path / "other") != content(tmp_path / "1")


def test_samples_of_shards_keep_everything(tmp_path: Path) -> None:
    samples = some_samples(7)
    write_shards(samples, tmp_path / "in", max_samples=2)
    make([tmp_path / "in" / "shard-000003.tar", tmp_path / "in"], tmp_path / "out", Packing(max_samples=5))
    found = samples_in(tmp_path / "out")
    for sample in samples:
        again = found[sample.key]
        assert (again.image, again.captions, again.metadata) == (sample.image, sample.captions, sample.metadata)
    assert len(found) == 8 and found["key006_2"].image == samples[6].image


def test_damaged_shards_are_rejected_after_their_good_samples(tmp_path: Path) -> None:
    write_shards(some_samples(6), tmp_path / "in")
    shard = tmp_path / "in" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    tally = Tally()
    make(tmp_path / "in", tmp_path / "out", tally=tally)
    assert 1 < tally.used < 6 and tally.seen == 6
    assert set(tally.by_reason()) == {"shard cut short"}
    (tmp_path / "list.txt").write_text("key000.png\n")
    listed = Tally()
    made = make(tmp_path / "in", tmp_path / "listed", Reading(listed=tmp_path / "list.txt"), tally=listed)
    assert made.left_out == {"not in the list": tally.used - 1} and listed.rejections == tally.rejections


def test_splits_follow_from_keys(tmp_path: Path) -> None:
    write_shards(some_samples(40), tmp_path / "in")
    write_shards(some_samples(60)[::-1], tmp_path / "more")
    few = make(tmp_path / "in", tmp_path / "few", Packing(splits=SPLITS))
    make([tmp_path / "more", tmp_path / "in"], tmp_path / "many", Packing(splits=SPLITS, drop_duplicates=True))
    assert 14 <= few.manifests["train"].total <= 34
    for split in SPLITS.names:
        assert samples_in(tmp_path / "few" / split).keys() <= samples_in(tmp_path / "many" / split).keys()
        assert all(SPLITS.of(key) == split for key in samples_in(tmp_path / "many" / split))
    assert sorted(path.name for path in (tmp_path / "few").iterdir()) == ["train", "val"]


def test_a_list_and_captions_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / "photos" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "tokens.txt").write_text("".join(f"{n}.png#{i}\tcaption {n} {i}\n" for n in range(5) for i in (0, 1)))
    (tmp_path / "zh.txt").write_text("0.png#zhc#0 狗\n1.png#zhc#0 猫\n1.png#zhc#1 \n9.png#zhc#0 鸟\n", encoding="utf-8")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n2.png\n8.png\n")
    reading = Reading(tmp_path / "photos", listed=tmp_path / "list.txt", add=[f"zh={tmp_path / 'zh.txt'}"])
    made = make(tmp_path / "tokens.txt", tmp_path / "out", reading)
    assert {key: sample.captions for key, sample in samples_in(tmp_path / "out").items()} == {
        "0": {"en": ["caption 0 0", "caption 0 1"], "zh": ["狗"]},
        "1": {"en": ["caption 1 0", "caption 1 1"], "zh": ["猫"]},
        "2": {"en": ["caption 2 0", "caption 2 1"]},
    }
    assert (made.left_out, made.not_found, made.counts[ADDED]) == ({"not in the list": 2}, 1, 2)
    assert (made.added_not_found, made.rows_rejected) == (1, 0)


def test_images_of_the_same_name_are_not_mixed_up(tmp_path: Path) -> None:
    samples = [Sample(f"{folder}/{number}", "made", picture(number)) for folder in "xy" for number in range(3)]
    write_shards(samples[:3], tmp_path / "in")
    for sample in samples[3:-1]:
        path = tmp_path / "photos" / f"{sample.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.image)
    (tmp_path / "zh.txt").write_text("0.png#0 狗\n2.png#0 猫\ny/1.png#0 鸟\n", encoding="utf-8")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n2.png\ny/1.png\nx/0.png\n")
    reading = Reading(listed=tmp_path / "list.txt", add=[f"zh={tmp_path / 'zh.txt'}"])
    tally = Tally()
    made = make([tmp_path / "in", tmp_path / "photos"], tmp_path / "out", reading, tally=tally)
    assert {key: sample.captions for key, sample in samples_in(tmp_path / "out").items()} == {
        "x/0": {},
        "x/2": {"zh": ["猫"]},
        "y/1": {"zh": ["鸟"]},
    }
    assert [(Path(rejection.source).name, rejection.key) for rejection in tally.rejections] == [
        ("zh.txt", "0"),
        ("list.txt", "0"),
        ("list.txt", "1"),
    ]
    assert set(tally.by_reason()) == {"ambiguous image name"}
    assert (tally.used, tally.rejected, made.rows_rejected, made.added_not_found) == (3, 0, 3, 0)
    assert (made.not_found, made.left_out) == (0, {"not in the list": 2})


def test_names_in_a_damaged_shard(tmp_path: Path) -> None:
    write_shards(some_samples(6), tmp_path / "in")
    shard = tmp_path / "in" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    (tmp_path / "list.txt").write_text("key000.png\nkey005.png\n")
    made = make(tmp_path / "in", tmp_path / "out", Reading(listed=tmp_path / "list.txt"), tally=Tally())
    assert samples_in(tmp_path / "out").keys() == {"key000"} and made.not_found == 1


def test_the_folder_of_shards_may_lie_within_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    write_shards(some_samples(2), tmp_path / "other")
    make(tmp_path, tmp_path / "out")
    assert samples_in(tmp_path / "out").keys() == {"a", "key000", "key001"}
    make(tmp_path, tmp_path / "other" / "out")
    assert samples_in(tmp_path / "other" / "out").keys() == {"a", "key000", "key000_2", "key001", "key001_2", "a_2"}


def test_what_can_not_be_written_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2))
    (tmp_path / "t.csv").write_text("image,caption,language\na.png,a dog,\nb.png,ein Hund,Deutsch!\n")
    tally = Tally()
    make(tmp_path / "t.csv", tmp_path / "out", tally=tally)
    assert tally.by_reason() == {"unknown caption language": 1} and samples_in(tmp_path / "out").keys() == {"a"}


def test_nothing_left_to_write(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture())
    with pytest.raises(DataError, match=r"no sample was left to write; left out: a side under 100 pixels \(1\)"):
        make(tmp_path / "photos", tmp_path / "out", Selection(min_side=100))
    assert content(tmp_path / "out") == {}
    make(tmp_path / "photos", tmp_path / "out", Selection(min_side=2))
    assert samples_in(tmp_path / "out").keys() == {"a"}


def test_wrong_use_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("x")
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "t.csv").write_text("image,caption\nsub/a.png,x\n")
    out = tmp_path / "out"
    cases: list[tuple[type[Exception], str, str, tuple[Any, ...]]] = [
        (UsageError, "no images", "notes", ()),
        (UsageError, "doesn't exist", "nowhere", ()),
        (UsageError, "doesn't exist", "nowhere.tar", ()),
        (UsageError, "names 1 images, the first sub/a.png, of which none is in .*--images", "t.csv", ()),
        (OptionError, "no source is such a file", "a.png", (Reading(tmp_path),)),
        (OptionError, "--add 'zh' must look like", "a.png", (Reading(add=["zh"]),)),
        (UsageError, "list.txt", "a.png", (Reading(listed=tmp_path / "list.txt"),)),
        (OptionError, "max_samples 0", "a.png", (Packing(max_samples=0),)),
        (OptionError, "prefix", "a.png", (Packing("../x"),)),
    ]
    for error, says, source, parts in cases:
        with pytest.raises(error, match=says):
            make(tmp_path / source, out, *parts)
        assert not out.exists()
