from __future__ import annotations

from collections.abc import Sequence

import pytest
import spelled
from hypothesis import given
from hypothesis import strategies as st

from mm.data.tokenizer import Tokenizer
from mm.generation.stopping import StopStrings
from mm.generation.streaming import Pieces


class Counted(Tokenizer):
    """Counts the tokens that are decoded."""

    decoded = 0

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        self.decoded += sum(map(len, rows))
        return super().decode(rows)


def streamed(words: Tokenizer, tokens: Sequence[int], stops: StopStrings | None = None) -> list[str]:
    """All pieces of a text, the last when no token follows."""
    pieces = Pieces(words, stops)
    return [*(pieces.push(token) for token in tokens), pieces.finish()]


@pytest.mark.parametrize("kind", spelled.KINDS)
@given(data=st.data())
def test_all_pieces_are_the_text(kind: str, data: st.DataObject) -> None:
    words = spelled.tokenizer(kind)
    tokens = data.draw(spelled.rows(kind))
    assert "".join(streamed(words, tokens)) == words.decode([tokens])[0]


@pytest.mark.parametrize("kind", spelled.KINDS)
@given(data=st.data())
def test_all_pieces_are_the_text_up_to_a_stop_string(kind: str, data: st.DataObject) -> None:
    words = spelled.tokenizer(kind)
    tokens = data.draw(spelled.rows(kind))
    stops = StopStrings(data.draw(st.lists(st.sampled_from(spelled.stops(kind)), max_size=3)), words)
    assert "".join(streamed(words, tokens, stops)) == stops.cut(words.decode([tokens])[0])


@pytest.mark.parametrize("kind", spelled.KINDS)
@given(data=st.data())
def test_stop_strings_in_a_prompt_do_not_end_the_text(kind: str, data: st.DataObject) -> None:
    words = spelled.tokenizer(kind)
    tokens = data.draw(spelled.rows(kind))
    prompt = tokens[: data.draw(st.integers(0, len(tokens)))]
    stops = StopStrings(data.draw(st.lists(st.sampled_from(spelled.stops(kind)), max_size=3)), words)
    pieces = Pieces(words, stops, words.decode([prompt])[0])
    found = [*(pieces.push(token) for token in tokens), pieces.finish()]
    assert "".join(found) == stops.decode([tokens], [prompt])[0][0]


@pytest.mark.parametrize("kind", spelled.KINDS)
@pytest.mark.parametrize("text", spelled.TEXTS)
def test_text_comes_early(kind: str, text: str) -> None:
    words = spelled.tokenizer(kind)
    (tokens,) = words.encode([text])
    given, pieces = "", Pieces(words)
    for count, token in enumerate(tokens, 1):
        given += pieces.push(token)
        here = words.decode([tokens[:count]])[0]
        settled = not words.open_tokens & {token} and not words.open_characters & set(here[-1:])
        assert given == here if settled else here.startswith(given)


def test_pieces_are_whole_characters_and_hold_no_space_at_the_end() -> None:
    words = spelled.tokenizer("gpt2")
    (tokens,) = words.encode(["一只 \n 狗 \U0001f600"])
    found = [piece for piece in streamed(words, tokens) if piece]
    assert found == ["一", "只", " \n 狗", " \U0001f600"]
    assert len(tokens) > len(found)


def test_what_later_tokens_may_change_is_kept_back() -> None:
    words = spelled.tokenizer("spaced")
    (tokens,) = words.encode(["is the dog's . a"])
    assert streamed(words, tokens) == ["i", "", "s the", " dog", "", "", "", "'s. a", ""]
    words = spelled.tokenizer("fallback")
    (tokens,) = words.encode(["a狗dog"])
    (cut,) = words.encode(["a狗\U0001f600"])
    assert streamed(words, tokens) == ["a", "", "", "", "狗dog", ""]
    assert "".join(streamed(words, cut[:-1])) == words.decode([cut[:-1]])[0] == "a"


def test_what_may_become_a_stop_string_is_kept_back() -> None:
    words = spelled.tokenizer("mm")
    stops = StopStrings([" and a dog", "walks"], words)
    (tokens,) = words.encode(["a man and a cat and a dog run"])
    assert streamed(words, tokens, stops) == ["a", " man", "", "", " and a cat", "", "", "", "", ""]
    assert streamed(words, tokens[:-2], stops)[-1] == " and a"


def test_an_earlier_stop_string_wins_over_one_that_is_whole_before_it() -> None:
    words = spelled.tokenizer("gpt2")
    stops = StopStrings(["abcd", "bc"], words)
    letters = [token for letter in "xabcd" for token in words.encode([letter])[0]]
    assert streamed(words, letters, stops) == ["x", "", "", "", "", ""]
    assert streamed(words, letters[:-1], stops) == ["x", "", "", "", "a"]


@pytest.mark.parametrize("kind", spelled.KINDS)
def test_the_cost_is_linear(kind: str) -> None:
    words = Counted.from_json(spelled.tokenizer(kind).to_json(), kind, spelled.tokenizer(kind).special)
    assert isinstance(words, Counted)
    tokens = words.encode(["a dog on the hot hill "])[0] * 20
    streamed(words, tokens)
    assert words.decoded < 16 * len(tokens)
