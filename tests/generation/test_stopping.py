from __future__ import annotations

from collections.abc import Sequence

import pytest
import spelled
from hypothesis import given
from hypothesis import strategies as st

from mm.errors import OptionError
from mm.generation.stopping import StopStrings


@pytest.mark.parametrize("kind", spelled.KINDS)
@given(data=st.data())
def test_a_text_ends_as_if_all_of_it_were_decoded(kind: str, data: st.DataObject) -> None:
    words = spelled.tokenizer(kind)
    tokens = data.draw(spelled.rows(kind))
    wanted = data.draw(st.lists(st.sampled_from(spelled.stops(kind)), min_size=1, max_size=3))
    new = data.draw(st.integers(1, 3))
    stops = StopStrings(wanted, words)
    for count in range(new, len(tokens) + 1, new):
        whole = words.decode([tokens[:count]])[0]
        there = any(stop in whole for stop in wanted)
        assert stops.ended(tokens[:count], new) is there
        if there:
            break


@pytest.mark.parametrize("kind", ["mm", "gpt2", "prefixed", "fallback"])
@pytest.mark.parametrize("stop", ["\n", " ", " dog", "g on", "a\n\nb", "狗", "\U0001f600"])
def test_stop_strings_of_any_characters(kind: str, stop: str) -> None:
    words = spelled.tokenizer(kind)
    stops = StopStrings([stop], words)
    (tokens,) = words.encode([f"it{stop}x, and so on"])
    ended = [count for count in range(1, len(tokens) + 1) if stops.ended(tokens[:count])]
    assert ended and stops.cut(words.decode([tokens])[0]) == "it"
    before = words.decode([tokens[: ended[0] - 1]])[0]
    assert stop not in before and stop in words.decode([tokens[: ended[0]]])[0]


def test_bytes_in_a_row_are_read_together() -> None:
    words = spelled.tokenizer("fallback")
    (dog, *_), (_, *letters) = words.encode(["dog", "aégd"])
    first, second, g, d = letters
    broken = [dog, second, *[first, second] * 3, g, d]
    assert words.decode([broken, broken[2:]]) == ["doggd", "ééégd"]
    assert not StopStrings(["égd"], words).ended(broken)
    gone = [dog, first, second, first, g]
    assert words.decode([gone[:3], gone]) == ["dogé", "dogg"]
    assert StopStrings(["ogg"], words).ended(gone, 2)


def test_only_the_last_tokens_are_decoded() -> None:
    words = spelled.tokenizer("mm")
    (tokens,) = words.encode(["a dog and a cat " * 200 + "stop it now"])
    longest = 0

    class Watched:
        open_tokens, open_characters, spellings = words.open_tokens, words.open_characters, words.spellings

        def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
            nonlocal longest
            longest = max(longest, *map(len, rows))
            return words.decode(rows)

    stops = StopStrings(["stop it"], Watched())
    assert [stops.ended(tokens[:count]) for count in range(len(tokens) - 3, len(tokens) + 1)].count(True) == 1
    assert 1 < longest <= 16


def test_texts_are_cut_at_the_first_stop_string() -> None:
    stops = StopStrings([" cat", "and"], spelled.tokenizer("mm"))
    assert stops.cut("a dog and a cat") == "a dog"
    assert stops.cut("a cat and a dog") == "a"
    assert stops.cut("a dog ") == "a dog " and stops.cut("and") == "" and stops.cut("") == ""
    assert stops.find("a dog") is None and stops.find("a cat and") == 1
    assert stops.begun("a dog ca") == 5 and stops.begun("a dog an") == 6 and stops.begun("a c") == 1


def test_no_stop_strings_never_stop() -> None:
    stops = StopStrings([], spelled.tokenizer("mm"))
    assert not stops.ended([1, 2, 3]) and stops.cut("a dog") == "a dog"
    assert stops.find("") is None and stops.begun("a") == 1


@pytest.mark.parametrize(
    ("kind", "stop", "message"),
    [
        ("mm", "", "stop '' is empty; give at least one character"),
        ("mm", "The", "stop 'The' is never in the texts of this model; they have 'the' for it"),
        ("wordpiece", "\n", r"stop '\\n' is never in the texts of this model; give another"),
        ("wordpiece", "the dog's", 'stop "the dog\'s" is never in the texts of this model; they have "the dog \' s"'),
        ("wordpiece", "ü", "stop 'ü' is never in the texts of this model; they have 'u' for it"),
        ("unigram", "Z", "stop 'Z' is never in the texts of this model; give another"),
    ],
)
def test_what_never_stops_is_refused(kind: str, stop: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StopStrings([stop], spelled.tokenizer(kind))
