from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mm.bench.checkpoint import BASE, SMALL, random_images, write_blip
from mm.bench.comparison import OWN, PEER, Side, against, open_side, plan, steps, time_case
from mm.bench.measure import peak_of_child
from mm.bench.peers import Case, OpenClipCoca, open_clip_problem

CPU = torch.device("cpu")
CASES = [Case(1, 1, 12), Case(3, 1, 12), Case(3, 3, 12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a first look."""
    path = tmp_path_factory.mktemp("checkpoint")
    write_blip(path, SMALL)
    return path


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_writes_what_transformers_writes(folder: Path, case: Case) -> None:
    sides = {Side(name, "float32"): open_side(Side(name, "float32"), folder, CPU) for name in (PEER, OWN)}
    ticks: list[int] = []
    timings = time_case(sides, case, random_images(3, SMALL.image_size), 3, ticks.append)
    peer, own = timings.values()
    assert own.tokens == peer.tokens
    assert len(own.tokens) == case.images and {len(row) for row in own.tokens} == {case.tokens}
    assert sum(ticks) == 2 * (1 + 3)
    assert all(min(timing.vision, timing.decoding) > 0 for timing in timings.values())


def test_captions_of_random_weights_say_something(folder: Path) -> None:
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    pixels = random_images(4, SMALL.image_size).float() / 255
    with torch.inference_mode():
        found = model.generate(
            pixel_values=pixels, min_new_tokens=12, max_new_tokens=12, output_scores=True, return_dict_in_generate=True
        )
    rows = found.sequences[:, 1:].tolist()
    assert len({tuple(row) for row in rows}) == len(rows)
    assert min(len(set(row)) for row in rows) > 3
    best = torch.stack(found.scores).topk(2, -1).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4  # no choice that rounding decides


def test_the_checkpoint_has_the_shape_of_the_public_one() -> None:
    assert (BASE.image_tokens, BASE.vocabulary) == (577, 30524)


def test_the_peak_of_a_process_of_its_own(folder: Path) -> None:
    numbers = ["2", "3", "4", str(SMALL.image_size), "1"]
    peak = peak_of_child("mm.bench.child", [OWN, "float32", str(folder), "cpu", *numbers])
    weights = (folder / "model.safetensors").stat().st_size
    assert peak is not None and weights < peak < 4 << 30


def test_each_side_has_its_peer() -> None:
    exact, half = Side(PEER, "float32"), Side(PEER, "bfloat16")
    assert against(Side(OWN, "bfloat16"), [exact, Side(OWN, "bfloat16")]) == exact
    assert against(Side(OWN, "bfloat16"), [exact, half]) == half


def test_the_plan_of_a_whole_run() -> None:
    whole = plan(CPU, 5)
    assert [str(case) for case in whole.cases] == [
        "batch 1, greedy",
        "batch 1, beam 3",
        "batch 8, greedy",
        "batch 8, beam 3",
    ]
    own = len(whole.sides) - 1
    assert steps(whole) == 4 * (own + 1) * 6 + 8 * own * 6 + (own + 1)
    assert str(plan(torch.device("cuda"), 5).cases[-1]) == "batch 64, beam 3"


class Coca(torch.nn.Module):
    """What open_clip's CoCa looks like from outside: it notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.visual: Any = torch.nn.Linear(2, 2)
        self.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        self.calls: list[dict[str, Any]] = []

    def generate(self, pixels: torch.Tensor, **how: Any) -> torch.Tensor:
        self.visual(torch.ones(1, 2))
        self.calls.append(how | {"pixels": pixels})
        return torch.tensor([[1, 7, 8, 2]])


def test_open_clip_is_asked_for_as_many_tokens() -> None:
    model = Coca()
    peer, images = OpenClipCoca(model, CPU), torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    for beams in (1, 3):
        found = peer.caption(images, Case(1, beams, 3))
        assert found.tokens == [[7, 8]] and found.vision > 0
    greedy, beam = model.calls
    assert greedy["pixels"].unique().tolist() == [1.0]
    assert (greedy["seq_len"], greedy["min_seq_len"]) == (4, 3)
    assert (greedy["generation_type"], greedy["top_k"]) == ("top_k", 1)
    assert (beam["generation_type"], beam["num_beams"], beam["num_beam_groups"]) == ("beam_search", 3, 1)


def test_open_clip_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.coca_model._has_transformers", False)
    assert f"transformers {transformers.__version__}" in str(open_clip_problem())
    monkeypatch.setattr("open_clip.coca_model._has_transformers", True)
    assert open_clip_problem() is None
