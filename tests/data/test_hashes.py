from __future__ import annotations

import pytest

from mm.data.hashes import hash64


@pytest.mark.parametrize(
    ("content", "expected"), [("a", 0xCA978112CA1BBDCA), (b"a", 0xCA978112CA1BBDCA), ("", 0xE3B0C44298FC1C14)]
)
def test_the_hash_never_changes(content: bytes | str, expected: int) -> None:
    assert hash64(content) == expected


def test_texts_that_are_not_unicode_have_hashes_too() -> None:
    assert len({hash64(text) for text in ("\ud800", "\udfff", "?", "\u56fe")}) == 4
