from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from mm.checkpoints.resolve import find_tokenizer
from mm.data.tokenizer import Tokenizer, clean_caption
from mm.errors import CheckpointError, OptionError

WORDS = tiny.tokenizer()
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)


def normal(text: str) -> str:
    """What a tokenizer keeps of a text: composed, lower-cased by character, without U+FFFD and outer space."""
    return "".join(char.lower() for char in unicodedata.normalize("NFC", text)).replace("\ufffd", "").strip()


@given(TEXT)
@example("<pad><end><en> <zh>")
@example("a dog\tand\na  cat\x00\x7f")
@example("一只狗 🐕‍🦺 ﬁ ﷺ")
def test_every_text_comes_back(text: str) -> None:
    text = normal(text)
    assert WORDS.decode(WORDS.encode([text])) == [text]


@given(TEXT)
def test_special_tokens_never_come_from_text(text: str) -> None:
    special = {WORDS.padding, WORDS.end, WORDS.embed, WORDS.match, WORDS.mask, *WORDS.languages.values()}
    for spelled in (text, f"<end>{text}<pad>", f"{text} <en>", "<embed> <match> <mask>"):
        assert not special & set(WORDS.encode([spelled])[0])


def test_texts_full_of_special_tokens_teach_nothing_wrong() -> None:
    words = Tokenizer.train(["<end><en><pad> <end>"] * 200, 320, ["en"])
    assert not {words.end, words.padding, words.languages["en"]} & set(words.encode(["<end><en><pad> <end>"])[0])


def test_half_a_surrogate_pair_is_a_question_mark() -> None:
    assert WORDS.decode(WORDS.encode(["a \ud83d dog"])) == ["a ? dog"]


def test_special_tokens_and_parts_of_characters_are_left_out() -> None:
    ids = WORDS.encode(["龘"])[0]
    assert len(ids) > 2
    (text,) = WORDS.decode([[WORDS.languages["en"], *WORDS.encode(["a wall"])[0], *ids[:-1], WORDS.end, WORDS.padding]])
    assert text == "a wall"
    assert WORDS.decode([[]]) == [""] and WORDS.decode([]) == []


def test_encoding_is_cut_and_padding_is_on_the_right() -> None:
    long = WORDS.encode(["all of it is red and green"])[0]
    assert WORDS.encode(["all of it is red and green"], 3) == [long[:3]]
    tokens, real = WORDS.pad([[5, 6, 7], [], [8]])
    pad = WORDS.padding
    assert tokens.tolist() == [[5, 6, 7], [pad, pad, pad], [8, pad, pad]] and tokens.dtype == np.int64
    assert real.tolist() == [[True, True, True], [False] * 3, [True, False, False]]
    tokens, real = WORDS.pad([])
    assert tokens.shape == real.shape == (0, 1)


def test_json_brings_back_the_same_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(WORDS.to_json(), encoding="utf-8")
    again = Tokenizer.read(path)
    assert again.languages == WORDS.languages and len(again) == len(WORDS) == 300
    text = "a red wall 红色 <en>"
    assert again.encode([text]) == WORDS.encode([text]) and again.to_json() == WORDS.to_json()


def test_languages_are_those_it_was_trained_for() -> None:
    words = Tokenizer.train(["a"], 300, ["zh-Hant", "en", "deu"])
    assert list(words.languages) == ["zh-Hant", "en", "deu"]
    for wrong in ("", "EN", "e", "pad", "en>", "english please"):
        with pytest.raises(OptionError, match="isn't a language code"):
            Tokenizer.train(["a"], 300, [wrong])
    with pytest.raises(OptionError, match="a vocabulary of 260 has no room for 256 bytes and 6 special tokens"):
        Tokenizer.train(["a"], 260, ["en"])


def test_new_tokenizers_have_a_mask_behind_the_other_special_tokens() -> None:
    special = [WORDS.padding, WORDS.end, WORDS.embed, WORDS.match, *WORDS.languages.values(), WORDS.mask]
    assert special == list(range(7)) and WORDS.decode([[6, *WORDS.encode(["a wall"])[0], 6]]) == ["a wall"]
    tiny_words = Tokenizer.read(find_tokenizer("mm-tiny"))
    assert tiny_words.mask is None and list(tiny_words.languages.values()) == [4, 5]


def test_a_model_of_one_language_may_write_others_instead() -> None:
    one = Tokenizer.from_json(WORDS.to_json(), "public", WORDS.special | {"languages": {"en": 0}, "start": 1})
    assert one.writing(["en"]) is one
    both = one.writing(["zh", "de"])
    assert both.languages == {"zh": 0, "de": 0} and both.begin("zh") == [1, 0] and not both.own
    assert both.special == one.special | {"languages": both.languages} and both.to_json() == one.to_json()
    assert both.writing(["fr"]).languages == {"fr": 0}
    several = Tokenizer.from_json(WORDS.to_json(), "public", WORDS.special)
    for words in (WORDS, several):
        assert words.writing(["zh"]) is words
        with pytest.raises(OptionError, match="language 'fr' is unknown; the tokenizer knows en, zh"):
            words.writing(["en", "fr"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A dog . ", "A dog"),
        ("two\n dogs..", "two dogs"),
        ("一只狗。", "一只狗"),
        ("...", "..."),
        ("", ""),
        ("a dog. a cat.", "a dog. a cat"),
    ],
)
def test_captions_are_cleaned(before: str, after: str) -> None:
    assert clean_caption(before) == after


def changed(change: Any) -> str:
    document = json.loads(WORDS.to_json())
    change(document)
    return json.dumps(document)


def drop(name: str) -> Any:
    def change(document: dict[str, Any]) -> None:
        document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != name]

    return change


def no_languages(document: dict[str, Any]) -> None:
    drop("<en>")(document)
    drop("<zh>")(document)


def gap(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 10_000
    document["model"]["merges"] = []


def no_bytes(document: dict[str, Any]) -> None:
    document["pre_tokenizer"] = {"type": "Whitespace"}


def no_unknown(document: dict[str, Any]) -> None:
    document["model"] = {"type": "WordLevel", "vocab": document["model"]["vocab"], "unk_token": "[UNK]"}


HOSTILE = {
    "empty": ("", "not a tokenizer"),
    "not JSON": ("{", "not a tokenizer"),
    "null": ("null", "not a tokenizer"),
    "a list": ("[]", "not a tokenizer"),
    "an object": ("{}", "not a tokenizer"),
    "deep": ("[" * 100_000, "not a tokenizer"),
    "an unknown kind": (changed(lambda d: d["model"].update(type="Magic")), "not a tokenizer"),
    "no end token": (changed(drop("<end>")), "no special token <end>"),
    "no language": (changed(no_languages), "no language's token"),
    "gaps": (changed(gap), "aren't numbered from 0 without gaps"),
    "unknown bytes": (changed(no_bytes), "doesn't keep every byte"),
    "no unknown token": (changed(no_unknown), "can't encode text"),
    "truncation is ignored": (
        changed(lambda d: d.update(truncation={"max_length": 1, "strategy": "LongestFirst", "stride": 0})),
        None,
    ),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    if message is None:
        assert Tokenizer.read(path).encode(["a red wall"]) == WORDS.encode(["a red wall"])
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.json: can't be read \(No such file"):
        Tokenizer.read(tmp_path / "nowhere.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="isn't UTF-8"):
        Tokenizer.read(tmp_path / "bytes.json")
