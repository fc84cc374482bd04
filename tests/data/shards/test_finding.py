from __future__ import annotations

import json
from pathlib import Path

import pytest
from pictures import some_samples, write_tar

from mm.data.shards.entries import KIND
from mm.data.shards.finding import ShardFolder, find_tars, is_manifest
from mm.data.shards.writing import write_shards

FIRST, SECOND, THIRD = (f"shard-00000{number}.tar" for number in range(3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(some_samples(5), tmp_path / "out", max_samples=2)
    return tmp_path / "out"


def index(*urls: str) -> str:
    return json.dumps({"__kind__": KIND, "shardlist": [{"url": url, "nsamples": 1} for url in urls]})


def test_listed_shards_come_first_in_the_order_of_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(index("gone.tar", THIRD, FIRST))
    opened = ShardFolder(folder)
    assert [path.name for path, _ in opened.shards] == ["gone.tar", THIRD, FIRST, SECOND]
    assert [entry.url if entry else None for _, entry in opened.shards] == ["gone.tar", THIRD, FIRST, None]
    assert opened.others == [folder / SECOND] and opened.problem is None


def test_a_damaged_manifest_lists_nothing(folder: Path) -> None:
    (folder / "manifest.json").write_text(index())
    opened = ShardFolder(folder)
    assert [entry for _, entry in opened.shards] == [None] * 3
    assert opened.problem is not None and str(opened.manifest) in str(opened.problem)


def test_a_manifest_of_something_else_is_none(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "a web app"}')
    opened = ShardFolder(folder)
    assert [entry for _, entry in opened.shards] == [None] * 3 and opened.problem is None


def test_only_visible_files_are_shards(folder: Path) -> None:
    (folder / f"._{FIRST}").write_bytes(b"")
    (folder / "folder.tar").mkdir()
    write_tar(folder / "A.TAR", {"a.jpg": b""})
    assert [path.name for path in find_tars(folder)] == ["A.TAR", FIRST, SECOND, THIRD]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(index(FIRST), True), ('{"shardlist": 3}', True), ("{", True), ("[1]", False), ('{"name": "app"}', False)],
)
def test_what_is_meant_as_a_manifest(tmp_path: Path, content: str, expected: bool) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert is_manifest(tmp_path / "manifest.json") is expected and not is_manifest(tmp_path)
