"""On an accelerator the host doesn't wait for results while it decodes, except where texts are looked at.

Tensors on the meta device have no values, so whatever asks for one fails; to the code it is an accelerator.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from kinds import END, FILL, PROMPTS, subject
from test_exactness import CONFIGS, every_kind
from tiny import Numbers
from torch import Tensor

from mm.generation import GenerationConfig, generate_all
from mm.generation.compiled import Steps
from mm.generation.config import DEFAULTS
from mm.generation.speculative import Draft, SpeculativeDecoding
from mm.models import Conditioning, Context

BETWEEN = 7  # steps after which it hasn't been asked yet whether images are finished
FREE = {
    name: replace(config, max_tokens=BETWEEN)
    for name, config in CONFIGS.items()
    if not (config.stop or config.required or config.draft_tokens != DEFAULTS["draft_tokens"])
}


def without_values(part: Any) -> Any:
    """Moves all tensors of a part of a conditioning to the meta device."""
    if isinstance(part, Tensor):
        return part.to("meta")
    if isinstance(part, Conditioning):
        return Conditioning(part.rows, without_values(part.context), without_values(part.prefix))
    if isinstance(part, Context):
        return Context([kv and type(kv)(*map(without_values, kv)) for kv in part.layers], without_values(part.mask))
    return part


def run(kind: str, config: GenerationConfig, compiled: bool = False, drafted: bool = False) -> None:
    made = subject(kind)
    model, about = deepcopy(made.model).to("meta"), without_values(made.about)
    generate_all(
        model,
        about,
        PROMPTS,
        config,
        end=END,
        fill=FILL,
        text=Numbers(),
        seeds=range(len(PROMPTS)),
        draft=Draft(model, about) if drafted else None,
        steps=Steps(model, lambda step, device: step) if compiled else None,
    )


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions aren't read at the end."""
    monkeypatch.setattr(sys.modules["mm.generation.generate"], "_captions", lambda *_: [])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("config", FREE.values(), ids=FREE)
@every_kind
@pytest.mark.usefixtures("unread")
def test_the_host_never_waits_between_two_looks_at_what_is_finished(
    kind: str, config: GenerationConfig, compiled: bool
) -> None:
    run(kind, config, compiled)


@pytest.mark.parametrize("name", ["greedy", "beam 3, any length", "sample", "contrastive"])
@pytest.mark.usefixtures("unread")
def test_it_looks_at_the_eighth_step(name: str) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        run("cross-attention", replace(FREE[name], max_tokens=BETWEEN + 2))


@pytest.mark.usefixtures("unread")
def test_stop_strings_make_it_wait() -> None:
    with pytest.raises(NotImplementedError, match="meta"):
        run("cross-attention", GenerationConfig(max_tokens=BETWEEN, stop=("1",)))


@pytest.mark.parametrize("name", ["drafted", "drafted sample"])
def test_with_a_draft_all_rounds_are_done_before_anything_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[Tensor] = []
    verify = SpeculativeDecoding._verify

    def count(decoding: SpeculativeDecoding, read: Tensor, logits: Tensor) -> Tensor:
        rounds.append(read)
        return verify(decoding, read, logits)

    monkeypatch.setattr(SpeculativeDecoding, "_verify", count)
    with pytest.raises(NotImplementedError, match="meta"):
        run("cross-attention", replace(CONFIGS[name], max_tokens=BETWEEN), drafted=True)
    assert len(rounds) == BETWEEN
