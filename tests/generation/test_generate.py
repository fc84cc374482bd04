from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tiny import about, decoder

from mm.errors import OptionError
from mm.generation import Generated, GenerationConfig, generate
from mm.generation.rules import penalize_repetition
from mm.models import TextTransformer

VOCABULARY, END, FILL = 40, 3, 0
PROMPTS = [[5], [6, 10, 11, 12], [5, 20], [6], [5, 10, 11, 12, 13, 14, 15], [5, 21]]
CONFIGS = {
    "greedy": GenerationConfig(max_tokens=20),
    "greedy, penalty": GenerationConfig(max_tokens=20, min_tokens=4, repetition_penalty=1.4),
    "beam 2": GenerationConfig(beams=2, max_tokens=20),
    "beam 3": GenerationConfig(beams=3, max_tokens=20, length_penalty=0.0),
    "beam 3, penalties": GenerationConfig(
        beams=3, max_tokens=20, min_tokens=4, length_penalty=1.6, repetition_penalty=1.4
    ),
    "beam 4, short": GenerationConfig(beams=4, max_tokens=20, length_penalty=-1.0),
}


def run(model: TextTransformer, config: GenerationConfig, which: list[int], cached: bool = True) -> list[Generated]:
    images = torch.randn(len(PROMPTS), 9, 24, generator=torch.Generator().manual_seed(7))
    prompts = [PROMPTS[i] for i in which]
    return generate(model, about(model, images[which]), prompts, config, end=END, fill=FILL, cached=cached)


def tokens(captions: list[Generated]) -> list[list[int]]:
    return [caption.tokens for caption in captions]


def likelihood(model: TextTransformer, image: torch.Tensor, prompt: list[int], new: list[int]) -> torch.Tensor:
    """The log-probabilities of new tokens, each from one pass over what precedes it."""
    whole = torch.tensor([[*prompt, *new]])
    with torch.inference_mode():
        hidden = model(whole, context=model.keys_values(image[None]))
        rows = model.logits(hidden)[0].log_softmax(-1)
    return torch.stack([rows[len(prompt) - 1 + i, token] for i, token in enumerate(new)])


@pytest.mark.parametrize("beams", [1, 3])
def test_lengths_act_in_both_strategies(beams: int) -> None:
    model, which = decoder(VOCABULARY, END, 2), list(range(len(PROMPTS)))
    free = run(model, GenerationConfig(beams=beams, max_tokens=20, min_tokens=0), which)
    early = min(len(caption.tokens) - len(PROMPTS[i]) + 1 for i, caption in enumerate(free))
    assert early < 12
    for lowest, highest in ((12, 20), (1, 4), (6, 6)):
        config = GenerationConfig(beams=beams, min_tokens=lowest, max_tokens=highest)
        for number, caption in enumerate(run(model, config, which)):
            assert lowest <= len(caption.tokens) - len(PROMPTS[number]) + 1 <= highest
            assert END not in caption.tokens and caption.tokens[: len(PROMPTS[number]) - 1] == PROMPTS[number][1:]
            assert caption.ended or caption.generated == highest


@pytest.mark.parametrize("beams", [1, 3])
def test_a_high_repetition_penalty_forbids_repetition(beams: int) -> None:
    model, which = decoder(VOCABULARY, END, 3), list(range(len(PROMPTS)))
    plain = GenerationConfig(beams=beams, max_tokens=20, min_tokens=15)
    penalized = replace(plain, repetition_penalty=1e6)

    def repeats(config: GenerationConfig) -> int:
        return sum(len(row) - len(set(row)) for row in tokens(run(model, config, which)))

    assert repeats(plain) > 0 and repeats(penalized) == 0
    prompted = run(model, penalized, [4])[0].tokens
    assert not set(prompted[len(PROMPTS[4]) - 1 :]) & set(PROMPTS[4])


@pytest.mark.parametrize("seed", range(6))
def test_more_beams_find_likelier_captions_than_greedy_search(seed: int) -> None:
    model, which = decoder(VOCABULARY, END, seed), list(range(len(PROMPTS)))
    greedy = run(model, GenerationConfig(max_tokens=12), which)
    for beams in (2, 3, 4):
        found = run(model, GenerationConfig(beams=beams, max_tokens=12, length_penalty=0.0), which)
        assert sum(caption.score for caption in found) >= sum(caption.score for caption in greedy) - 1e-3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.7, 2.0])
