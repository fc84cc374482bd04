from __future__ import annotations

import csv
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mm.data.making.annotations import read_records
from mm.data.making.records import Record
from mm.errors import UsageError

ROWS: list[dict[str, Any]] = [
    {"image": "images/a.png", "caption": "one", "language": "en", "photographer": "Ann"},
    {"image": "images/b.png", "caption": "two, with a comma", "captions_zh": ["二", " 贰 ", ""]},
    {"image": "images/a.png", "caption": "又一个", "language": "zh", "captions": ["three"]},
    {"image": " images/a.png ", "caption": "four", "photographer": ""},
    {"image": "images/c.png", "caption": "", "photographer": "Bob"},
    {"image": "images/d.png", "captions": ["one", "two"]},
]
EXPECTED = {
    "images/a.png": ({"en": ["one", "three", "four"], "zh": ["又一个"]}, {"photographer": "Ann"}),
    "images/b.png": ({"en": ["two, with a comma"], "zh": ["二", "贰"]}, {}),
    "images/c.png": ({}, {"photographer": "Bob"}),
    "images/d.png": ({"en": ["one", "two"]}, {}),
}
COLUMNS = ["image", "caption", "language", "photographer", "captions", "captions_zh"]


def write(path: Path, rows: list[dict[str, Any]] = ROWS, columns: list[str] = COLUMNS) -> Path:
    """Writes rows in the layout that the file's name ends in."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in columns}), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(columns)
            for row in rows:
                cells = [row.get(name, "") for name in columns]
                writer.writerow(json.dumps(cell) if isinstance(cell, list) else cell for cell in cells)
    return path


def problems(records: Any) -> dict[str, str]:
    return {record.image: record.problem.reason for record in records if record.problem is not None}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "captions.txt", "t.jsonl", "t.json", "t.parquet"])
def test_one_rule_for_all_layouts(tmp_path: Path, name: str) -> None:
    records = read_records(write(tmp_path / name))
    assert {record.image: (record.captions, record.metadata) for record in records} == EXPECTED
    assert len(records) == 4 and not problems(records)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_captions_that_do_not_say_their_language(tmp_path: Path, name: str) -> None:
    records = {record.image: record.captions for record in read_records(write(tmp_path / name), "zh")}
    assert records["images/b.png"] == {"zh": ["two, with a comma", "二", "贰"]}
    assert records["images/d.png"] == {"en": ["one", "two"]}


def test_rows_that_say_something_wrong(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [
        "image,caption,,captions_source",
        "a.png,a dog,1,web",
        "b.png,caf\udce9,,",
        ",no image,,",
        " ,nor here,,",
        "c.png,a dog, on grass,,",
        "d.png,['one'; 'two'],,",
        "e.png,[laughs] a dog,,",
    ]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    records = read_records(path)
    assert problems(records) == {
        "b.png": "caption is not UTF-8",
        f"{path}, line 4": "no image",
        f"{path}, line 5": "no image",
        "c.png": "malformed row",
        "d.png": "captions are not a list of strings",
    }
    assert all("\n" not in str(record.problem) for record in records)
    assert f"{path}, line 3" in str(records.get("b.png").problem)
    assert (records.get("a.png").captions, records.get("a.png").metadata) == (
        {"en": ["a dog"]},
        {"captions_source": "web"},
    )
    assert records.get("e.png").captions == {"en": ["[laughs] a dog"]}


def test_objects_that_say_something_wrong(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [
        b'{"image": "a.png", "caption": ["x", "y"], "score": NaN, "tags": {"n": 1}}',
        b"",
        b'{"image": "b.png", "caption": 3}',
        b'{"image": 4, "caption": "x"}',
        b'["c.png"]',
        b'{"image": "d.png", "caption": "x"',
        b'{"image": "e.png", "caption": "caf\xe9"}',
        b'{"image": "f.png"}',
    ]
    path.write_bytes(b"\n".join(lines))
    records = read_records(path)
    assert problems(records) == {
        "b.png": "captions are not a list of strings",
        f"{path}, line 4": "no image",
        f"{path}, line 5": "malformed row",
        f"{path}, line 6": "malformed row",
        f"{path}, line 7": "caption is not UTF-8",
    }
    assert records.get("a.png") == Record("a.png", {"en": ["x", "y"]}, {"tags": {"n": 1}})
    assert records.get("f.png") == Record("f.png")


def test_values_of_parquet_become_json(tmp_path: Path) -> None:
    row = {"image": "a.png", "caption": "x", "day": datetime.date(2026, 1, 2), "score": float("nan"), "n": 3}
    records = read_records(write(tmp_path / "t.parquet", [row | {"boxes": [[0.5, float("inf")]]}], [*row, "boxes"]))
    assert records.get("a.png").metadata == {"day": "2026-01-02", "n": 3, "boxes": [[0.5, None]]}


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.png", "caption": f"caption {number}"} for number in range(9000)] + [{"caption": "x"}]
    records = read_records(write(tmp_path / "t.parquet", rows, ["image", "caption"]))
    assert len(records) == 9001 and records.get("8999.png").captions == {"en": ["caption 8999"]}
    assert problems(records) == {f"{tmp_path / 't.parquet'}, row 9001": "no image"}


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"t.parquet: .*pip install 'mm\[parquet\]'"):
        read_records(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"file,caption\na.png,x\n", r"no column 'image' \(columns: file, caption\)"),
        ("t.tsv", b"image\ttext\na.png\tx\n", r"no column 'caption' \(columns: image, text\)"),
        ("t.csv", b"image,caption\n", "no rows"),
        ("t.csv", b"image,caption,caption\na.png,x,y\n", "the column 'caption' twice"),
        ("t.csv", b"image,caption,width,width\na.png,x,1,2\n", "the column 'width' twice"),
        ("t.csv", b"image,caption\na.png," + b"x" * 200_000, "line 1: field larger"),
        ("t.parquet", b"PAR1" + b"x" * 100, "can't be read: "),
    ],
)
def test_tables_that_can_not_be_used(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        read_records(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_that_lacks_a_column(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'image' \(columns: caption\)"):
        read_records(write(tmp_path / "t.parquet", ROWS, ["caption"]))
