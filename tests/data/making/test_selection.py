from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mm.data.making.items import LeftOut
from mm.data.making.selection import AddedCaptions, ImageList, Names, Selection
from mm.data.samples import Sample
from mm.errors import OptionError, UsageError


@pytest.mark.parametrize(
    ("languages", "splits", "reason"),
    [
        ((), (), None),
        (["en"], (), None),
        (["fr", "zh"], (), None),
        (["fr"], (), "no caption in fr"),
        (["fr", "de"], (), "no caption in fr or de"),
        ((), ["train", "restval"], None),
        ((), ["val"], "split isn't val"),
        ((), ["val", "test"], "split isn't val or test"),
    ],
)
def test_what_is_asked_for(languages: list[str], splits: list[str], reason: str | None) -> None:
    sample = Sample("a", "a", b"", {"en": ["x"], "zh": ["y"], "de": []}, {"split": "restval"})
    found = Selection(languages, splits).judge(sample)
    assert found == (None if reason is None else LeftOut(reason))
    if splits:
        assert Selection((), splits).judge(Sample("a", "a", b"")) is not None


def test_lists_name_images_with_or_without_their_folder(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nsub/b.jpg\r\n\r\nc.v1.jpg\r\nd\r\n")
    listed = ImageList(tmp_path / "list.txt")
    assert listed.names.missing == 4
    chosen, others = ("photos/a", "sub/b", "c.v1", "c_v1"), ("b", "photos/sub/b", "a.jpg", "e", "c")
    for key in chosen + others:
        listed.names.see(key)
    assert all(key in listed for key in chosen) and not any(key in listed for key in others)
    assert (listed.names.missing, listed.rejections) == (1, [])
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UsageError, match="names no images"):
        ImageList(tmp_path / "list.txt")
    with pytest.raises(UsageError, match="can't be read"):
        ImageList(tmp_path)


def test_captions_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("a.jpg#0 狗\na.jpg#1 大狗\nsub/b.jpg#0 猫\n", encoding="utf-8")
    (tmp_path / "more.csv").write_text("image,caption,language\na.jpg,ein Hund,de\na.png,a dog,\n")
    added = AddedCaptions([f"zh={tmp_path / 'zh.txt'}", f"fr={tmp_path / 'more.csv'}"])
    sample = Sample("photos/a", "a", b"image", {"en": ["dog"], "zh": ["犬"]}, {"width": 3})
    for file in added.files:
        for key in ("photos/a", "b", "sub/b"):
            file.names.see(key)
    found, count = added.add(sample)
    assert found.captions == {"en": ["dog"], "zh": ["犬", "狗", "大狗"], "de": ["ein Hund"], "fr": ["a dog"]}
    assert count == 4
    assert (found.image, found.metadata, sample.captions["zh"]) == (b"image", {"width": 3}, ["犬"])
    assert added.add(Sample("b", "b", b""))[1] == 0 and added.add(Sample("sub/b", "b", b""))[1] == 1


@pytest.mark.parametrize("keys", list(itertools.permutations(["x/1", "y/1", "z/2", "3", "x/3", "y/1"], 6))[::23])
def test_a_name_without_folder_means_the_only_image_that_has_it(keys: tuple[str, ...]) -> None:
    names = Names(["1", "2", "3", "4", "x/1", "x/2"])
    for key in keys:
        names.see(key)
    assert {key: names.of(key) for key in keys} == {"x/1": ["x/1"], "y/1": [], "z/2": ["2"], "3": ["3"], "x/3": []}
    (rejection,) = names.ambiguous(Path("zh.txt"))
    assert (rejection.source, rejection.key, rejection.reason) == ("zh.txt", "1", "ambiguous image name")
    assert "x/1" in rejection.detail and "y/1" in rejection.detail and rejection.samples == 0
    assert names.missing == 2


def test_an_image_that_is_named_with_and_without_its_folder() -> None:
    names = Names(["1", "x/1"])
    names.see("x/1")
    assert names.of("x/1") == ["x/1", "1"] and names.missing == 0


def test_what_can_not_be_used_of_a_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "zh.txt"
    path.write_bytes("a.jpg#0 狗\nno caption here\nb.jpg#0 \n".encode() + b"a.jpg#1 caf\xe9\n")
    (file,) = AddedCaptions([f"zh={path}"]).files
    assert [
        (rejection.source, rejection.key, rejection.reason, rejection.samples) for rejection in file.rejections
    ] == [
        (str(path), f"{path}, line 2", "malformed row", 0),
        (str(path), f"{path}, line 4", "caption is not UTF-8", 0),
    ]
    assert file.names.missing == 1  # nothing is said about b.jpg


@pytest.mark.parametrize("addition", ["", "zh", "zh=", "=x.txt"])
def test_wrong_additions(addition: str) -> None:
    with pytest.raises(OptionError, match="--add"):
        AddedCaptions([addition])
