"""`mm bench caption`: from cases to timings of every side, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mm.bench.checkpoint import BASE, MEAN, SMALL, STD, Shape, random_images
from mm.bench.limits import Machine
from mm.bench.measure import in_turn, median, multiply_rate, peak_of_child, read_bandwidth
from mm.bench.peers import Captioned, Case, OwnModel, Subject, TransformersBlip
from mm.models.precision import Precision, available

OWN, PEER = "mm", "transformers"
GPU_CASE = Case(64, 3, 21)
Tick = Callable[[int], None]


class Side(NamedTuple):
    """Who captions, and in which precision."""

    library: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.library} {self.precision}"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        shape: sizes of the model.
        cases: what every side captions.
        repeats: how often each case is timed; the medians count.
        by_images: numbers of images that mm's cost is measured for, greedy.
        by_tokens: numbers of tokens that mm's cost is measured for, with one image and greedy.
        memory: the cases that peak memory is measured for.
        device: where.
    """

    shape: Shape
    cases: tuple[Case, ...]
    repeats: int
    by_images: tuple[int, ...]
    by_tokens: tuple[int, ...]
    memory: tuple[Case, ...]
    device: torch.device

    @property
    def sides(self) -> list[Side]:
        """Who is compared: mm in every precision that the device has, and transformers in those that count."""
        precisions = available(self.device)
        peers = precisions if self.device.type == "cuda" else precisions[:1]
        return [Side(PEER, one) for one in peers] + [Side(OWN, one) for one in precisions]

    @property
    def curves(self) -> dict[str, list[Case]]:
        """The cases of each curve: by number of images, and by number of tokens."""
        length = self.cases[0].tokens
        return {
            "images": [Case(count, 1, length) for count in self.by_images],
            "tokens": [Case(1, 1, count) for count in self.by_tokens],
        }


def plan(device: torch.device, repeats: int, *, quick: bool = False) -> Plan:
    """Makes the plan for a device.

    Args:
        device: where.
        repeats: how often each case is timed.
        quick: a small model and few cases, for a first look.
    """
    if quick:
        small = (Case(1, 1, 6), Case(2, 3, 6))
        return Plan(SMALL, small, min(repeats, 2), (1, 2, 4), (2, 4, 8), (), device)
    cases = [Case(images, beams, 21) for images in (1, 8) for beams in (1, 3)]
    if device.type == "cuda":
        cases.append(GPU_CASE)
    return Plan(BASE, tuple(cases), repeats, (1, 2, 4, 8), (5, 10, 20, 40), (cases[-1],), device)


def against(side: Side, sides: Sequence[Side]) -> Side:
    """Gives the peer that a side is compared with: the one in the same precision, or else the first."""
    peers = [one for one in sides if one.library != OWN]
    return next((one for one in peers if one.precision == side.precision), peers[0])


@dataclass(frozen=True)
class Timing:
    """What one side took for one case.

    Args:
        tokens: the captions.
        vision: median seconds of what is done once for each image.
        decoding: median seconds of the rest.
        total: median seconds in all.
    """

    tokens: list[list[int]]
    vision: float
    decoding: float
    total: float

    @classmethod
    def of(cls, runs: Sequence[Captioned]) -> Timing:
        """Takes the medians of several runs."""
        return cls(
            runs[0].tokens,
            median([run.vision for run in runs]),
            median([run.decoding for run in runs]),
            median([run.total for run in runs]),
        )


