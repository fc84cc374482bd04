"""The loop detector: finds captions that say nothing, or the same thing again and again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from mm.generation.text import is_word, words

REPEATS: Final = "repeats itself"
NO_CONTENT: Final = "has no content words"
CUT: Final = "was cut at the length limit"

NGRAM, REPEATED_SHARE = 3, 0.35
"""A text is degenerate when more than this share of its n-grams of words were there before."""
SHORT_RUNS = {1: 3.0, 2: 2.5, 3: 2.5}
"""Times that one, two or three words stand one behind another in a degenerate text; people write "very very"."""
LONG_RUN = 2.0
"""The same for more words: nobody writes four words twice in a row."""
TOKEN_RUN = 4.0
"""The same for tokens, which tell of loops that aren't words: marks, parts of characters, syllables."""

_ENGLISH = """
a an the this that these those some any each every all both other another one ones
i me my you your he him his she her it its we us our they them their who whom whose which what there here
and or but nor so if then than as while when where because though although
in on at of to from by with without for into onto over under up down out off near next through across along around
above below behind before after between among beside besides during against about toward towards upon
is are was were be been being am do does did has have had having can could will would shall should may might must
not no yes very too also just only 's s t
"""
_CHINESE = """
的 地 得 了 着 过 们 吗 呢 吧 啊 呀 么 之 其 所 而 且 则 于 以 为 因 由 把 被 让 给 对 向 从 到 在
和 与 及 跟 或 但 也 都 还 又 就 才 很
一 个 只 名 位 些 这 那 此 每 各 某 我 你 他 她 它 谁 什 哪 是 有 没 不 上 下 里 中 内 外 前 后 旁 边 间 面
"""
FUNCTION_WORDS = {"en": frozenset(_ENGLISH.split()), "zh": frozenset(_CHINESE.split())}
"""Words that say nothing of an image by themselves, by language; Chinese ones as characters."""


def degenerate(text: str, tokens: Sequence[int], complete: bool, language: str) -> str | None:
    """Says what is wrong with a caption that no one would write.

    Args:
        text: the caption.
        tokens: its T ids, special tokens not counted.
        complete: whether it ended by itself, not at the length limit.
        language: its code, such as ``en`` or ``zh-Hant``. English and Chinese have a list of function words; in other
            languages every word counts as a content word.

    Returns:
        ``REPEATS``, ``NO_CONTENT`` or ``CUT``, the first that holds; None for a caption as it should be.
    """
    said = [word for word in words(text) if is_word(word)]
    if _loops(said, SHORT_RUNS, LONG_RUN) or _loops(tokens, {}, TOKEN_RUN) or _repeated_share(said) > REPEATED_SHARE:
        return REPEATS
    function_words = FUNCTION_WORDS.get(re.split("[-_]", language)[0].lower(), frozenset())
    if all(word in function_words for word in said):
        return NO_CONTENT
    return None if complete else CUT


def _loops(units: Sequence[object], short: Mapping[int, float], long: float) -> bool:
    """Says whether some units stand one behind another too many times.

    Args:
        units: words or tokens.
        short: how many times are too many, by the number of units; parts of a time count.
        long: the same for every other number of units.
    """
    return any(_times(units, period) >= short.get(period, long) for period in range(1, len(units) // 2 + 1))


def _times(units: Sequence[object], period: int) -> float:
    """Counts how many times, at most, ``period`` units stand one behind another; parts of a time count."""
    longest = run = 0
    for unit, earlier in zip(units[period:], units, strict=False):
        run = run + 1 if unit == earlier else 0
        longest = max(longest, run)
    return 1 + longest / period


def _repeated_share(said: Sequence[str]) -> float:
    """Gives the share of the n-grams of words that were there before."""
    grams = list(zip(*(said[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
