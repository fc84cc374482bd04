"""How phrases are written in tokens, and which parts of a text may still change when tokens are added to it."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNKNOWN = ("<unk>", "[UNK]")
_WHOLE = ("Fuse", "ByteLevel")
"""Steps of a decoder that make one text of the tokens: steps behind them see what stands on both sides of a token."""


def forms(phrase: str) -> list[str]:
    """Gives a phrase as it is, in lower case, and each with a capital first letter."""
    said = phrase.strip()
    return list(dict.fromkeys(form for base in (said, said.lower()) for form in (base, base[:1].upper() + base[1:])))


def contexts(phrase: str) -> list[str]:
    """Gives what a phrase may stand behind within a caption: a word and a space.

    Wide characters, such as Chinese ones, also follow one another directly. A wide comma stands for what is before them
    then, since tokens don't reach across it.
    """
    wide = unicodedata.east_asian_width(phrase[0]) == "W"
    return ["a ", "，"] if wide else ["a "]


def without_words(backend: Any) -> frozenset[int]:
    """Gives the ids of tokens that no word is written with: special tokens and the token for what is unknown."""
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    unknown = map(backend.token_to_id, (*_UNKNOWN, *filter(None, [getattr(backend.model, "unk_token", None)])))
    return frozenset(special | {number for number in unknown if number is not None})


def open_tokens(backend: Any) -> frozenset[int]:
    """Gives the ids of tokens that are read together with their neighbours: single bytes under byte fallback.

    Such bytes are a text only if all of those in a row are. Special tokens are left out when decoding, so that they
    don't end a row.
    """
    if not any(step["type"] == "ByteFallback" for step in _steps(backend)):
        return frozenset()
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    return frozenset(special | {number for text, number in backend.get_vocab().items() if _BYTE.fullmatch(text)})


def open_characters(backend: Any) -> frozenset[str]:
    """Gives the characters that a decoder looks at or puts in when it replaces strings across tokens.

    No replacement reaches across any other character, so that what stands before one never changes.
    """
    steps = _steps(backend)
    whole = next((place for place, step in enumerate(steps) if step["type"] in _WHOLE), len(steps))
    replaced = [step for step in steps[whole:] if step["type"] == "Replace"]
    return frozenset("".join(step["pattern"].get("String", "") + step["content"] for step in replaced))


def _steps(backend: Any) -> list[dict[str, Any]]:
    """Gives the steps of a decoder, each as ``tokenizer.json`` has it."""
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]
