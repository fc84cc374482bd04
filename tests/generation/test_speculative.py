from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_constrained import IMAGES, Words
from test_generate import END, FILL, PROMPTS, VOCABULARY, likelihood
from tiny import about, decoder
from torch import Tensor

from mm.errors import OptionError
from mm.generation import Generated, GenerationConfig, generate
from mm.generation.accepting import Drawn
from mm.generation.rules import Rules
from mm.generation.sampling import Sampler, invert
from mm.generation.speculative import Draft, Speculation, SpeculativeDecoding
from mm.models import Conditioning, TextTransformer

CONFIGS = {
    "plain": GenerationConfig(max_tokens=20),
    "one at a time": GenerationConfig(max_tokens=20, draft_tokens=1),
    "many at a time": GenerationConfig(max_tokens=20, draft_tokens=9),
    "short": GenerationConfig(max_tokens=2, min_tokens=0),
    "rules": GenerationConfig(
        max_tokens=20,
        min_tokens=9,
        repetition_penalty=1.4,
        no_repeat_ngram=2,
        forbidden=("w20", "w30 w8", "w36 w2", "w15 w15"),
        draft_tokens=3,
    ),
    "stop": GenerationConfig(max_tokens=20, min_tokens=6, stop=("w1", "w30 w2")),
}
NOT_WARPED: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0}
WARPED: dict[str, Any] = {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.02}


def near(model: TextTransformer, size: float = 0.05) -> TextTransformer:
    """A model that mostly agrees with another one."""
    other = decoder(VOCABULARY, END)
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(size * weight.std(correction=0) * torch.randn(weight.shape, generator=generator))
    return other


def run(
    model: TextTransformer,
    config: GenerationConfig,
    draft: TextTransformer | None,
    which: Sequence[int] = range(len(PROMPTS)),
    cached: bool = True,
) -> list[Generated]:
    images, prompts = IMAGES[list(which)], [PROMPTS[i] for i in which]
    seeds = [100 + i for i in which]
    guess = None if draft is None else Draft(draft, about(draft, images))
    if draft is None:
        config = replace(config, draft_tokens=4)
    ids: dict[str, Any] = {"end": END, "fill": FILL}
    seen = about(model, images)
    return generate(model, seen, prompts, config, **ids, text=Words(), seeds=seeds, draft=guess, cached=cached)


def tokens(captions: list[Generated]) -> list[list[int]]:
    return [caption.tokens for caption in captions]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_greedy_search_is_the_same_with_any_draft(config: GenerationConfig, seed: int) -> None:
    model = decoder(VOCABULARY, END, seed)
    alone = run(model, config, None)
    for draft in (near(model), decoder(VOCABULARY, END, 9), model):
        for cached in (True, False):
            guided = run(model, config, draft, cached=cached)
            assert tokens(guided) == tokens(alone)
            for one, other in zip(guided, alone, strict=True):
                assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
                assert one.ended == other.ended


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_samples_depend_on_an_image_and_its_seed_alone(config: GenerationConfig) -> None:
    config = replace(config, strategy="sample", **WARPED)
    everything = range(len(PROMPTS))
    for seed in range(2):
        model = decoder(VOCABULARY, END, seed)
        draft = near(model, 0.2)
        together = run(model, config, draft)
        assert tokens(together) == [tokens(run(model, config, draft, [i]))[0] for i in everything]
        assert tokens(together) == tokens(run(model, config, draft, everything[::-1]))[::-1]
        assert tokens(together) == tokens(run(model, config, draft, cached=False))
        if config.max_tokens > 2:
            assert tokens(together) != tokens(run(model, replace(config, strategy="greedy", **NOT_WARPED), draft))
        for number, caption in enumerate(together):
            prompt = PROMPTS[number]
            new = [*caption.tokens[len(prompt) - 1 :], *([END] if caption.ended else [])]
            expected = likelihood(model, IMAGES[number], prompt, new).tolist()
            assert caption.log_probabilities == pytest.approx(expected, abs=1e-4)


SMALL, LAST, DRAWS = 5, 2, 6000  # tokens of a vocabulary, its end, and captions drawn
DISTRIBUTIONS = {
    "plain": GenerationConfig(strategy="sample", max_tokens=4, min_tokens=0, draft_tokens=2),
    "warped": GenerationConfig(strategy="sample", max_tokens=3, temperature=1.7, top_k=4, top_p=0.9, min_p=0.05),
    "rules": GenerationConfig(
        strategy="sample", max_tokens=3, min_tokens=2, repetition_penalty=1.8, forbidden=("w3 w1",), draft_tokens=3
    ),
}


