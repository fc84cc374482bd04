from __future__ import annotations

import pytest
import spelled
import tiny

from mm.data.tokenizer import Tokenizer
from mm.errors import OptionError


def pieces(words: Tokenizer, phrase: str) -> list[str]:
    """The spellings of a phrase, each as the names of its tokens."""
    backend = words._backend
    return [" ".join(str(backend.id_to_token(token)) for token in row) for row in words.spellings(phrase)]


@pytest.mark.parametrize(
    ("kind", "phrase", "expected"),
    [
        ("mm", "dog", ["Ġdog"]),
        ("mm", "Walking dog ", ["Ġwalking Ġdog"]),
        ("mm", "狗", ["ĠçĭĹ", "çĭĹ"]),
        ("wordpiece", "walking", ["walk ##ing"]),
        ("wordpiece", "Dog's", ["dog ' s"]),
        ("wordpiece", "一只狗", ["一 只 狗"]),
        ("gpt2", "dog", ["dog", "Ġdog", "Dog", "ĠDog"]),
        ("gpt2", "Dog", ["Dog", "ĠDog", "dog", "Ġdog"]),
        ("prefixed", "dog", ["Ġdog", "ĠDog"]),
        ("unigram", "the dog", ["▁the ▁dog"]),
        ("unigram", "狗", ["▁ 狗", "狗"]),
        ("fallback", "dog", ["▁dog", "▁ <0x44> o g"]),
        ("fallback", "狗", ["▁ <0xE7> <0x8B> <0x97>", "<0xE7> <0x8B> <0x97>"]),
    ],
)
def test_phrases_are_spelled_as_in_captions(kind: str, phrase: str, expected: list[str]) -> None:
    assert pieces(spelled.tokenizer(kind), phrase) == expected


@pytest.mark.parametrize("kind", spelled.KINDS)
@pytest.mark.parametrize("phrase", ["dog", "the walking", "t-shirt", "it's", "狗", "一只狗", "\U0001f600"])
def test_spellings_are_found_in_captions(kind: str, phrase: str) -> None:
    words = spelled.tokenizer(kind)
    rows = words.spellings(phrase)
    assert {"".join(text.split()).lower() for text in words.decode(rows)} == {phrase.replace(" ", "")}
    for caption in (phrase, f"the {phrase} is"):
        (tokens,) = words.encode([caption])
        assert any(row == tokens[start : start + len(row)] for row in rows for start in range(len(tokens)))


def test_chinese_words_are_found_behind_others() -> None:
    words = tiny.tokenizer(320)
    (tokens,) = words.encode(["一面，红色"])
    rows = words.spellings("红色")
    assert any(tokens[-len(row) :] == row for row in rows)


@pytest.mark.parametrize("phrase", ["", " ", "\n\t"])
def test_empty_phrases_are_refused(phrase: str) -> None:
    with pytest.raises(OptionError, match=r"phrase '.*' is empty; give a word or several"):
        spelled.tokenizer("mm").spellings(phrase)


@pytest.mark.parametrize(
    ("kind", "phrase"), [("wordpiece", "ж"), ("wordpiece", "dog ж"), ("unigram", "Ж"), ("wordpiece", "\x01")]
)
def test_phrases_without_tokens_are_refused(kind: str, phrase: str) -> None:
    with pytest.raises(OptionError, match="can't be written with the vocabulary of this model; give another") as raised:
        spelled.tokenizer(kind).spellings(phrase)
    assert repr(phrase) in str(raised.value)


def test_names_of_special_tokens_are_text() -> None:
    words = spelled.tokenizer("mm")
    (row,) = words.spellings("<end>")
    assert words.end not in row and words.decode([row]) == ["<end>"]


def test_what_later_tokens_may_change_is_known() -> None:
    for kind in ("mm", "wordpiece", "gpt2", "unigram"):
        words = spelled.tokenizer(kind)
        assert not words.open_tokens and not words.open_characters
    assert spelled.tokenizer("spaced").open_characters == set(" .,'nts")
    fallback = spelled.tokenizer("fallback")
    assert fallback.open_tokens == set(range(259)) and not fallback.open_characters