def test_beam_search_with_room_for_everything_is_exhaustive_search(seed: int, penalty: float) -> None:
    vocabulary, longest, end = 4, 3, 2
    model = decoder(vocabulary, end, seed)
    image = torch.randn(9, 24, generator=torch.Generator().manual_seed(seed))
    ranked = []
    for length in range(1, longest + 1):
        for new in itertools.product(range(vocabulary), repeat=length):
            whole = length == longest or new[-1] == end
            if whole and end not in new[:-1]:
                score = float(likelihood(model, image, [0], list(new)).sum())
                ranked.append((score / length**penalty, [token for token in new if token != end], score))
    config = GenerationConfig(beams=64, max_tokens=longest, length_penalty=penalty, min_tokens=0)
    found = generate(model, about(model, image[None]), [[0]], config, end=end, fill=0)[0]
    _, best, score = max(ranked)
    assert found.tokens == best and found.score == pytest.approx(score, abs=1e-4)


def test_length_penalty_favours_longer_captions() -> None:
    lengths = []
    for penalty in (-1.0, 0.0, 1.0, 2.0):
        config = GenerationConfig(beams=4, max_tokens=20, length_penalty=penalty)
        found = [run(decoder(VOCABULARY, END, seed), config, list(range(len(PROMPTS)))) for seed in range(3)]
        lengths.append(sum(caption.generated for captions in found for caption in captions))
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_penalty_divides_what_is_above_zero_and_multiplies_what_is_below() -> None:
    scores = torch.tensor([[2.0, -2.0, 4.0, -4.0]])
    seen, real = torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]])
    assert penalize_repetition(scores, seen, real, 2.0).tolist() == [[1.0, -4.0, 4.0, -4.0]]
    assert penalize_repetition(scores, seen, None, 0.5).tolist() == [[4.0, -1.0, 8.0, -4.0]]
    assert torch.equal(penalize_repetition(scores, seen, real, 1.0), scores)


def test_wrong_use_is_refused_before_any_work() -> None:
    model = decoder(VOCABULARY, END)
    image = about(model, torch.zeros(1, 9, 24))
    with pytest.raises(OptionError, match=r"max_tokens 39 and a prompt of 2 tokens .* at most 38"):
        generate(model, image, [[1, 4, 5]], GenerationConfig(max_tokens=39), end=END, fill=FILL)
    generate(model, image, [[1, 4, 5]], GenerationConfig(max_tokens=38), end=END, fill=FILL)
    with pytest.raises(ValueError, match="1 prompts for 2 images"):
        generate(model, about(model, torch.zeros(2, 9, 24)), [[1]], GenerationConfig(), end=END, fill=FILL)
    with pytest.raises(ValueError, match="language token"):
        generate(model, about(model, torch.zeros(1, 9, 24)), [[]], GenerationConfig(), end=END, fill=FILL)
    assert generate(model, about(model, torch.zeros(0, 9, 24)), [], GenerationConfig(), end=END, fill=FILL) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be between 1 and 1024, not 0"),
        ({"beams": 2.5}, "beams must be a whole number, not 2.5"),
        ({"seed": True}, "seed must be a whole number, not True"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens 9 must be between 0 and max_tokens 8"),
        ({"min_tokens": -1}, "min_tokens -1 must be between"),
        ({"length_penalty": float("nan")}, "length_penalty must be between -10 and 10"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a number above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be a number above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GenerationConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tokens_that_are_never_chosen(config: GenerationConfig) -> None:
    model, image = decoder(VOCABULARY, END), torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(7))
    free = generate(model, about(model, image), [[5]], config, end=END, fill=FILL)[0].tokens
    never = sorted(set(free))[:3]
    (barred,) = generate(model, about(model, image), [[5]], config, end=END, fill=FILL, never=never)
    assert barred.tokens and not set(barred.tokens) & set(never)