def exact(model: TextTransformer, image: Tensor, config: GenerationConfig) -> dict[tuple[int, ...], float]:
    """The probability of every sequence that sampling can write, found by going through all of them."""
    rules, sampler = Rules(config, end=LAST, forbidden=[[3, 1]] if config.forbidden else []), Sampler(config)
    context = model.keys_values(image[None])
    found: dict[tuple[int, ...], float] = {}
    open_: dict[tuple[int, ...], float] = {(): 1.0}
    for step in range(config.max_tokens):
        rows = torch.tensor([[LAST, *new] for new in open_])
        logits = model.logits(model(rows, context=context.expand(len(rows))))[:, None, -1]
        chances = sampler.probabilities(rules(logits, rows[:, None], step))[:, 0].tolist()
        grown = {
            (*new, token): chance * more
            for (new, chance), row in zip(open_.items(), chances, strict=True)
            for token, more in enumerate(row)
        }
        open_ = {new: chance for new, chance in grown.items() if new[-1] != LAST and step + 1 < config.max_tokens}
        found |= {new: chance for new, chance in grown.items() if new not in open_}
    return found


def misfit(config: GenerationConfig) -> tuple[float, float]:
    """The chi-squared statistic of drawn captions against their exact distribution; and what 1 in 1,000 exceeds."""
    model, draft = decoder(SMALL, LAST, 1), decoder(SMALL, LAST, 4)
    image = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        chances = exact(model, image[0], config)
    assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
    rows = torch.zeros(DRAWS, dtype=torch.int64)
    seen, guess = about(model, image).of(rows), Draft(draft, about(draft, image).of(rows))
    ids: dict[str, Any] = {"end": LAST, "fill": LAST, "text": Words(special=[LAST])}
    drawn = generate(model, seen, [[LAST]] * DRAWS, config, **ids, seeds=range(DRAWS), draft=guess)
    counts = Counter((*caption.tokens, *([LAST] if caption.ended else [])) for caption in drawn)
    assert all(chances[new] > 0 for new in counts)
    rare = {new for new, chance in chances.items() if DRAWS * chance < 5}
    cells = [(counts[new], DRAWS * chance) for new, chance in chances.items() if new not in rare]
    cells.append((sum(counts[new] for new in rare), DRAWS * sum(chances[new] for new in rare)))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells if expected > 1e-3)
    free = len([1 for _, expected in cells if expected > 1e-3]) - 1
    assert free > 8
    limit = free * (1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5) ** 3  # Wilson and Hilferty
    return statistic, limit


