from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import about, decoder
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mm.generation import Generated, GenerationConfig, generate, generate_all
from mm.generation.sampling import Sampler, content_seeds, draw, invert
from mm.models import TextTransformer

VOCABULARY, END, FILL = 40, 3, 0
PROMPTS = [[5], [6, 10, 11, 12], [5, 20], [6], [5, 10, 11, 12, 13, 14, 15], [5, 21]]
SAMPLE = GenerationConfig(strategy="sample", max_tokens=12)
CUTS = {
    "all": SAMPLE,
    "temperature": replace(SAMPLE, temperature=0.6),
    "top-k": replace(SAMPLE, top_k=7),
    "top-k of more than there are": replace(SAMPLE, top_k=100),
    "top-p": replace(SAMPLE, top_p=0.8),
    "top-p of one": replace(SAMPLE, top_p=1e-9),
    "min-p": replace(SAMPLE, min_p=0.2),
    "min-p of one": replace(SAMPLE, min_p=1.0),
    "together": replace(SAMPLE, temperature=1.7, top_k=9, top_p=0.9, min_p=0.1),
}


def run(config: GenerationConfig, which: list[int], cached: bool = True) -> list[list[Generated]]:
    model = decoder(VOCABULARY, END, 1)
    images = torch.randn(len(PROMPTS), 9, 24, generator=torch.Generator().manual_seed(7))[which]
    prompts, seeds = [PROMPTS[i] for i in which], [100 + i for i in which]
    return generate_all(model, about(model, images), prompts, config, end=END, fill=FILL, seeds=seeds, cached=cached)


def tokens(found: list[list[Generated]]) -> list[list[list[int]]]:
    return [[caption.tokens for caption in captions] for captions in found]


def warped(scores: torch.Tensor, config: GenerationConfig) -> torch.Tensor:
    """What transformers leaves of (R, V) scores."""
    ids = torch.zeros(len(scores), 1, dtype=torch.int64)
    warpers = [TemperatureLogitsWarper(config.temperature)]
    warpers += [] if config.top_k is None else [TopKLogitsWarper(config.top_k)]
    warpers += [TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []
    warpers += [MinPLogitsWarper(config.min_p)] if config.min_p > 0 else []
    for warper in warpers:
        scores = warper(ids, scores)
    return scores


@pytest.mark.parametrize("config", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("ties", [False, True])
def test_tokens_are_left_as_transformers_leaves_them(config: GenerationConfig, ties: bool) -> None:
    scores = torch.randn(4, 25, 50, generator=torch.Generator().manual_seed(0)) * 2
    scores = scores.round() if ties else scores
    scores[:, ::3, 10:20] = -torch.inf
    expected = warped(scores.flatten(0, 1), config).view_as(scores).softmax(-1)
    found = Sampler(config).probabilities(scores)
    if ties and config.top_p < 1:  # which of equal tokens stay is up to the order in which they are sorted
        found, expected = found.sort().values, expected.sort().values
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(found > 0, expected > 0)


def test_a_cut_leaves_something_out_and_something_in() -> None:
    scores = torch.randn(1, 20, 50, generator=torch.Generator().manual_seed(0)) * 2
    left = {name: (Sampler(config).probabilities(scores) > 0).sum(-1) for name, config in CUTS.items()}
    assert bool((left["all"] == 50).all()) and bool((left["top-k"] == 7).all())
    for name in ("top-p", "min-p", "together"):
        assert 1 < left[name].float().mean() < 25
    for name in ("top-p of one", "min-p of one"):
        assert bool((left[name] == 1).all())


def test_draws_invert_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    noise = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1 - 2**-24])
    assert invert(probabilities.expand(7, -1), noise).tolist() == [1, 1, 3, 3, 3, 4, 4]


def test_what_is_impossible_is_never_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 1, 30000, generator=generator) * 3
    scores.masked_fill_(torch.rand(scores.shape, generator=generator) < 0.5, -torch.inf)
    scores[:, :, -9:] = -torch.inf
    sampler = Sampler(SAMPLE)
    for noise in (0.0, 0.5, 1 - 2**-24):
        drawn = sampler(scores, torch.full((200, 1), noise))
        assert bool((scores.gather(-1, drawn[..., None]) > -torch.inf).all())


def test_nothing_is_drawn_without_numbers() -> None:
    with pytest.raises(ValueError, match="needs numbers to draw with"):
        Sampler(SAMPLE)(torch.zeros(1, 1, 3), None)


def test_every_caption_has_numbers_of_its_own() -> None:
    cpu = torch.device("cpu")
    noise = draw([7, 8, 2**63 + 7, 2**32 + 7], 5, 20, cpu)
    assert noise.shape == (4, 5, 20) and noise.dtype == torch.float32
    assert 0 <= float(noise.min()) < 0.02 and 0.98 < float(noise.max()) < 1
    assert len(set(noise.flatten().tolist())) > 395
    assert torch.equal(draw([8], 2, 9, cpu), noise[1:2, :2, :9])
    assert torch.equal(draw([8, 7], 5, 20, cpu), noise[[1, 0]])


@pytest.mark.parametrize("config", CUTS.values(), ids=CUTS)
def test_a_batch_equals_its_parts(config: GenerationConfig) -> None:
    everything = list(range(len(PROMPTS)))
    config = replace(config, captions=3)
    together = tokens(run(config, everything))
    assert together == [tokens(run(config, [i]))[0] for i in everything]
    assert tokens(run(config, everything[::-1])) == together[::-1]
    assert tokens(run(config, everything, cached=False)) == together


