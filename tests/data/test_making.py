from __future__ import annotations

from pathlib import Path

import pytest
from pictures import picture

from mm.data.making import samples_from
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards import read_shard, write_shards
from mm.errors import UsageError


def split(items: object) -> tuple[dict[str, Sample], dict[str, Rejection]]:
    listed = list(items)  # type: ignore[call-overload]
    good = {item.key: item for item in listed if isinstance(item, Sample)}
    bad = {item.key: item for item in listed if isinstance(item, Rejection)}
    assert len(good) + len(bad) == len(listed)
    return good, bad


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
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
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    samples = samples_from(tmp_path)
    good, bad = split(samples)
    assert len(samples) == 8 == len(good) + len(bad)
    assert {key: sample.captions for key, sample in good.items()} == {
        "a": {"en": ["a dog"]},
        "b": {"en": ["x", "y"], "zh": ["狗"]},
        "sub/c.v1": {"en": ["dotted"]},
        "none": {},
    }
    assert good["b"].metadata == {"width": 3} and good["a"].image == picture(1)
    assert {key: rejection.reason for key, rejection in bad.items()} == {
        "latin": "caption is not UTF-8",
        "empty": "empty file",
        "text": "not an image",
        "cut": "truncated",
    }
    tally = Tally()
    manifest = write_shards(samples, tmp_path / "out", tally=tally)
    assert (manifest.total, tally.seen) == (4, 8)
    keys = [item.key for item in read_shard(manifest.shards[0].path)]
    assert keys == ["a", "b", "none", "sub/c_v1"]


@pytest.mark.parametrize(("suffix", "comma"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_table(tmp_path: Path, suffix: str, comma: str) -> None:
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abcd"):
        (tmp_path / "images" / f"{name}.png").write_bytes(picture(number))
    (tmp_path / "images" / "e.png").write_bytes(b"text")
    rows = [
        ["image", "caption", "language", "photographer"],
        ["images/a.png", "one", "en", "Ann"],
        ["images/b.png", '"two, with a comma"', "", ""],
        ["images/a.png", "又一个", "zh", ""],
        ["images/a.png", "three", "", ""],
        ["images/c.png", "", "", ""],
        ["images/d.png", "caf\udce9", "", ""],
        ["images/e.png", "text", "", ""],
        ["images/missing.png", "gone", "", ""],
        ["", "no image", "", ""],
        ["", "nor here", "", ""],
        ["images", "a folder", "", ""],
    ]
    text = "\n".join(comma.join(row) for row in rows)
    path = tmp_path / f"table{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8", "surrogateescape"))
    samples = samples_from(path)
    good, bad = split(samples)
    assert len(samples) == 9 == len(good) + len(bad)
    assert {key: sample.captions for key, sample in good.items()} == {
        "images/a": {"en": ["one", "three"], "zh": ["又一个"]},
        "images/b": {"en": ["two, with a comma"]},
        "images/c": {},
    }
    assert good["images/a"].metadata == {"photographer": "Ann"} and good["images/c"].image == picture(2)
    assert [rejection.reason for rejection in bad.values()] == [
        "caption is not UTF-8",
        "not an image",
        "missing image",
        "no image",
        "no image",
        "unreadable file",
    ]
    assert all("\n" not in rejection.detail for rejection in bad.values())
    assert "line 7" in bad["images/d.png"].detail


def test_other_columns_are_metadata_that_reads_back(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "t.csv").write_text("image,caption,,,captions_source\na.png,a dog,1,2,web\n")
    manifest = write_shards(samples_from(tmp_path / "t.csv"), tmp_path / "out")
    (sample,) = read_shard(manifest.shards[0].path)
    assert isinstance(sample, Sample)
    assert (sample.captions, sample.metadata) == ({"en": ["a dog"]}, {"captions_source": "web"})


def test_rows_with_too_many_cells(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "t.csv").write_text("image,caption\na.png,a dog, on grass\n")
    (rejection,) = samples_from(tmp_path / "t.csv")
    assert isinstance(rejection, Rejection) and rejection.reason == "malformed row" and "line 2" in rejection.detail


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"", "no column 'image'"),
        ("t.csv", b"file,caption\na.png,x\n", r"no column 'image' \(columns: file, caption\)"),
        ("t.csv", b"image,text\na.png,x\n", "no column 'caption'"),
        ("t.csv", b"image,caption\n", "no rows"),
        (
            "t.csv",
            b"image,caption,captions\na.png,x,y\n",
            "a column 'captions'; .* 'caption' and 'en' in .* 'language'",
        ),
        ("t.tsv", b"image\tcaptions_zh\na.png\tx\n", "a column 'captions_zh'; .* 'caption' and 'zh' in .* 'language'"),
        ("t.csv", b"image,caption,caption\na.png,x,y\n", "the column 'caption' twice"),
        ("t.csv", b"image,caption,width,width\na.png,x,1,2\n", "the column 'width' twice"),
        ("t.csv", b"image,caption\na.png," + b"x" * 200_000, "line"),
        ("t.xlsx", b"PK", "isn't a folder"),
        ("nowhere/t.csv", None, "doesn't exist"),
    ],
)
def test_wrong_use(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        samples_from(path)
    assert str(path) in str(caught.value)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="no images"):
        samples_from(tmp_path)
