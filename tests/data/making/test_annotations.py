from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoding import encode
from PIL import Image

from mm.data.making.annotations import read_records
from mm.data.making.records import Record, Records
from mm.errors import UsageError

COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 9, "file_name": "000009.jpg", "width": 640, "license": 3},
        {"id": 7, "file_name": "000007.jpg"},
        {"id": 8, "file_name": "000008.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a dog "},
        {"id": 2, "image_id": 9, "caption": "a cat"},
        {"id": 3, "image_id": 7, "caption": "a brown dog\n"},
        {"id": 4, "image_id": 7, "caption": " "},
        {"id": 5, "image_id": 1, "caption": "whose?"},
    ],
}
KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "split": "restval",
            "cocoid": 5,
            "sentids": [1, 2],
            "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}, {"raw": " A cat. "}],
        },
        {"filename": "b.jpg", "split": "test", "sentences": []},
        {"filename": "c.jpg", "split": "test", "sentences": [{"tokens": ["a", "dog"]}]},
        {"filepath": "val2014", "sentences": []},
    ],
}


def problems(records: Records) -> dict[str, str]:
    return {record.image: record.problem.reason for record in records if record.problem is not None}


@pytest.mark.parametrize("indent", [None, 1])
def test_coco(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(COCO, indent=indent))
    records = read_records(path)
    assert list(records)[:3] == [
        Record("000009.jpg", {"en": ["a cat"]}, {"id": 9, "width": 640, "license": 3}),
        Record("000007.jpg", {"en": ["a dog", "a brown dog"]}, {"id": 7}),
        Record("000008.jpg", {}, {"id": 8}),
    ]
    assert problems(records) == {f"{path}, image_id 1": "caption without an image"}
    assert read_records(path, "zh").get("000007.jpg").captions == {"zh": ["a dog", "a brown dog"]}


@pytest.mark.parametrize("indent", [None, 1])
def test_numbers_that_json_can_not_hold_are_null(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "captions.json"
    image = {"id": 1, "file_name": "a.jpg", "area": float("nan"), "score": float("inf"), "width": 1.5}
    note = {"image_id": 1, "caption": "a dog"}
    path.write_text(json.dumps({"images": [image], "annotations": [note]}, indent=indent).replace("1.5", "1e999"))
    assert read_records(path).get("a.jpg").metadata == {"id": 1, "area": None, "score": None, "width": None}


@pytest.mark.parametrize("indent", [None, 1])
def test_karpathy(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(KARPATHY, indent=indent))
    records = read_records(path)
    assert list(records)[:2] == [
        Record("val2014/a.jpg", {"en": ["A dog.", "A cat."]}, {"split": "restval", "cocoid": 5}),
        Record("b.jpg", {}, {"split": "test"}),
    ]
    assert problems(records) == {"c.jpg": "captions are not a list of strings", f"{path}, images[3]": "no image"}


def test_tokens(tmp_path: Path) -> None:
    path = tmp_path / "results.token"
    lines = [
        "1000_a.jpg#0\tA child .",
        "1000_a.jpg#1\tA girl in a dress # 7 ,  going up",
        "",
        "22_b.jpg.1#0\tTwo dogs",
        "33_c.jpg#zhc#0 一只 狗\r",
        "1000_a.jpg#2\t",
        "no caption here",
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n44_d.jpg#0\tcaf\xe9\n")
    records = read_records(path)
    assert {record.image: record.captions for record in records if record.problem is None} == {
        "1000_a.jpg": {"en": ["A child .", "A girl in a dress # 7 ,  going up"]},
        "22_b.jpg.1": {"en": ["Two dogs"]},
        "33_c.jpg": {"en": ["一只 狗"]},
    }
    assert problems(records) == {f"{path}, line 7": "malformed row", f"{path}, line 8": "caption is not UTF-8"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; give a table"),
        (b"  \n", "is empty"),
        (b"\x1f\x8b\x08 ...", "is a gzip file; unpack it first"),
        (b"PK\x03\x04...", "is a ZIP file; unpack it first"),
        (b"a.jpg".ljust(257, b"\0") + b"ustar\x0000", "is a tar; let its name end in .tar"),
        (encode(Image.new("RGB", (9, 9))), "is an image; give the folder"),
        (b"\0\1\2\3", "isn't text"),
        (b"Captions of my photos\nand more", "begins with 'Captions of my photos'; give a table"),
        (b'{"images": 3}', "holds an object with 'images'"),
        (b'{\n"photos": [],\n"x": 1}', "holds an object with 'photos', 'x'; give a table"),
        (b'{"file": "a.jpg", "text": "x"}', "holds an object with 'file', 'text'"),
        (b'{"images": [{"id": 1, "file_name": "a.jpg"}]}', "neither annotations .* nor sentences"),
        (
            b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": [1]}]}',
            "no captions; give COCO's captions",
        ),
        (b'{"images": [\n{"id": 1, "file_name"', "isn't valid JSON"),
        (b"[]", "has no rows"),
        (b"3", "has no layout"),
    ],
)
def test_files_of_other_layouts_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "captions.xyz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        read_records(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_records(tmp_path / "nowhere.csv")
