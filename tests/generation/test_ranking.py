from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny import about, decoder

from mm.generation import Generated, GenerationConfig, generate, generate_all
from mm.generation.ranking import Rank, by_consensus, by_likelihood

VOCABULARY, END, FILL = 40, 3, 0
PROMPTS = [[5], [6, 10, 11, 12], [5, 20], [6]]
EVERYTHING = list(range(len(PROMPTS)))
SAMPLE = GenerationConfig(strategy="sample", max_tokens=12, best_of=8)
BEAM = GenerationConfig(beams=8, max_tokens=12, length_penalty=0.0, best_of=8)


def run(config: GenerationConfig, which: list[int] = EVERYTHING, rank: Rank | None = None) -> list[list[Generated]]:
    model = decoder(VOCABULARY, END, 1)
    images = torch.randn(len(PROMPTS), 9, 24, generator=torch.Generator().manual_seed(7))[which]
    prompts, seeds = [PROMPTS[i] for i in which], [100 + i for i in which]
    return generate_all(model, about(model, images), prompts, config, end=END, fill=FILL, seeds=seeds, rank=rank)


def written(*new: int, ended: bool = True, prompt: Sequence[int] = ()) -> Generated:
    """A caption whose tokens, the end too, have a log-probability of -1 each."""
    return Generated([*prompt, *new], [-1.0] * (len(new) + ended), ended)


def test_likelihood_is_that_of_a_token() -> None:
    short, long = Generated([1, 2], [-1.0, -2.0, -3.0], True), Generated([1, 2, 3, 4], [-1.5, -1.5, -1.0, -2.0], False)
    assert by_likelihood([[short, long], [written(ended=False)]]) == [[-2.0, -1.5], [0.0]]


def test_consensus_is_the_mean_likeness_with_the_others() -> None:
    # Of 1 2 3 and 1 2 4: two of three tokens, one of two pairs, and no triple are shared.
    found = [[written(1, 2, 3), written(1, 2, 4), written(1, 2, 3), written(7, 8)]]
    some = (2 / 3 + 1 / 2 + 0) / 3
    assert by_consensus(found)[0] == pytest.approx([(some + 1) / 3, 2 * some / 3, (some + 1) / 3, 0.0])


@pytest.mark.parametrize(
    ("one", "other", "likeness"),
    [
        ((), (), 1.0),
        ((), (1,), 0.0),
        ((1,), (1,), 1.0),
        ((1, 1, 1), (1,), (2 * 1 / 4 + 0 + 0) / 3),  # each occurrence counts once
        ((1, 2), (2, 1), (1 + 0) / 2),
        ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5), 1.0),
    ],
)
def test_likeness_of_two_captions(one: tuple[int, ...], other: tuple[int, ...], likeness: float) -> None:
    for ended in (True, False):
        pair = [written(*one, ended=ended), written(*other, prompt=[8, 9])]
        assert by_consensus([pair, pair[::-1]]) == [pytest.approx([likeness] * 2)] * 2


def test_one_caption_alone_agrees_with_none() -> None:
    assert by_consensus([[written(1, 2)], []]) == [[0.0], []]


@pytest.mark.parametrize("config", [SAMPLE, BEAM], ids=["sample", "beam"])
@pytest.mark.parametrize("name", ["likelihood", "consensus"])
def test_the_best_of_all_captions_are_given(config: GenerationConfig, name: str) -> None:
    everything = run(replace(config, best_of=0, captions=8))
    ranked = run(replace(config, captions=8, rank_by=name))
    scores = {"likelihood": by_likelihood, "consensus": by_consensus}[name](everything)
    for captions, ordered, values in zip(everything, ranked, scores, strict=True):
        order = sorted(range(8), key=lambda place: values[place], reverse=True)
        assert [caption.tokens for caption in ordered] == [captions[place].tokens for place in order]
    assert any(one != other for one, other in zip(everything, ranked, strict=True))
    assert run(replace(config, captions=3, rank_by=name)) == [captions[:3] for captions in ranked]
    assert [captions[:1] for captions in ranked] == run(replace(config, rank_by=name))


def test_without_best_of_captions_stay_as_they_were_found() -> None:
    found = run(replace(BEAM, best_of=0, captions=4), rank=by_consensus)
    for captions in found:
        scores = [caption.score for caption in captions]
        assert scores == sorted(scores, reverse=True)
    assert any(captions != sorted(captions, key=lambda one: -one.score / one.generated) for captions in found)


@pytest.mark.parametrize("name", ["likelihood", "consensus"])
def test_a_batch_equals_its_parts(name: str) -> None:
    config = replace(SAMPLE, rank_by=name, captions=2)
    together = [[caption.tokens for caption in captions] for captions in run(config)]
    assert together == [[caption.tokens for caption in run(config, [i])[0]] for i in EVERYTHING]


@pytest.mark.parametrize("name", ["match", "similarity", "likelihood"])
def test_what_ranks_can_be_given(name: str) -> None:
    def shortest(found: Sequence[Sequence[Generated]]) -> list[list[float]]:
        return [[-float(caption.generated) for caption in captions] for captions in found]

    for captions in run(replace(SAMPLE, rank_by=name, captions=8), rank=shortest):
        lengths = [caption.generated for caption in captions]
        assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_equal_captions_stay_in_order() -> None:
    found = run(replace(SAMPLE, captions=8), rank=lambda found: [[0.0] * len(captions) for captions in found])
    assert found == run(replace(SAMPLE, best_of=0, captions=8))


@pytest.mark.parametrize("name", ["match", "similarity"])
def test_what_takes_the_images_is_refused_without_it(name: str) -> None:
    config = replace(SAMPLE, rank_by=name)
    with pytest.raises(ValueError, match=f"rank_by {name} needs the images: VisionLanguagePipeline ranks by it"):
        run(config)
    model = decoder(VOCABULARY, END)
    with pytest.raises(ValueError, match="needs the images"):
        generate(model, about(model, torch.zeros(1, 9, 24)), [[5]], config, end=END, fill=FILL, seeds=[1])
