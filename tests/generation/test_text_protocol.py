from __future__ import annotations

import pytest

from mm.generation.text import contains, is_word, words


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A Dog's t-shirt, 25!", ["a", "dog", "'", "s", "t", "-", "shirt", ",", "25", "!"]),
        ("一只dog和 猫。", ["一", "只", "dog", "和", "猫", "。"]),
        ("cafe\u0301 STRASSE straße", ["café", "strasse", "strasse"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ひらがな", ["ひ", "ら", "が", "な"]),
        (" \n", []),
    ],
)
def test_words_of_a_text(text: str, parts: list[str]) -> None:
    assert words(text) == parts


def test_marks_are_not_words() -> None:
    assert [part for part in words("a dog, 2 狗。 \U0001f600 -") if is_word(part)] == ["a", "dog", "2", "狗"]


@pytest.mark.parametrize(
    ("text", "phrase", "there"),
    [
        ("a Dog runs", "dog", True),
        ("a dog", "DOG", True),
        ("two dogs run", "dog", False),
        ("a hotdog", "dog", False),
        ("the dog's ball", "dog", True),
        ("a red  ball", "red ball", True),
        ("a red and blue ball", "red ball", False),
        ("a t - shirt", "t-shirt", True),
        ("it isn ' t", "isn't", True),
        ("一只黑狗在跑", "黑狗", True),
        ("一只黑狗在跑", "狗跑", False),
        ("一 只 黑 狗", "一只黑狗", True),
        ("a dog", "", True),
        ("", "dog", False),
    ],
)
def test_phrases_in_texts(text: str, phrase: str, there: bool) -> None:
    assert contains(text, phrase) is there
