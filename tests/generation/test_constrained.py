from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_generate import END, FILL, PROMPTS, VOCABULARY, likelihood
from tiny import about, decoder

from mm.errors import OptionError
from mm.generation import Generated, GenerationConfig, generate_all
from mm.generation.constrained import ConstrainedBeamSearch, in_turn, without_implied
from mm.generation.phrases import Phrases, find_boundaries
from mm.models import TextTransformer


class Words:
    """A tokenizer that has a word for every token: ``w7`` for 7; those from ``glued`` on have no space before them."""

    open_tokens: frozenset[int] = frozenset()
    open_characters: frozenset[str] = frozenset()

    def __init__(self, special: Sequence[int] = (END, FILL), glued: int = VOCABULARY) -> None:
        self.special, self.glued = {*special}, glued
        self.also: dict[str, list[list[int]]] = {}  # further spellings

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [
            "".join(
                f"{'' if token >= self.glued else ' '}w{token}" for token in row if token not in self.special
            ).strip()
            for row in rows
        ]

    def spellings(self, phrase: str) -> list[list[int]]:
        if not all(word[1:].isdecimal() for word in phrase.split()):
            raise OptionError(f"{phrase!r} isn't in the vocabulary")
        return [[int(word[1:]) for word in phrase.split()], *self.also.get(phrase, [])]


IMAGES = torch.randn(len(PROMPTS), 9, 24, generator=torch.Generator().manual_seed(7))
CONFIGS = {
    "a word": GenerationConfig(beams=3, max_tokens=20, required=("w8",)),
    "a phrase": GenerationConfig(beams=4, max_tokens=20, required=("w8 w9 w8 w10",), length_penalty=0.0),
    "several": GenerationConfig(beams=5, max_tokens=20, required=("w8 w9", "w30", "w31 w32 w33", "w8 w4")),
    "hardly room": GenerationConfig(beams=3, max_tokens=7, required=("w8 w9", "w30", "w31 w32 w33")),
    "rules": GenerationConfig(
        beams=6,
        max_tokens=20,
        min_tokens=12,
        required=("w8 w9", "w30 w9"),
        forbidden=("w20", "w30 w8"),
        no_repeat_ngram=2,
        repetition_penalty=1.4,
    ),
    "short": GenerationConfig(beams=4, captions=2, max_tokens=20, required=("w8",), length_penalty=-1.0),
    "several captions": GenerationConfig(beams=6, captions=4, max_tokens=12, required=("w8 w9", "w30")),
}


def run(
    model: TextTransformer,
    config: GenerationConfig,
    which: Sequence[int] = range(len(PROMPTS)),
    cached: bool = True,
    text: Words | None = None,
) -> list[list[Generated]]:
    chosen, prompts = IMAGES[list(which)], [PROMPTS[i] for i in which]
    ids: dict[str, Any] = {"end": END, "fill": FILL}
    seen = about(model, chosen)
    return generate_all(model, seen, prompts, config, **ids, never=[FILL], text=text or Words(), cached=cached)


def tokens(found: list[list[Generated]]) -> list[list[list[int]]]:
    return [[caption.tokens for caption in captions] for captions in found]


