"""What decoding needs to know of texts: the part of a tokenizer that it uses, and the words of a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

_CHARACTERS = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters that stand for themselves in scripts without spaces: Chinese, and the Japanese kana."""
_CHARACTER = re.compile(f"[{_CHARACTERS}]")


class Text(Protocol):
    """The part of a tokenizer that decoding uses."""

    @property
    def open_tokens(self) -> AbstractSet[int]:
        """Ids of tokens whose text later tokens may change, such as single bytes of a character."""

    @property
    def open_characters(self) -> AbstractSet[str]:
        """Characters that may be taken away or changed once others follow them."""

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Turns rows of token ids into texts without white space at their ends."""

    def spellings(self, phrase: str) -> list[list[int]]:
        """Gives every way in which a phrase is commonly written in tokens within a caption."""


def settled_tokens(text: Text, tokens: Sequence[int]) -> int:
    """Counts the tokens from the start whose text later tokens can't change, but for ``settled_characters``."""
    count = len(tokens)
    while count and tokens[count - 1] in text.open_tokens:
        count -= 1
    return count


def settled_characters(text: Text, written: str) -> int:
    """Counts the characters from the start of a decoded text that stay as they are whatever follows."""
    count = len(written)
    while count and written[count - 1] in text.open_characters:
        count -= 1
    return count


def opening_characters(text: Text, tokens: Sequence[int]) -> int:
    """Counts the characters from the start of decoded tokens that may read differently where others stand before them.

    They are those of the first token that isn't a special one: a piece of a word shows its mark there, such as ``##``.
    """
    alone = (text.decode([[token]])[0] for token in tokens)
    return len(next(filter(None, alone), ""))


def shared_characters(one: str, other: str) -> int:
    """Counts the characters that two texts both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def words(text: str) -> list[str]:
    """Divides a text, without regard to case, into words, single Chinese characters and single marks."""
    found: list[str] = []
    within = False
    for char in unicodedata.normalize("NFC", text).casefold():
        wordly = unicodedata.category(char)[0] in "LMN" and not _CHARACTER.match(char)
        if wordly and within:
            found[-1] += char
        elif not char.isspace():
            found.append(char)
        within = wordly
    return found


def is_word(part: str) -> bool:
    """Says whether what ``words`` gave is a word or a character, not a mark."""
    return any(unicodedata.category(char)[0] in "LN" for char in part)


def contains(text: str, phrase: str) -> bool:
    """Says whether a phrase stands in a text as whole words, without regard to case; Chinese as characters.

    White space around punctuation marks and between Chinese characters makes no difference: ``t-shirt`` stands in
    "a t - shirt".
    """
    inside, wanted = words(text), words(phrase)
    return any(inside[start : start + len(wanted)] == wanted for start in range(len(inside) - len(wanted) + 1))
