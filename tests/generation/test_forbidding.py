from __future__ import annotations

from pathlib import Path

import pytest

import mm
from mm.data.tokenizer import Tokenizer
from mm.generation import GenerationConfig
from mm.generation.forbidding import Stricter, leaks
from mm.generation.text import contains
from mm.pipeline import writing

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "data" / "samples").glob("*.jpg"))[:4]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.read(ROOT / "mm" / "assets" / "mm-tiny" / "tokenizer.json")


def letters(words: Tokenizer, text: str) -> list[int]:
    """A text written letter by letter, as its spelling isn't."""
    return [words._backend.token_to_id(letter) for letter in text.replace(" ", "Ġ")]


def test_a_phrase_in_other_tokens_is_found(words: Tokenizer) -> None:
    row = [*words.encode(["a dog and"])[0], *letters(words, " man")]
    assert words.decode([row]) == ["a dog and man"] and letters(words, " man") not in words.spellings("man")
    found = leaks(words, ["man", "cat"], [row, words.encode(["two dogs"])[0]])
    assert found.keys() == {"man"}
    (window,) = found["man"]
    assert contains(words.decode([window])[0], "man") and window not in words.spellings("man")
    assert window in Stricter(words, found).spellings("man") and Stricter(words, found).spellings("cat")


def test_a_longer_word_is_no_leak(words: Tokenizer) -> None:
    assert leaks(words, ["man"], [[*words.encode(["a"])[0], *letters(words, " woman")]]) == {}


@pytest.mark.slow
def test_forbidden_phrases_are_in_no_sampled_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forbidden = mm.load("mm-tiny", "cpu"), ("man", "a", "in", "red", "on", "the", "is")
    config = GenerationConfig(strategy="sample", temperature=1.5, captions=40, forbidden=forbidden, seed=1)
    leaked: list[dict[str, list[list[int]]]] = []
    monkeypatch.setattr(writing, "leaks", lambda *given: leaked.append(leaks(*given)) or leaked[-1])
    found = model.caption(PHOTOS, config=config)
    captions = [one for best in found for one in (best, *best.alternatives)]
    assert len(captions) == 160 and any(leaked)
    assert not [(one.text, phrase) for one in captions for phrase in forbidden if contains(one.text, phrase)]
    assert model.caption(PHOTOS[2], config=config)[0].text == found[2].text
