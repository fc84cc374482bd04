"""Tokenizing captions for the caption metrics."""

from __future__ import annotations

import re
from collections.abc import Callable

from mm.errors import OptionError
from mm.metrics.ptb import ptb_tokenize

# One ideograph, or a run of other letters and digits. The ideographs: the iteration mark and zero, both unified blocks,
# their extensions and the compatibility block.
_IDEOGRAPH = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE_TOKEN = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+")

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def tokenize_chinese(text: str) -> list[str]:
    """Split a Chinese caption into single characters, and runs of Latin letters and digits in lower case.

    Full-width letters and digits become the ordinary ones. Punctuation of any width and white space are left out.

    Args:
        text: the caption.

    Returns:
        The tokens.
    """
    return _CHINESE_TOKEN.findall(_narrow(text).lower())


def tokenize(text: str, language: str = "en") -> list[str]:
    """Split a caption into the tokens that the caption metrics count.

    Args:
        text: the caption.
        language: "en" for Penn Treebank tokens, "zh" for Chinese characters.

    Returns:
        The tokens, lower-case and without punctuation.

    Raises:
        OptionError: if the language is neither.
    """
    if language not in _TOKENIZERS:
        raise OptionError(f"no tokenizer for language {language!r}: choose from {', '.join(_TOKENIZERS)}")
    return _TOKENIZERS[language](text)


def _narrow(text: str) -> str:
    """Full-width forms of ASCII (U+FF01 to U+FF5E) as ASCII."""
    return text.translate(_FULL_WIDTH)


_TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"en": ptb_tokenize, "zh": tokenize_chinese}
LANGUAGES = tuple(_TOKENIZERS)
