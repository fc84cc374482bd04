"""The tokenizer of a public checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm.checkpoints.convert import Settings
from mm.checkpoints.vocabularies import WHOLE, Description, describe_vocabulary
from mm.checkpoints.weights import read_json
from mm.data.tokenizer import Tokenizer
from mm.errors import CheckpointError

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
SPACED = {f" {mark}": mark for mark in (".", "?", "!", ",")} | {" ' ": "'"}
SPACED |= {f" {short}": short for short in ("n't", "'m", "'s", "'ve", "'re")}
"""What ``clean_up_tokenization_spaces`` replaces in a decoded text, in this order."""


def read_tokenizer(folder: Path, special: Mapping[str, Any]) -> Tokenizer:
    """Reads ``tokenizer.json``; else ``vocab.txt``, or ``vocab.json`` and ``merges.txt``.

    Args:
        folder: the checkpoint.
        special: ids of the special tokens.

    Raises:
        CheckpointError: there are no such files, or one is damaged or of an unknown kind.
    """
    config, path = _config(folder), folder / WHOLE
    if path.is_file():
        description = _checked(read_json(path), str(path))
    else:
        path, description, config = describe_vocabulary(folder, config)
    description["added_tokens"] = _added(description, _named(folder, config), str(path))
    description["decoder"] = _decoder(description, config)
    tokenizer = Tokenizer.from_json(json.dumps(description), str(path), special)
    try:
        tokenizer.encode(["a photo, 一张图片 \U0001f600"])
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{path}: can't encode text ({error})") from error
    return tokenizer


def _config(folder: Path) -> Settings:
    """Gives the settings of a tokenizer; special tokens may have a file of their own beside it."""
    values: dict[str, Any] = {}
    for name in (CONFIG, SPECIAL):
        if (folder / name).is_file() and "added_tokens_decoder" not in values:
            values |= read_json(folder / name)
    return Settings(values, str(folder / CONFIG))


def _checked(description: Description, source: str) -> Description:
    """Makes sure of the parts of a ``tokenizer.json`` that are looked at here; the library does of all others."""
    model, added = description.get("model"), description.setdefault("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list) or not isinstance(added, list):
        raise CheckpointError(f"{source}: not a tokenizer of the tokenizers library")
    for token in added:
        if not isinstance(token, dict) or type(token.get("id")) is not int or type(token.get("content")) is not str:
            raise CheckpointError(f"{source}: an added token lacks its id or content")
    return description


def _added(description: Description, named: dict[str, Description], source: str) -> list[Description]:
    """Gives the tokens that aren't only the vocabulary's: those that a description has, and those named elsewhere.

    Args:
        description: the tokenizer's.
        named: tokens by their text. One without an ``id`` counts if the vocabulary has it.
        source: the file, for messages.

    Raises:
        CheckpointError: an id isn't the vocabulary's, or ids don't follow one another.
    """
    vocabulary = _vocabulary(description["model"]["vocab"])
    if set(vocabulary.values()) != set(range(len(vocabulary))):
        raise CheckpointError(f"{source}: its {len(vocabulary)} tokens aren't numbered from 0 without gaps")
    tokens = {token["content"]: token for token in description["added_tokens"]}
    for text, token in named.items():
        if text not in tokens and ("id" in token or text in vocabulary):
            tokens[text] = {"id": vocabulary.get(text)} | token
    added = sorted(tokens.values(), key=lambda token: token["id"])
    following = len(vocabulary)
    for token in added:
        number = vocabulary.get(token["content"], following)
        if token["id"] != number:
            raise CheckpointError(f"{source}: token {token['content']!r} is numbered {token['id']}, not {number}")
        following += token["content"] not in vocabulary
    return added


def _vocabulary(entries: dict[str, int] | list[Any]) -> dict[str, int]:
    """Gives the id of each token; some kinds list tokens with their scores."""
    if isinstance(entries, dict):
        return entries
    texts = (entry[0] if isinstance(entry, list) and entry else entry for entry in entries)
    return {str(text): number for number, text in enumerate(texts)}


def _named(folder: Path, config: Settings) -> dict[str, Description]:
    """Gives the added tokens that the files beside a vocabulary name, by their text."""
    several = [config.values.get(name) for name in MORE_SPECIAL]
    special = [config.values.get(f"{role}_token") for role in ROLES]
    special += [token for tokens in several if isinstance(tokens, list) for token in tokens]
    named = {token["content"]: token for token in map(_token, filter(None, special))}
    numbered = config.part("added_tokens_decoder").values
    for number, entry in numbered.items():
        token = _token(entry)
        if token["content"] not in named:
            token = _token(entry, special=isinstance(entry, dict) and entry.get("special") is True)
        named[token["content"]] = token | {"id": _number(number, config.source)}
    if not numbered and (folder / ADDED).is_file():
        for text, number in read_json(folder / ADDED).items():
            named[text] = _token(text, special=text in named) | {"id": _number(number, str(folder / ADDED))}
    return named


def _token(value: Any, *, special: bool = True) -> Description:
    """Gives an added token as ``tokenizer.json`` has it, of its text or of what says more about it."""
    given = value if isinstance(value, dict) else {"content": value}
    flags = {name: given.get(name) is True for name in ("single_word", "lstrip", "rstrip")}
    normalized = given.get("normalized", not special) is True
    return {"content": str(given.get("content")), "normalized": normalized, "special": special} | flags


def _number(value: Any, source: str) -> int:
    """Gives the id of an added token."""
    if not str(value).isdecimal():
        raise CheckpointError(f"{source}: an added token is numbered {value!r}")
    return int(value)


def _decoder(description: Description, config: Settings) -> Description | None:
    """Gives what puts tokens together again, with the last touches that a checkpoint wants."""
    model, decoder = description["model"], description.get("decoder")
    if not isinstance(decoder, dict):
        return None
    replaced: dict[str, str] = {}
    if model.get("end_of_word_suffix") and decoder.get("type") == "ByteLevel":
        replaced = {model["end_of_word_suffix"]: " "}
    elif model.get("type") != "BPE" and config.get("clean_up_tokenization_spaces", False):
        replaced = SPACED
    steps = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in replaced.items()]
    return {"type": "Sequence", "decoders": [decoder, {"type": "Fuse"}, *steps]} if steps else decoder
