"""Greedy and beam search write what ``generate`` of transformers writes with the same weights, token by token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from writers import LONGEST, Writer, alone, blip, encoder_decoder, ending, gpt2, ours, theirs

from mm.generation import GenerationConfig

SEEDS = range(3)
FREE = GenerationConfig(min_tokens=0, max_tokens=LONGEST)
TWO, THREE, FOUR = (replace(FREE, beams=count, captions=count) for count in (2, 3, 4))
SEARCHES = {
    "greedy": FREE,
    "greedy, penalty": replace(FREE, min_tokens=5, repetition_penalty=1.5),
    "greedy, encouraged": replace(FREE, repetition_penalty=0.8),
    "greedy, no n-gram twice": replace(FREE, min_tokens=9, no_repeat_ngram=2),
    "beam 2": TWO,
    "beam 3, any length": replace(THREE, length_penalty=0.0),
    "beam 3, long": replace(THREE, captions=2, min_tokens=3, length_penalty=2.0),
    "beam 3, penalty": replace(THREE, repetition_penalty=1.5),
    "beam 3, everything": replace(THREE, min_tokens=4, length_penalty=0.5, repetition_penalty=1.2, no_repeat_ngram=3),
    "beam 4": FOUR,
    "beam 4, short": replace(FOUR, length_penalty=-1.0),
    "beam 4, one length": replace(FOUR, min_tokens=6, max_tokens=6),
    "beam 4, no n-gram twice": replace(FOUR, min_tokens=7, no_repeat_ngram=2),
}
TEXTS = [[2, 7, 31, 12], [2, 9, 14, 40], [2, 2, 2, 2], [2, 50, 51, 33]]
UNEVEN = [[2, 7, 31, 12, 9], [2], [2, 40, 8], [2, 55]]
KINDS = {
    "BLIP": blip,
    "BLIP, prompt": lambda folder, seed: blip(folder, seed, [5, 12, 14]),
    "GPT-2": lambda folder, seed: gpt2(folder, seed, [[token] for token in (2, 7, 31)]),
    "GPT-2, prompts": lambda folder, seed: gpt2(folder, seed, TEXTS),
    "T5": lambda folder, seed: encoder_decoder(folder, seed, "T5"),
    "BART": lambda folder, seed: encoder_decoder(folder, seed, "Bart"),
}


@cache
def writer(kind: str, seed: int) -> Writer:
    """A model of this kind, whose captions end at different lengths."""
    with TemporaryDirectory() as folder:
        return ending(KINDS[kind](Path(folder) / "reference", seed))


def phrase(found: list[list[list[int]]], length: int) -> str:
    """The first tokens of the first caption that has so many, as a text."""
    captions = [caption for captions in found for caption in captions if len(caption) > length]
    return " ".join(map(str, captions[0][:length]))


def same(writer: Writer, config: GenerationConfig) -> bool:
    """Says whether both write the same captions, ranked in the same way by the same scores."""
    expected, found = theirs(writer, config), ours(writer, config)
    if config.beams > 1 and config.repetition_penalty == 1.0:  # scores of mm are without penalties
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    return found.tokens == expected.tokens


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_those_of_the_reference(kind: str, search: str, seed: int) -> None:
    assert same(writer(kind, seed), SEARCHES[search])


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_these_models_vary(kind: str) -> None:
    written = [theirs(writer(kind, seed), THREE).tokens for seed in SEEDS]
    best = [captions[0] for found in written for captions in found]
    assert len({len(caption) for caption in best}) > 2 and LONGEST in map(len, best)
    assert len(set(map(tuple, best))) > len(best) / 2 and len({token for caption in best for token in caption}) > 9


def uneven(seed: int, config: GenerationConfig) -> Writer:
    """Prompts of different lengths, padded with a token that captions have too."""
    model = writer("GPT-2, prompts", seed)._replace(prompts=UNEVEN)
    return model._replace(fill=theirs(model, config).tokens[1][0][0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("search", SEARCHES)
def test_prompts_of_different_lengths(search: str, seed: int) -> None:
    config = SEARCHES[search]
    model = uneven(seed, config)
    assert ours(model, config).tokens == [theirs(alone(model, i), config).tokens[0] for i in range(len(UNEVEN))]
    assert config.no_repeat_ngram or same(model, config)


@pytest.mark.parametrize("search", ["greedy, no n-gram twice", "beam 4, no n-gram twice"])
def test_padding_is_no_ngram(search: str) -> None:
    """In the reference it is, so that what it writes behind a padded prompt isn't what it writes behind that prompt."""
    config = SEARCHES[search]
    models = [uneven(seed, config) for seed in SEEDS]
    assert any(ours(model, config).tokens != theirs(model, config).tokens for model in models)


@pytest.mark.parametrize("config", [FREE, THREE], ids=["greedy", "beam"])
@pytest.mark.parametrize("kind", ["BLIP", "BLIP, prompt", "GPT-2, prompts", "T5"])
def test_forbidden_phrases(kind: str, config: GenerationConfig) -> None:
    for seed in SEEDS:
        model, forbidden = writer(kind, seed), ()
        for length in (3, 2, 1):
            found = theirs(model, replace(config, forbidden=forbidden)).tokens
            forbidden = (*forbidden, phrase(found, length))
            assert same(model, replace(config, forbidden=forbidden))
        left = ours(model, replace(config, forbidden=forbidden)).tokens
        assert not any(
            f" {part} " in f" {' '.join(map(str, row))} " for part in forbidden for rows in left for row in rows
        )


@pytest.mark.parametrize("config", [FREE, THREE], ids=["greedy", "beam"])
def test_an_end_token_within_a_prompt_ends_nothing(config: GenerationConfig) -> None:
    for seed in SEEDS:
        model = writer("GPT-2, prompts", seed)
        prompts = [[first, model.end, third, model.end] for first, _, third, _ in model.prompts]
        assert same(model._replace(prompts=prompts), config)