@pytest.mark.parametrize("config", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_samples_have_exactly_the_distribution_of_the_model(config: GenerationConfig) -> None:
    statistic, limit = misfit(config)
    assert statistic < limit


VERIFY, NUMBERS = Drawn.verify, Drawn._numbers


def accept_all(self: Drawn, scores: Tensor, proposed: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    tokens, accepted = VERIFY(self, scores, proposed, places)
    return torch.cat([proposed, tokens[:, -1:]], 1), torch.ones_like(accepted)


def replace_by_any(self: Drawn, scores: Tensor, proposed: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    tokens, accepted = VERIFY(self, scores, proposed, places)
    drawn = invert(self.sampler.probabilities(scores), NUMBERS(self, 2, places))[:, :-1]
    return torch.cat([torch.where(accepted, proposed, drawn), tokens[:, -1:]], 1), accepted


def one_stream(self: Drawn, stream: int, places: Tensor) -> Tensor:
    return NUMBERS(self, 0, places)


@pytest.mark.parametrize(
    ("name", "wrong"), [("verify", accept_all), ("verify", replace_by_any), ("_numbers", one_stream)]
)
def test_a_wrong_rule_of_acceptance_has_another_distribution(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: object
) -> None:
    monkeypatch.setattr(Drawn, name, wrong)
    statistic, limit = misfit(DISTRIBUTIONS["plain"])
    assert statistic > 2 * limit


def test_what_was_guessed_is_counted() -> None:
    model, config = decoder(VOCABULARY, END, 0), GenerationConfig(max_tokens=20, min_tokens=12)
    assert all(caption.speculation is None for caption in run(model, config, None))
    perfect, good, bad = (run(model, config, draft) for draft in (model, near(model), decoder(VOCABULARY, END, 9)))
    for caption in perfect:
        whole, rest = divmod(caption.generated - 1, config.draft_tokens + 1)
        assert caption.speculation == Speculation(whole + (rest > 0), caption.generated - 1 - whole)
    accepted = []
    for captions in (perfect, good, bad):
        known = [caption.speculation for caption in captions]
        for caption, guess in zip(captions, known, strict=True):
            assert guess is not None and guess.accepted + guess.rounds + 1 >= caption.generated > guess.accepted
        accepted.append(sum(guess.accepted for guess in known if guess) / sum(guess.rounds for guess in known if guess))
    assert config.draft_tokens > accepted[0] > accepted[1] > accepted[2]


@pytest.mark.parametrize("cached", [True, False])
def test_a_draft_goes_on_from_what_was_accepted(monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    model, draft = decoder(VOCABULARY, END, 0), near(decoder(VOCABULARY, END, 0), 0.15)
    asked: list[tuple[list[int], list[int]]] = []
    propose = SpeculativeDecoding._propose

    def spy(decoding: SpeculativeDecoding, unread: Tensor) -> Tensor:
        rows = decoding.rows
        row = rows.tokens[0, : rows.start + int(rows.lengths)].tolist()
        proposed = propose(decoding, unread)
        asked.append((row, proposed[0].tolist()))
        return proposed

    monkeypatch.setattr(SpeculativeDecoding, "_propose", spy)
    config = GenerationConfig(max_tokens=20, min_tokens=0, draft_tokens=3)
    for image in range(len(PROMPTS)):
        run(model, config, draft, [image], cached)
        assert asked
        for row, proposed in asked:
            seen = about(draft, IMAGES[[image]])
            plain = GenerationConfig(max_tokens=3, min_tokens=0)
            (alone,) = generate(draft, seen, [row], plain, end=END, fill=FILL)
            new = [*alone.tokens[len(row) - 1 :], *([END] if alone.ended else [])]
            assert proposed[: len(new)] == new
        asked.clear()


@pytest.mark.parametrize("cached", [True, False])
def test_images_in_front_of_the_text(cached: bool) -> None:
    model, draft = decoder(VOCABULARY, END, 0), decoder(VOCABULARY, END, 1)
    images = torch.randn(len(PROMPTS), 5, 32, generator=torch.Generator().manual_seed(1))
    config = GenerationConfig(max_tokens=16, repetition_penalty=1.3)
    ids: dict[str, Any] = {"end": END, "fill": FILL}
    seen = Conditioning(len(images), prefix=images)
    alone = generate(model, seen, PROMPTS, config, **ids)
    guess = Draft(draft, Conditioning(len(images), prefix=images[:, :2]))
    for one in (guess, Draft(model, seen)):
        assert tokens(generate(model, seen, PROMPTS, config, **ids, draft=one, cached=cached)) == tokens(alone)


def test_captions_may_fill_the_model() -> None:
    model = decoder(VOCABULARY, END, 0)
    prompts = [[5, 6, 7], [5]] * 3
    for options in ({}, {"strategy": "sample"}):
        config = GenerationConfig(max_tokens=38, min_tokens=38, draft_tokens=6, **options)  # type: ignore[arg-type]
        seen, guess = about(model, IMAGES), Draft(model, about(model, IMAGES))
        found = generate(model, seen, prompts, config, end=END, fill=FILL, seeds=range(6), draft=guess)
        assert [caption.generated for caption in found] == [38] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 3}, "draft doesn't act in strategy beam; leave it out, or choose greedy or sample"),
        ({"strategy": "contrastive"}, "draft doesn't act in strategy contrastive"),
        ({"strategy": "sample", "captions": 2}, "draft and captions 2 can't be combined"),
        ({"strategy": "sample", "best_of": 3}, "draft and best_of 3 can't be combined"),
    ],
)
def test_options_that_do_not_go_with_a_draft_are_refused(options: dict[str, object], message: str) -> None:
    model = decoder(VOCABULARY, END)
    with pytest.raises(OptionError, match=message):
        run(model, GenerationConfig(**options), model)  # type: ignore[arg-type]


def test_drafts_that_do_not_go_with_a_model_are_refused() -> None:
    model, image = decoder(VOCABULARY, END), torch.zeros(1, 9, 24)
    config = GenerationConfig(max_tokens=38)
    ids: dict[str, Any] = {"end": END, "fill": FILL}
    seen = about(model, image)
    with pytest.raises(OptionError, match="draft has a vocabulary of 30 tokens, the model one of 40"):
        generate(model, seen, [[5]], config, **ids, draft=Draft(decoder(30, END), seen))
    draft = decoder(VOCABULARY, END)
    draft.max_tokens = 30
    with pytest.raises(OptionError, match=r"max_tokens 38 and a prompt of 0 tokens .* the 30 tokens of the draft"):
        generate(model, seen, [[5]], config, **ids, draft=Draft(draft, seen))
    with pytest.raises(OptionError, match="draft_tokens 7 acts with a draft alone"):
        generate(model, seen, [[5]], GenerationConfig(draft_tokens=7), **ids)
