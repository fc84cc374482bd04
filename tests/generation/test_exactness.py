"""What every strategy keeps to, for every kind of decoder.

A caption doesn't depend on the batch it is in nor on what is cached, and its log-probabilities are those that a plain
pass over it gives. A new strategy gets a row in ``CONFIGS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from kinds import END, FILL, MAKERS, PROMPTS, Subject, disturbed, likelihood, subject
from tiny import Numbers

from mm.generation import Generated, GenerationConfig, generate_all
from mm.generation.config import DEFAULTS
from mm.generation.decoder import Decoder
from mm.generation.speculative import Draft

CONFIGS = {
    "greedy": GenerationConfig(max_tokens=20),
    "greedy, penalty": GenerationConfig(max_tokens=20, min_tokens=4, repetition_penalty=1.4),
    "greedy, prohibitions": GenerationConfig(max_tokens=20, min_tokens=0, no_repeat_ngram=2, forbidden=("7", "12 8")),
    "greedy, stop": GenerationConfig(max_tokens=20, min_tokens=0, stop=("1",)),
    "beam 2": GenerationConfig(beams=2, captions=2, max_tokens=20),
    "beam 3, any length": GenerationConfig(beams=3, captions=2, max_tokens=20, length_penalty=0.0),
    "beam 3, everything": GenerationConfig(
        beams=3, max_tokens=20, min_tokens=4, length_penalty=1.6, repetition_penalty=1.4, no_repeat_ngram=3
    ),
    "beam 4, short": GenerationConfig(beams=4, captions=4, max_tokens=20, length_penalty=-1.0, stop=("1 2",)),
    "beam 4, required": GenerationConfig(beams=4, captions=2, max_tokens=20, length_penalty=-2.0, required=("9",)),
    "beam 4 in groups": GenerationConfig(beams=4, groups=2, captions=3, max_tokens=20, length_penalty=-1.0),
    "beam 6 in groups": GenerationConfig(
        beams=6, groups=3, captions=6, max_tokens=20, length_penalty=-2.0, diversity=2.0
    ),
    "beam 4, the best of 3": GenerationConfig(beams=4, best_of=3, captions=2, max_tokens=20, rank_by="consensus"),
    "sample": GenerationConfig(strategy="sample", captions=2, max_tokens=20),
    "sample, cut": GenerationConfig(
        strategy="sample", max_tokens=20, temperature=0.8, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.2
    ),
    "sample, the best of 4": GenerationConfig(strategy="sample", best_of=4, max_tokens=20),
    "contrastive": GenerationConfig(strategy="contrastive", max_tokens=20),
    "drafted": GenerationConfig(max_tokens=20, repetition_penalty=1.2, draft_tokens=3),
    "drafted sample": GenerationConfig(strategy="sample", max_tokens=20, top_p=0.9, draft_tokens=5),
    "contrastive of 3": GenerationConfig(
        strategy="contrastive", max_tokens=20, top_k=3, degeneration_penalty=0.8, no_repeat_ngram=2
    ),
}
EVERYTHING = list(range(len(PROMPTS)))
every_kind = pytest.mark.parametrize("kind", MAKERS)
every_strategy = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def run(subject: Subject, config: GenerationConfig, which: Sequence[int], **how: Any) -> list[list[Generated]]:
    about, prompts, seeds = subject.about.of(torch.tensor(which)), [PROMPTS[i] for i in which], [5 + i for i in which]
    draft = Draft(disturbed(subject.model), about) if config.draft_tokens != DEFAULTS["draft_tokens"] else None
    options: dict[str, Any] = {"end": END, "fill": FILL, "text": Numbers(), "seeds": seeds, "draft": draft}
    return generate_all(subject.model, about, prompts, config, **options, **how)


def assert_same(found: list[list[Generated]], expected: list[list[Generated]]) -> None:
    """The same captions in the same order, and but for rounding the same log-probabilities."""
    assert [[one.tokens for one in captions] for captions in found] == [
        [one.tokens for one in captions] for captions in expected
    ]
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one.ended == other.ended
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=5e-4)


@every_strategy
@every_kind
def test_a_batch_is_its_parts(kind: str, config: GenerationConfig) -> None:
    made = subject(kind)
    together = run(made, config, EVERYTHING)
    assert_same([run(made, config, [i])[0] for i in EVERYTHING], together)
    order = [4, 2, 0, 5, 1, 3, 4]
    assert_same(run(made, config, order), [together[i] for i in order])


@every_strategy
@every_kind
def test_cached_is_uncached(kind: str, config: GenerationConfig) -> None:
    made = subject(kind)
    assert_same(run(made, config, EVERYTHING, cached=False), run(made, config, EVERYTHING))


@every_strategy
@every_kind
def test_log_probabilities_are_those_of_a_plain_pass(kind: str, config: GenerationConfig) -> None:
    made = subject(kind)
    for image, captions in enumerate(run(made, config, EVERYTHING)):
        assert len(captions) == config.captions
        for caption in captions:
            prompt = PROMPTS[image]
            assert caption.tokens[: len(prompt) - 1] == prompt[1:]
            new = [*caption.tokens[len(prompt) - 1 :], *([END] if caption.ended else [])]
            expected = likelihood(made, image, prompt, new).tolist()
            assert caption.log_probabilities == pytest.approx(expected, abs=5e-4)


@every_strategy
@every_kind
def test_captions_end_at_different_times_and_leave(
    kind: str, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what the tests above compare has gone through batches that became smaller."""
    left: list[int] = []
    keep = Decoder.keep

    def spy(decoder: Decoder, images: torch.Tensor) -> None:
        left.append(len(images))
        keep(decoder, images)

    monkeypatch.setattr(Decoder, "keep", spy)
    found = [captions for seed in range(3) for captions in run(subject(kind, seed), config, EVERYTHING)]
    assert 0 < min(left) < len(EVERYTHING) - 1
    assert len({caption.generated for captions in found for caption in captions}) > 3
    assert len({tuple(captions[0].tokens) for captions in found}) > len(found) / 2
