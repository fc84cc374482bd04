from __future__ import annotations

from pathlib import Path

import pytest

from mm.data.items import LeftOut
from mm.data.samples import Sample
from mm.data.selection import AddedCaptions, ImageList, Selection
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
    assert listed.missing == 4
    assert all(key in listed for key in ("a", "photos/a", "sub/b", "c.v1", "c_v1"))
    assert not any(key in listed for key in ("b", "photos/sub/b", "a.jpg", "e", "c"))
    assert listed.missing == 1
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
    found, count = added.add(sample)
    assert found.captions == {"en": ["dog"], "zh": ["犬", "狗", "大狗"], "de": ["ein Hund"], "fr": ["a dog"]}
    assert count == 4
    assert (found.image, found.metadata, sample.captions["zh"]) == (b"image", {"width": 3}, ["犬"])
    assert added.add(Sample("b", "b", b""))[1] == 0 and added.add(Sample("sub/b", "b", b""))[1] == 1


@pytest.mark.parametrize("addition", ["", "zh", "zh=", "=x.txt"])
def test_wrong_additions(addition: str) -> None:
    with pytest.raises(OptionError, match="--add"):
        AddedCaptions([addition])