@dataclass(frozen=True)
class Timings:
    """All that was measured.

    Args:
        plan: what was to be measured.
        machine: what the machine can do.
        cases: for each case what each side took.
        curves: for each curve what mm took for each of its cases, by precision.
        memory: for each case the most memory in bytes that each side used in a process of its own; None where the
            system doesn't tell.
        coca: for each case what open_clip's CoCa and mm's took.
        skipped: what was left out, and why.
    """

    plan: Plan
    machine: Machine
    cases: dict[Case, dict[Side, Timing]] = field(default_factory=dict)
    curves: dict[str, dict[Side, list[Timing]]] = field(default_factory=dict)
    memory: dict[Case, dict[Side, int | None]] = field(default_factory=dict)
    coca: dict[Case, dict[Side, Timing]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def open_side(side: Side, folder: Path, device: torch.device) -> Subject:
    """Loads the checkpoint in a folder, as any user of that library does."""
    if side.library == OWN:
        return open_own(str(folder), side.precision, device)
    return TransformersBlip(folder, device, getattr(torch, side.precision), MEAN, STD)


def open_own(name: str, precision: Precision, device: torch.device, language: str = "en") -> OwnModel:
    """Loads a captioner of mm.

    Raises:
        CapabilityError: the model doesn't caption.
        OptionError: it doesn't in this language.
    """
    import mm
    from mm.pipeline import VisionLanguagePipeline

    model = mm.load(name, device, precision)
    model.require("caption", language)
    assert isinstance(model, VisionLanguagePipeline), "only vision-language models caption"
    return OwnModel(model, language)


def steps(plan: Plan) -> int:
    """Counts the works of a run, for the progress bar."""
    sides = len(plan.sides)
    own = sum(side.library == OWN for side in plan.sides)
    curves = sum(map(len, plan.curves.values()))
    timed = (len(plan.cases) * sides + curves * own) * (plan.repeats + 1)
    return timed + len(plan.memory) * sides


def time_case(
    subjects: Mapping[Side, Subject], case: Case, images: Tensor, repeats: int, tick: Tick
) -> dict[Side, Timing]:
    """Times one case for every side in turn, after one run of each that isn't timed."""
    works = {name: partial(subject.caption, images[: case.images], case) for name, subject in subjects.items()}
    in_turn(works, 1, tick)
    return {name: Timing.of(runs) for name, runs in in_turn(works, repeats, tick).items()}


def time_curve(
    subjects: Mapping[Side, Subject], cases: Sequence[Case], images: Tensor, repeats: int, tick: Tick
) -> dict[Side, list[Timing]]:
    """Times the cases of a curve for mm in every precision, all of them in turn."""
    works = {
        (side, case): partial(subject.caption, images[: case.images], case)
        for side, subject in subjects.items()
        if side.library == OWN
        for case in cases
    }
    in_turn(works, 1, tick)
    runs = in_turn(works, repeats, tick)
    sides = dict.fromkeys(side for side, _ in works)
    return {side: [Timing.of(runs[side, case]) for case in cases] for side in sides}


def measure_machine(plan: Plan) -> Machine:
    """Measures what the machine can do."""
    rates = {precision: multiply_rate(precision, plan.device) for precision in available(plan.device)}
    return Machine(read_bandwidth(plan.device), rates)


def compare(plan: Plan, folder: Path, tick: Tick) -> Timings:
    """Measures everything.

    Args:
        plan: what.
        folder: the checkpoint, which ``write_blip`` wrote in the plan's shape.
        tick: called with 1 after each work.
    """
    found = Timings(plan, measure_machine(plan))
    largest = max(case.images for case in (*plan.cases, *plan.curves["images"]))
    images = random_images(largest, plan.shape.image_size).to(plan.device)
    subjects = {side: open_side(side, folder, plan.device) for side in plan.sides}
    for case in plan.cases:
        found.cases[case] = time_case(subjects, case, images, plan.repeats, tick)
    for name, cases in plan.curves.items():
        found.curves[name] = time_curve(subjects, cases, images, plan.repeats, tick)
    del subjects
    for case in plan.memory:
        found.memory[case] = {side: _peak(side, case, folder, plan, tick) for side in plan.sides}
    return found


def _peak(side: Side, case: Case, folder: Path, plan: Plan, tick: Tick) -> int | None:
    size = plan.shape.image_size
    numbers = [str(number) for number in (case.images, case.beams, case.tokens, size, torch.get_num_threads())]
    peak = peak_of_child("mm.bench.child", [side.library, side.precision, str(folder), str(plan.device), *numbers])
    tick(1)
    return peak
