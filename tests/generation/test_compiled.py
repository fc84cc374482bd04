"""Decoding in steps of the same shapes, compiled or not, gives what plain steps do."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from kinds import END, FILL, PROMPTS, Subject, subject
from test_exactness import CONFIGS, EVERYTHING, every_kind, every_strategy, run
from torch import Tensor

from mm.errors import OptionError
from mm.generation import Generated, GenerationConfig, generate_all, stream
from mm.generation.compiled import BUCKET, Run, State, Steps, check_compiler, compile_step
from mm.models import TextTransformer

CPU = torch.device("cpu")
GREEDY, BEAMS = CONFIGS["greedy"], CONFIGS["beam 3, any length"]


class Replayed:
    """Compiles nothing, but like a CUDA graph reads and writes the same places, and what it gave is soon overwritten.

    Attributes:
        shapes: how many different steps were made.
        calls: how often one of them was run.
    """

    def __init__(self) -> None:
        self.shapes = self.calls = 0

    def __call__(self, run: Run, device: torch.device) -> Run:
        self.shapes += 1
        places: dict[int, list[tuple[int, torch.Size]]] = {}
        given: list[Tensor] = []

        def replay(model: TextTransformer, state: State) -> tuple[Tensor, Tensor]:
            self.calls += 1
            found = [(one.data_ptr(), one.shape) for one in tensors(state)]
            assert places.setdefault(state.tokens.data_ptr(), found) == found
            for old in given:
                old.fill_(torch.nan)
            given[:] = run(model, state)
            return given[0], given[1]

        return replay


def tensors(part: object) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    return [tensor for one in part for tensor in tensors(one)] if isinstance(part, list | tuple) else []


def assert_equal(found: list[list[Generated]], expected: list[list[Generated]]) -> None:
    assert [[one.tokens for one in captions] for captions in found] == [
        [one.tokens for one in captions] for captions in expected
    ]
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one.ended == other.ended
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def assert_compiled_is_plain(made: Subject, config: GenerationConfig, steps: Steps) -> None:
    for which in (EVERYTHING, EVERYTHING[1:]):  # both are eight rows, and in the second none is like in the first
        assert_equal(run(made, config, which, steps=steps), run(made, config, which))


@every_strategy
@every_kind
def test_steps_of_one_shape_are_plain_ones(kind: str, config: GenerationConfig) -> None:
    made, compiler = subject(kind), Replayed()
    assert_compiled_is_plain(made, config, Steps(made.model, compiler))
    drafted = config in (CONFIGS["drafted"], CONFIGS["drafted sample"])
    assert compiler.shapes == (0 if drafted else 1)
    assert (compiler.calls > 0) == (not drafted)


@every_kind
def test_a_step_can_be_compiled_as_a_whole(kind: str) -> None:
    def compile(run: Run, device: torch.device) -> Any:
        return torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")

    made = subject(kind)
    assert_compiled_is_plain(made, BEAMS, Steps(made.model, compile))


@pytest.mark.slow
def test_what_the_compiler_makes_is_equal() -> None:
    made = subject("cross-attention")
    assert_compiled_is_plain(made, BEAMS, Steps(made.model))


def about(made: Subject, which: Sequence[int], prompts: Sequence[Sequence[int]], **how: Any) -> list[list[Generated]]:
    """Captions some of the images with other prompts than theirs."""
    some = made.about.of(torch.tensor(which))
    return generate_all(made.model, some, prompts, GREEDY, end=END, fill=FILL, **how)


@pytest.mark.parametrize("kind", ["prefix", "relative bias", "gated, interleaved"])
def test_few_are_compiled(kind: str) -> None:
    made, compiler = subject(kind), Replayed()
    steps = Steps(made.model, compiler)
    for which in ([0], [1], [2, 3], [4, 5], [0, 1, 2], [0, 1, 2, 3]):
        for length in (1, BUCKET - GREEDY.max_tokens):
            prompts = [PROMPTS[4][:length]] * len(which)
            assert_equal(about(made, which, prompts, steps=steps), about(made, which, prompts))
    assert compiler.shapes == 3  # for one, two and four images
    prompts = [[5] * (BUCKET - GREEDY.max_tokens + 1)]
    assert_equal(about(made, [0], prompts, steps=steps), about(made, [0], prompts))
    assert compiler.shapes == 4


def test_texts_of_about_the_same_length_share_a_step() -> None:
    made, compiler = subject("relative bias"), Replayed()
    context = made.about.context
    assert context is not None and context.mask is not None
    steps = Steps(made.model, compiler)
    for length in (9, 6):
        layers = [
            kv and kv._replace(keys=kv.keys[:, :, :length], values=kv.values[:, :, :length]) for kv in context.layers
        ]
        shorter = context._replace(layers=layers, mask=context.mask[..., :length])
        given = Subject(made.model, made.about._replace(context=shorter))
        assert_equal(run(given, BEAMS, EVERYTHING, steps=steps), run(given, BEAMS, EVERYTHING))
    assert compiler.shapes == 1


def test_two_decoders_at_a_time_keep_apart_and_leave_their_room_to_others() -> None:
    made, compiler = subject("cross-attention"), Replayed()
    steps = Steps(made.model, compiler)
    expected = [run(made, GREEDY, [image])[0][0] for image in (1, 2)]

    def streamed(image: int) -> Any:
        some = made.about.of(torch.tensor([image]))
        return stream(made.model, some, PROMPTS[image], GREEDY, end=END, fill=FILL, steps=steps)

    streams = [streamed(1), streamed(2)]
    found: list[list[Any]] = [[], []]
    for _ in range(GREEDY.max_tokens + 1):
        for one, pieces in zip(streams, found, strict=True):
            pieces += [piece for piece in [next(one, None)] if piece is not None]
    for pieces, caption in zip(found, expected, strict=True):
        assert pieces[-1].tokens == caption.tokens
    del streams, found, pieces
    gc.collect()
    (free,) = steps._free.values()
    assert len(free) == 2
    assert run(made, GREEDY, [1], steps=steps)[0][0].tokens == expected[0].tokens
    gc.collect()
    assert len(free) == 2 and compiler.shapes == 1


def test_on_a_gpu_a_step_is_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda run, **given: options.append(given) or run)
    for device in ("cuda", "cpu"):
        compile_step(lambda model, state: (state.tokens, state.tokens), torch.device(device))
    always = {"fullgraph": True, "dynamic": False}
    assert options == [always | {"mode": "reduce-overhead"}, always | {"mode": None}]


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++"):
        monkeypatch.delenv("CXX", raising=False)
        check_compiler(CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OptionError, match=r"compile needs a C\+\+ compiler, and there is no no-such-compiler"):
        check_compiler(CPU)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(OptionError, match="compile needs triton for a cuda"):
        check_compiler(torch.device("cuda"))
