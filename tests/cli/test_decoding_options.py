from __future__ import annotations

from dataclasses import fields

import pytest

from mm.cli import common, decoding
from mm.errors import OptionError
from mm.generation import GenerationConfig
from mm.pipeline import TRANSLATION

PHRASES = {"forbidden": ("a dog", "cat"), "required": ("ball",), "stop": (".", ", and")}
GIVEN = {
    "beam": {"beams": 6, "groups": 3, "diversity": 0.9, "captions": 2, "length_penalty": 0.6, "no_repeat_ngram": 3},
    "sample": {
        "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": 5, "best_of": 4, "rank_by": "consensus"
    },
    "contrastive": {"top_k": 6, "degeneration_penalty": 0.4, "min_tokens": 2, "max_tokens": 12},
    "greedy": {"draft_tokens": 6, "repetition_penalty": 1.3},
}  # fmt: skip


def parsed(*arguments: str, base: dict[str, object] | None = None) -> GenerationConfig:
    parser, base = common.Parser(prog="mm caption"), decoding.CAPTION if base is None else base
    decoding.add_generation(parser, base)
    return decoding.generation_config(parser.parse_args(list(arguments)), base)


def test_every_option_of_decoding_is_on_the_command_line() -> None:
    assert list(decoding.OPTIONS) == [field.name for field in fields(GenerationConfig)]


@pytest.mark.parametrize("strategy", GIVEN)
def test_options_reach_the_configuration(strategy: str) -> None:
    options = GIVEN[strategy]
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    expected = GenerationConfig(**{"strategy": strategy, "repetition_penalty": 1.2} | options)  # type: ignore[arg-type]
    assert parsed("--strategy", strategy, *arguments) == expected


def test_phrases_are_given_one_by_one() -> None:
    arguments = [text for name, phrases in PHRASES.items() for phrase in phrases for text in (f"--{name}", phrase)]
    config = parsed(*arguments)
    assert {name: getattr(config, name) for name in PHRASES} == PHRASES


def test_the_beams_of_a_command_are_for_beam_search_alone() -> None:
    assert parsed().beams == parsed("--strategy", "beam").beams == 3
    assert parsed("--strategy", "greedy").beams == 1
    assert parsed(base=decoding.TRANSLATION) == TRANSLATION


def test_an_option_that_a_strategy_can_t_heed_is_refused() -> None:
    with pytest.raises(OptionError, match=r"beams 4 doesn't act in strategy sample"):
        parsed("--strategy", "sample", "--beams", "4")
