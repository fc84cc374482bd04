"""Keeping phrases out of texts in whatever tokens they are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from mm.generation.text import Text, contains


class Stricter:
    """A tokenizer that knows further ways to write phrases, which have come up.

    Args:
        text: the tokenizer.
        further: token ids by phrase.
    """

    def __init__(self, text: Text, further: Mapping[str, Sequence[list[int]]]) -> None:
        self._text = text
        self._further = further

    @property
    def open_tokens(self) -> AbstractSet[int]:
        """Those of the tokenizer."""
        return self._text.open_tokens

    @property
    def open_characters(self) -> AbstractSet[str]:
        """Those of the tokenizer."""
        return self._text.open_characters

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Does what the tokenizer does."""
        return self._text.decode(rows)

    def spellings(self, phrase: str) -> list[list[int]]:
        """Gives those of the tokenizer, and the further ones."""
        return [*self._text.spellings(phrase), *self._further.get(phrase, ())]


def leaks(text: Text, phrases: Sequence[str], rows: Sequence[Sequence[int]]) -> dict[str, list[list[int]]]:
    """Finds in which tokens phrases stand in texts, though their spellings don't.

    Args:
        text: the tokenizer.
        phrases: that mustn't appear.
        rows: token ids of the texts.

    Returns:
        For each phrase that is there, the fewest tokens in a row that hold it, once for each text.
    """
    found: dict[str, list[list[int]]] = defaultdict(list)
    for row, whole in zip(rows, text.decode(rows), strict=True):
        for phrase in phrases:
            if contains(whole, phrase):
                found[phrase].append(_shortest(text, phrase, list(row)))
    return dict(found)


def _shortest(text: Text, phrase: str, row: list[int]) -> list[int]:
    known = {tuple(ids) for ids in text.spellings(phrase)}
    for size in range(1, len(row)):
        windows = [row[start : start + size] for start in range(len(row) - size + 1)]
        for window, part in zip(windows, text.decode(windows), strict=True):
            if tuple(window) not in known and contains(part, phrase):
                return window
    return row
