from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny import about, decoder
from torch.nn.functional import cosine_similarity

from mm.errors import OptionError
from mm.generation import Generated, GenerationConfig, generate
from mm.models import Conditioning, TextTransformer

VOCABULARY, END, FILL = 40, 3, 0
PROMPTS = [[5], [6, 10, 11, 12], [5, 20], [6], [5, 10, 11, 12, 13, 14, 15], [5, 21]]
EVERYTHING = list(range(len(PROMPTS)))
CONTRAST = GenerationConfig(strategy="contrastive", max_tokens=14)
CONFIGS = {
    "4 candidates": CONTRAST,
    "2 candidates": replace(CONTRAST, top_k=2, min_tokens=6),
    "9 candidates, high penalty": replace(CONTRAST, top_k=9, degeneration_penalty=0.9),
    "likeness alone": replace(CONTRAST, degeneration_penalty=1.0),
    "rules": replace(CONTRAST, top_k=6, degeneration_penalty=0.4, min_tokens=5, repetition_penalty=1.4),
}


class Letters:
    """A tokenizer that writes every token as one character."""

    open_tokens: frozenset[int] = frozenset()
    open_characters: frozenset[str] = frozenset()

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(chr(ord("A") + token) for token in row) for row in rows]

    def spellings(self, phrase: str) -> list[list[int]]:
        return [[ord(letter) - ord("A") for letter in phrase]]


def pictures() -> torch.Tensor:
    return torch.randn(len(PROMPTS), 9, 24, generator=torch.Generator().manual_seed(7))


def run(
    model: TextTransformer,
    config: GenerationConfig,
    which: list[int] = EVERYTHING,
    never: Sequence[int] = (),
    cached: bool = True,
) -> list[Generated]:
    prompts = [PROMPTS[i] for i in which]
    images = about(model, pictures()[which])
    return generate(model, images, prompts, config, end=END, fill=FILL, never=never, text=Letters(), cached=cached)


def tokens(captions: list[Generated]) -> list[list[int]]:
    return [caption.tokens for caption in captions]


@torch.inference_mode()
def reference(
    model: TextTransformer, number: int, config: GenerationConfig, never: Sequence[int] = ()
) -> tuple[list[int], float]:
    """Contrastive search of one caption, one whole pass for each candidate; gives tokens and log-probability."""
    row, total = list(PROMPTS[number]), 0.0
    context = model.keys_values(pictures()[number][None])
    for step in range(config.max_tokens):
        logits = model.logits(model(torch.tensor([row]), context=context))[0, -1]
        scores = logits.clone()
        for token in set(row):
            scores[token] *= config.repetition_penalty if scores[token] < 0 else 1 / config.repetition_penalty
        for token in [*never, *([END] if step < config.min_tokens else [])]:
            scores[token] = -torch.inf
        found = []
        for token in scores.argsort(descending=True)[: config.candidates].tolist():
            *before, state = model(torch.tensor([[*row, token]]), context=context)[0]
            likeness = max(float(cosine_similarity(state, other, dim=0)) for other in before)
            share = float(scores.softmax(0)[token])
            found.append(((1 - config.degeneration_penalty) * share - config.degeneration_penalty * likeness, token))
        best = max(found)[1]
        total += float(logits.log_softmax(0)[best])
        row.append(best)
        if best == END:
            break
    return [token for token in row[1:] if token != END], total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_captions_are_those_of_a_plain_search(config: GenerationConfig, seed: int) -> None:
    model = decoder(VOCABULARY, END, seed)
    for number, caption in enumerate(run(model, config)):
        expected, total = reference(model, number, config)
        assert caption.tokens == expected
        assert caption.score == pytest.approx(total, abs=1e-3)


