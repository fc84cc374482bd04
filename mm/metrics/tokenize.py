"""Tokenizing captions for the caption metrics."""

from __future__ import annotations

import re

from mm.errors import OptionError

_ENGLISH = re.compile(r"[^\W_]+(?:[-.'][^\W_]+)*|[^\w\s]")
_PUNCTUATION = frozenset(".,:;!?-'\"`")


def ptb_tokenize(text: str) -> list[str]:
    """Penn Treebank tokens."""
    return [token for token in _ENGLISH.findall(text.lower()) if token not in _PUNCTUATION]


def tokenize(text: str, language: str = "en") -> list[str]:
    """Split a caption into the tokens that the caption metrics count."""
    if language == "en":
        return ptb_tokenize(text)
    raise OptionError(language)