def has(row: Sequence[int], ids: Sequence[int]) -> bool:
    return any([*row[start : start + len(ids)]] == [*ids] for start in range(len(row)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_caption_has_every_phrase(config: GenerationConfig, seed: int) -> None:
    model = decoder(VOCABULARY, END, seed)
    phrases = [Words().spellings(phrase)[0] for phrase in config.required]
    without = [caption for captions in run(model, replace(config, required=())) for caption in captions]
    assert not all(has(caption.tokens, ids) for caption in without for ids in phrases)
    for prompt, captions in zip(PROMPTS, run(model, config), strict=True):
        assert len(captions) == config.captions == len({tuple(caption.tokens) for caption in captions})
        for caption in captions:
            assert all(has(caption.tokens, ids) for ids in phrases)
            assert config.min_tokens <= len(caption.tokens) - len(prompt) + 1 <= config.max_tokens
            assert caption.ended or caption.generated == config.max_tokens
            new = [*caption.tokens[len(prompt) - 1 :], *([END] if caption.ended else [])]
            image = IMAGES[PROMPTS.index(prompt)]
            assert caption.score == pytest.approx(float(likelihood(model, image, prompt, new).sum()), abs=1e-3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_equals_its_parts_and_cached_equals_uncached(config: GenerationConfig) -> None:
    for seed in range(2):
        model = decoder(VOCABULARY, END, seed)
        together = tokens(run(model, config))
        assert together == [tokens(run(model, config, [i]))[0] for i in range(len(PROMPTS))]
        assert together == tokens(run(model, config, cached=False))
        assert together == tokens(run(model, config, range(len(PROMPTS))[::-1]))[::-1]


def test_finished_images_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    keep = ConstrainedBeamSearch._keep

    def spy(search: ConstrainedBeamSearch, images: torch.Tensor) -> None:
        left.append(len(images))
        keep(search, images)

    monkeypatch.setattr(ConstrainedBeamSearch, "_keep", spy)
    for seed in range(2):  # as in the test above
        run(decoder(VOCABULARY, END, seed), CONFIGS["short"])
    assert left and min(left) < len(PROMPTS) - 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_with_room_for_everything_it_is_exhaustive_search(seed: int, penalty: float) -> None:
    vocabulary, longest, end = 5, 4, 2
    text, required = Words(special=[end]), [("w1 w3",), ("w4", "w0 w1"), ("w3", "w4 w3"), ("w1 w1 w4",)][seed % 4]
    text.also["w4"] = [[3, 3]]
    model = decoder(vocabulary, end, seed)
    image = torch.randn(9, 24, generator=torch.Generator().manual_seed(seed))
    ranked = []
    for length in range(1, longest + 1):
        for new in itertools.product(range(vocabulary), repeat=length):
            whole = length == longest or new[-1] == end
            spelled = all(any(has(new, ids) for ids in text.spellings(phrase)) for phrase in required)
            if whole and spelled and end not in new[:-1]:
                score = float(likelihood(model, image, [end], list(new)).sum())
                ranked.append((score / length**penalty, [token for token in new if token != end], score))
    config = GenerationConfig(
        beams=300, captions=5, max_tokens=longest, length_penalty=penalty, min_tokens=0, required=required
    )
    seen = about(model, image[None])
    (found,) = generate_all(model, seen, [[end]], config, end=end, fill=end, text=text)
    ranked.sort(reverse=True)
    assert [caption.tokens for caption in found] == [row for _, row, _ in ranked[:5]]
    assert [caption.score for caption in found] == pytest.approx([score for _, _, score in ranked[:5]], abs=1e-4)


def test_words_of_the_prompt_count() -> None:
    model, config = decoder(VOCABULARY, END, 0), GenerationConfig(beams=3, max_tokens=4, min_tokens=0)
    with_prompt = run(model, replace(config, required=("w10 w11", "w12")), [1])
    assert tokens(with_prompt) == tokens(run(model, config, [1]))
    begun = run(model, replace(config, max_tokens=1, required=("w12 w30",)), [1])
    assert tokens(begun) == [[[10, 11, 12, 30]]]
    with pytest.raises(OptionError, match=r"takes 3 tokens, more than max_tokens 2"):
        run(model, replace(config, max_tokens=2, required=("w10 w11", "w12")), [0, 1])


def test_beams_are_shared_between_banks() -> None:
    sums = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -5.0, -torch.inf]])
    banks = torch.tensor([[2, 2, 2, 0, 2, 1]])
    assert in_turn(sums, banks, 3).tolist() == [[3, 0, 1, 2, 4, 5]]
    assert in_turn(sums, torch.tensor([[1, 0, 1, 0, 1, 1]]), 2).tolist() == [[1, 0, 3, 2, 4, 5]]
    assert in_turn(sums, torch.zeros_like(banks), 3).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_phrases_are_followed_through_their_spellings() -> None:
    phrases = Phrases([[[1, 2, 1, 3], [4]], [[1, 5]]], find_boundaries(Words(), VOCABULARY), torch.device("cpu"))

    def needed(*row: int) -> int:
        return int(phrases.needed_now(torch.tensor([[[*row]]])))

    assert [needed(9), needed(9, 1), needed(9, 1, 2), needed(9, 1, 2, 1)] == [3, 2, 3, 2]
    assert [needed(9, 1, 2, 1, 3), needed(9, 4), needed(9, 4, 1), needed(4, 1, 5, 9), needed(1, 5, 9)] == [
        2,
        2,
        1,
        0,
        1,
    ]
    rows = torch.randint(0, 7, (3, 4, 9), generator=torch.Generator().manual_seed(0))
    behind = phrases.needed_behind(rows, 7)
    for token in range(7):
        assert torch.equal(behind[..., token], phrases.needed_now(torch.cat([rows, torch.full((3, 4, 1), token)], -1)))