def test_a_caption_depends_neither_on_how_many_are_found_nor_on_the_length_limit() -> None:
    many = run(replace(SAMPLE, captions=5), [0, 1, 2])
    assert len({tuple(caption.tokens) for captions in many for caption in captions}) > 10
    assert tokens(run(replace(SAMPLE, captions=2), [0, 1, 2])) == tokens([captions[:2] for captions in many])
    longer = run(replace(SAMPLE, captions=5, max_tokens=25), [0, 1, 2])
    for one, other in zip(itertools.chain(*many), itertools.chain(*longer), strict=True):
        assert one.ended or other.tokens[: len(one.tokens)] == one.tokens
        assert not one.ended or other.tokens == one.tokens


def test_seeds_make_the_difference() -> None:
    model = decoder(VOCABULARY, END, 1)
    image = about(model, torch.zeros(1, 9, 24))
    found = [generate(model, image, [[5]], SAMPLE, end=END, fill=FILL, seeds=[seed])[0] for seed in (1, 2, 3, 1)]
    assert found[0] == found[3] and len({tuple(caption.tokens) for caption in found}) == 3


@pytest.mark.parametrize("seeds", [None, [1]])
def test_every_image_needs_a_seed(seeds: list[int] | None) -> None:
    model = decoder(VOCABULARY, END)
    image = about(model, torch.zeros(2, 9, 24))
    with pytest.raises(ValueError, match=r"seeds for 2 images; strategy sample needs one for each"):
        generate(model, image, [[5], [6]], SAMPLE, end=END, fill=FILL, seeds=seeds)
    generate(model, image, [[5], [6]], GenerationConfig(), end=END, fill=FILL)


def likelihood(model: TextTransformer, image: torch.Tensor, prompt: list[int]) -> torch.Tensor:
    """The (V,) log-probabilities of the token behind a prompt, by one pass over it."""
    with torch.inference_mode():
        hidden = model(torch.tensor([prompt]), context=model.keys_values(image[None]))
        return model.logits(hidden)[0, -1].log_softmax(-1)


def test_log_probabilities_are_those_of_the_model() -> None:
    config = replace(CUTS["together"], captions=2, repetition_penalty=1.3, min_tokens=4)
    model = decoder(VOCABULARY, END, 1)
    images = torch.randn(len(PROMPTS), 9, 24, generator=torch.Generator().manual_seed(7))
    for number, captions in enumerate(run(config, list(range(len(PROMPTS))))):
        for caption in captions:
            row = [PROMPTS[number][0], *caption.tokens, *([END] if caption.ended else [])]
            for place, found in enumerate(reversed(caption.log_probabilities), 1):
                expected = likelihood(model, images[number], row[:-place])[row[-place]]
                assert found == pytest.approx(float(expected), abs=1e-4)


def distribution(model: TextTransformer, image: torch.Tensor, config: GenerationConfig) -> dict[tuple[int, ...], float]:
    """The probability of every caption of up to two tokens, the end being token 2."""
    probabilities: dict[tuple[int, ...], float] = {}
    for first, p in enumerate(warped(likelihood(model, image, [0])[None], config)[0].softmax(-1).tolist()):
        if first == 2:
            probabilities[()] = p
            continue
        then = warped(likelihood(model, image, [0, first])[None], config)[0].softmax(-1).tolist()
        for second, q in enumerate(then):
            caption = (first,) if second == 2 else (first, second)
            probabilities[caption] = probabilities.get(caption, 0.0) + p * q
    return probabilities


def chi_square(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; captions expected fewer than 10 times count as one."""
    total = counts.total()
    often = [caption for caption, p in expected.items() if p * total >= 10]
    observed = np.array([counts[caption] for caption in often])
    wanted = np.array([expected[caption] * total for caption in often])
    observed, wanted = np.append(observed, total - observed.sum()), np.append(wanted, total - wanted.sum())
    return float(((observed - wanted) ** 2 / wanted.clip(1)).sum()), len(often)


@pytest.mark.parametrize("name", ["all", "temperature", "together"])
def test_captions_are_drawn_from_the_distribution_of_the_model(name: str) -> None:
    config = replace(CUTS[name], top_k=4 if name == "together" else None, max_tokens=2, min_tokens=0, captions=32)
    model, image = decoder(6, 2, 4), torch.randn(9, 24, generator=torch.Generator().manual_seed(3))
    assert model.head is not None
    model.head.scale = 0.15  # no token is nearly certain
    images = about(model, image.expand(250, -1, -1))
    found = generate_all(model, images, [[0]] * 250, config, end=2, fill=0, seeds=range(250))
    counts = Counter(tuple(caption.tokens) for captions in found for caption in captions)
    assert counts.total() == 8000
    expected = distribution(model, image, config)
    assert sum(expected.values()) == pytest.approx(1) and all(expected[caption] > 0 for caption in counts)
    statistic, freedom = chi_square(counts, expected)
    assert freedom > 6 and statistic < freedom + 4 * (2 * freedom) ** 0.5
    hotter = distribution(model, image, replace(config, temperature=1.15 * config.temperature))
    statistic, freedom = chi_square(counts, hotter)  # the test tells a small difference
    assert statistic > freedom + 4 * (2 * freedom) ** 0.5


def test_seeds_come_from_contents() -> None:
    contents = [b"a", b"b", b"a"]
    first, second, third = content_seeds(SAMPLE, contents) or []
    assert first == third != second and min(first, second) >= 0 and max(first, second) < 2**64
    assert (content_seeds(replace(SAMPLE, seed=1), contents) or [])[0] not in (first, second)
    assert content_seeds(SAMPLE, contents[1:]) == [second, first]
    assert content_seeds(GenerationConfig(), contents) is None