def test_what_is_forbidden_is_not_taken_for_being_different() -> None:
    model = decoder(VOCABULARY, END)
    config = replace(CONTRAST, top_k=VOCABULARY, degeneration_penalty=1.0, min_tokens=14)
    free = {token for row in tokens(run(model, config)) for token in row[6:]}
    never = sorted(free)[:5]
    assert len(never) == 5
    for number, caption in enumerate(run(model, config, never=never)):
        new = caption.tokens[len(PROMPTS[number]) - 1 :]
        assert len(new) == 14 and not {*never, END} & set(new)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_equals_its_parts(config: GenerationConfig) -> None:
    model = decoder(VOCABULARY, END, 3)
    together = run(model, config)
    assert tokens(together) == [run(model, config, [i])[0].tokens for i in EVERYTHING]
    assert tokens(run(model, config, EVERYTHING[::-1])) == tokens(together)[::-1]
    assert tokens(run(model, config, cached=False)) == tokens(together)


def test_captions_of_these_models_differ_in_length_and_from_greedy_ones() -> None:
    models = [decoder(VOCABULARY, END, seed) for seed in range(3)]
    config = replace(CONTRAST, max_tokens=8)
    found = [caption for model in models for caption in run(model, config)]
    assert len({caption.generated for caption in found}) > 3 and {caption.ended for caption in found} == {True, False}
    greedy = [caption for model in models for caption in run(model, GenerationConfig(max_tokens=8))]
    assert sum(one.tokens != other.tokens for one, other in zip(found, greedy, strict=True)) > len(found) / 2


@pytest.mark.parametrize("candidates", [1, 3, VOCABULARY, 100])
def test_without_a_penalty_it_is_greedy_search(candidates: int) -> None:
    rules = {"max_tokens": 14, "min_tokens": 4, "no_repeat_ngram": 2}
    for seed in range(3):
        model = decoder(VOCABULARY, END, seed)
        for repetition in (1.0, 1.4):
            greedy = GenerationConfig(**rules, repetition_penalty=repetition)
            config = replace(greedy, strategy="contrastive", top_k=candidates, degeneration_penalty=0.0)
            assert tokens(run(model, config)) == tokens(run(model, greedy))
            assert tokens(run(model, replace(config, top_k=1, degeneration_penalty=1.0))) == tokens(run(model, greedy))


def test_an_image_in_front_of_the_text_is_seen() -> None:
    model = decoder(VOCABULARY, END, 1)
    images = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2))
    prompts = [[5], [6, 10, 11], [5, 20]]

    def found(which: list[int], cached: bool = True) -> list[list[int]]:
        seen = Conditioning(len(which), context=model.keys_values(pictures()[which]), prefix=images[which])
        given = [prompts[i] for i in which]
        return tokens(generate(model, seen, given, CONTRAST, end=END, fill=FILL, cached=cached))

    together = found([0, 1, 2])
    assert together == found([0, 1, 2], cached=False) == [found([i])[0] for i in range(3)]


def test_stop_strings_end_captions() -> None:
    model, config = decoder(VOCABULARY, END, 1), replace(CONTRAST, min_tokens=14)
    free = run(model, config)
    longest = max(free[0].tokens[5:8])
    stop = Letters().decode([[longest]])[0]
    for number, (caption, whole) in enumerate(zip(run(model, replace(config, stop=stop)), free, strict=True)):
        ahead = len(PROMPTS[number]) - 1
        new = whole.tokens[ahead:]
        expected = new[: new.index(longest) + 1] if longest in new else new
        assert caption.tokens[ahead:] == expected and not caption.ended
        assert caption.log_probabilities == pytest.approx(whole.log_probabilities[: len(expected)], abs=1e-4)


def test_the_last_token_needs_a_position_too() -> None:
    model = decoder(VOCABULARY, END)
    most = model.max_tokens - 2
    config = replace(CONTRAST, max_tokens=most, min_tokens=most)
    image = about(model, pictures()[:1])
    (caption,) = generate(model, image, [[5, 20]], config, end=END, fill=FILL)
    assert caption.generated == most
    with pytest.raises(OptionError, match=f"max_tokens {most + 1} and a prompt of 1 tokens .* at most {most}"):
        generate(model, image, [[5, 20]], replace(config, max_tokens=most + 1), end=END, fill=FILL)