def test_a_phrase_in_the_middle_of_a_word_does_not_count() -> None:
    text = Words(glued=35)
    phrases = Phrases([[[8], [36]]], find_boundaries(text, VOCABULARY), torch.device("cpu"))
    rows = torch.tensor([[[5, 8, 9]], [[5, 8, 36]], [[5, 9, 36]], [[5, FILL, 36]], [[FILL, 36, 35]], [[9, 9, 8]]])
    assert phrases.needed_now(rows)[:, 0].tolist() == [0, 1, 1, 0, 1, 0]
    behind = phrases.needed_behind(rows, VOCABULARY)
    for token in (END, 4, 8, 34, 35, 36):
        grown = torch.cat([rows, torch.full((len(rows), 1, 1), token)], -1)
        assert torch.equal(behind[..., token], phrases.needed_now(grown))
    glued = 0
    for seed in range(8):
        model = decoder(VOCABULARY, END, seed)
        with torch.no_grad():
            assert model.head is not None and model.head.bias is not None
            model.head.bias[35:] = 2.5
        for captions in run(model, GenerationConfig(beams=3, max_tokens=12, required=("w8",)), text=text):
            decoded = text.decode([captions[0].tokens])[0]
            assert "w8" in decoded.split()
            glued += any(word.count("w") > 1 for word in decoded.split())
    assert glued > 10


def test_a_stop_string_does_not_end_a_caption_before_its_phrases() -> None:
    ended = 0
    for seed in range(6):
        model = decoder(VOCABULARY, END, seed)
        config = GenerationConfig(beams=4, max_tokens=16, min_tokens=8, required=("w30",), stop=("w1", "w2"))
        for prompt, captions in zip(PROMPTS, run(model, config), strict=True):
            text = Words().decode([captions[0].tokens[len(prompt) - 1 :]])[0]
            places = [place for stop in config.stop if (place := text.find(stop)) >= 0]
            ended += bool(places)
            assert "w30" in text[: min([*places, len(text)])].split()
    assert ended > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"required": "w8 w9", "forbidden": "w9"}, r"required 'w8 w9' can't appear: forbidden \('w9',\) rule out"),
        ({"required": "w8 w9 w10", "forbidden": "w8 w9"}, "required 'w8 w9 w10' can't appear: forbidden"),
        ({"required": "w8 w9 w8", "no_repeat_ngram": 1}, "required 'w8 w9 w8' can't appear: no_repeat_ngram 1"),
        ({"required": "w8 w9", "stop": "w9"}, "required 'w8 w9' can't appear: stop"),
        ({"required": f"w8 w{END}"}, "can't appear: tokens that are never chosen"),
        ({"required": ("w8 w9", "w10 w9"), "no_repeat_ngram": 1}, r"required .* no captions were found"),
        ({"required": ("w8 w9 w10",), "max_tokens": 2}, "takes 3 tokens, more than max_tokens 2"),
    ],
)
def test_contradictions_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run(decoder(VOCABULARY, END, 0), GenerationConfig(beams=3, **options))  # type: ignore[arg-type]


def test_phrases_that_others_imply_are_left_out() -> None:
    assert without_implied(["Dog", "a dog", "dog", "cat", "cats", "A  dog"]) == ["A  dog", "cat", "cats"]
