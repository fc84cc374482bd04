"""The options of decoding, for every command that writes text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mm.generation import GenerationConfig

CAPTION = {"beams": 3, "repetition_penalty": 1.2}
ANSWER = {"beams": 3, "max_tokens": 10}
TRANSLATION = {"beams": 3, "max_tokens": 60}


class Option(NamedTuple):
    """An option of ``GenerationConfig`` on the command line; where it isn't given, the dataclass's default holds."""

    type: Any
    help: str
    several: bool = False


OPTIONS = {
    "strategy": Option(str, "greedy, beam, sample or contrastive; beam search where there are several beams"),
    "captions": Option(int, "texts for each image, the best first; 1"),
    "min_tokens": Option(int, "tokens a text has at least; 1"),
    "max_tokens": Option(int, "tokens a text has at most; 30"),
    "repetition_penalty": Option(float, "above 1, words repeat less; 1.0"),
    "no_repeat_ngram": Option(int, "so many tokens in a row never come twice; 0 for no such rule"),
    "forbidden": Option(str, "words or phrases that never appear", several=True),
    "stop": Option(str, "texts that a text ends before", several=True),
    "beams": Option(int, "sequences kept at each step of beam search; 1 for greedy search"),
    "length_penalty": Option(float, "above 0, beam search ranks longer texts higher; 1.0"),
    "required": Option(str, "words or phrases that must appear, with beam search", several=True),
    "groups": Option(int, "groups of beams that are told to differ; 1"),
    "diversity": Option(float, "how much groups of beams are told to differ; 0.5"),
    "temperature": Option(float, "of sampling: below 1, likely tokens are favoured; 1.0"),
    "top_k": Option(int, "sample among so many tokens only; contrastive search looks at 4"),
    "top_p": Option(float, "sample among the likeliest tokens of this probability together; 1.0"),
    "min_p": Option(float, "sample among tokens with this share of the likeliest one's probability; 0.0"),
    "seed": Option(int, "of sampling; an image's draws depend on it and on the image alone; 0"),
    "degeneration_penalty": Option(float, "how much contrastive search shuns what is like what is there; 0.6"),
    "best_of": Option(int, "texts found for each image, of which the best are given"),
    "rank_by": Option(str, "what the best are: likelihood, consensus, match or similarity; likelihood"),
    "draft_tokens": Option(int, "tokens that a draft model proposes at a time; 4"),
}


def add_generation(parser: ArgumentParser, base: dict[str, Any]) -> None:
    """Adds the options of decoding.

    Args:
        parser: gets them.
        base: what the command sets where the user doesn't, as ``generation_config`` is told too.
    """
    group = parser.add_argument_group("decoding")
    for name, option in OPTIONS.items():
        text = option.help
        if name in base:
            text = f"{text.rpartition(';')[0] or text}; {base[name]} here"
        if option.several:
            group.add_argument(f"--{name}", action="append", default=None, metavar="TEXT", help=f"{text}; repeatable")
        else:
            group.add_argument(f"--{name}", type=option.type | None, default=None, help=text)


def generation_config(options: Namespace, base: dict[str, Any]) -> GenerationConfig:
    """Makes the decoding options of what was parsed.

    Args:
        options: what ``add_generation``'s options were set to; None where they weren't.
        base: what the command sets where the user doesn't. Its beams are for beam search alone.

    Raises:
        OptionError: one is out of range, two contradict each other, or the strategy can't heed one.
    """
    from mm.generation import GenerationConfig

    given = {name: options[name] for name in OPTIONS if options[name] is not None}
    base = {name: value for name, value in base.items() if name != "beams" or given.get("strategy") in (None, "beam")}
    return GenerationConfig(**(base | given))
