"""From timings to figures, and from figures to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mm.bench.comparison import OWN, Timing, Timings, against
from mm.bench.limits import decoding_limit, fit_line, vision_limit
from mm.bench.peers import Case

MIB = 1 << 20


class Table(NamedTuple):
    """A table to print.

    Args:
        title: what it is about.
        columns: their names.
        rows: the cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]


def same_captions(tokens: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """Counts the captions that are the same, token for token, over the length that both have."""
    return sum(list(one[: len(other)]) == list(other[: len(one)]) for one, other in zip(tokens, others, strict=True))


def case_figures(timings: Mapping[Any, Timing], case: Case) -> list[dict[str, Any]]:
    """Gives the times of one case, and what they are to those of the peer."""
    rows = []
    for side, timing in timings.items():
        peer = against(side, list(timings))
        row: dict[str, Any] = {
            "case": str(case),
            "side": str(side),
            "seconds": timing.total,
            "vision": timing.vision,
            "decoding": timing.decoding,
            "tokens_per_second": case.images * case.tokens / timing.total,
        }
        if side.library == OWN:
            same = same_captions(timing.tokens, timings[peer].tokens)
            row |= {"ratio": timings[peer].total / timing.total, "same": same, "captions": case.images}
        rows.append(row)
    return rows


def limit_figures(found: Timings) -> list[dict[str, Any]]:
    """Gives the seconds that the machine needs at least for each case, and how often that the sides took."""
    shape, machine = found.plan.shape, found.machine
    rows = []
    for case, timings in found.cases.items():
        for side, timing in timings.items():
            seeing = vision_limit(shape, case.images, side.precision, machine)
            writing = decoding_limit(shape, case, side.precision, machine)
            times: dict[str, Any] = {
                "vision_times": timing.vision / seeing,
                "decoding_times": timing.decoding / writing,
            }
            limits = {"vision_limit": seeing, "decoding_limit": writing}
            rows.append({"case": str(case), "side": str(side)} | limits | times)
    return rows


def memory_figures(found: Timings) -> list[dict[str, Any]]:
    """Gives the most memory that each side used in a process of its own, and what that is to the peer's."""
    rows = []
    for case, peaks in found.memory.items():
        for side, peak in peaks.items():
            row: dict[str, Any] = {"case": str(case), "side": str(side), "bytes": peak}
            other = peaks[against(side, list(peaks))]
            if side.library == OWN and peak and other:
                row["ratio"] = peak / other
            rows.append(row)
    return rows


def curve_figures(found: Timings) -> list[dict[str, Any]]:
    """Gives the cost by number of images and by number of tokens, with a straight line through it."""
    rows = []
    for name, sides in found.curves.items():
        counts = [getattr(case, name) for case in found.plan.curves[name]]
        for side, timings in sides.items():
            seconds = [timing.total for timing in timings]
            line = fit_line(counts, seconds)
            row: dict[str, Any] = {"by": name, "side": str(side), "counts": counts, "seconds": seconds}
            rows.append(row | {"constant": line.constant, "each": line.slope, "residual": line.residual})
    return rows


def figures(found: Timings) -> dict[str, Any]:
    """Gives everything that was found as plain data."""
    machine = {"device": str(found.plan.device), "bandwidth": found.machine.bandwidth}
    return {
        "machine": machine | {"multiply": dict(found.machine.rates)},
        "repeats": found.plan.repeats,
        "cases": [row for case, timings in found.cases.items() for row in case_figures(timings, case)],
        "limits": limit_figures(found),
        "memory": memory_figures(found),
        "curves": curve_figures(found),
        "open_clip": [row for case, timings in found.coca.items() for row in case_figures(timings, case)],
        "skipped": found.skipped,
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """Makes tables of what ``figures`` gave."""
    machine = found["machine"]
    rates = [
        (f"matrix multiplication, {name}", f"{rate / 1e9:.1f} GFLOP/s") for name, rate in machine["multiply"].items()
    ]
    memory = [(f"memory, read ({machine['device']})", f"{machine['bandwidth'] / 1e9:.1f} GB/s")]
    made = [
        Table("The machine", ("what", "measured"), [*memory, *rates]),
        _times(f"BLIP captioning: medians of {found['repeats']}", found["cases"]),
        _limits(found["limits"]),
        *([_memory(found["memory"])] if found["memory"] else []),
        *(_curve(row) for row in found["curves"]),
    ]
    if found["open_clip"]:
        made.append(_times("CoCa captioning", found["open_clip"]))
    if found["skipped"]:
        made.append(Table("Left out", ("what", "why"), list(found["skipped"].items())))
    return made


def _times(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("case", "side", "seconds", "peer / mm", "vision", "decoding", "tokens/s", "same captions")
    cells = []
    for row in rows:
        ratio = f"{row['ratio']:.2f}x" if "ratio" in row else None
        same = f"{row['same']} of {row['captions']}" if "same" in row else None
        times = [f"{row[name]:.3f}" for name in ("vision", "decoding")]
        speed = f"{row['tokens_per_second']:.1f}"
        cells.append((row["case"], row["side"], f"{row['seconds']:.3f}", ratio, *times, speed, same))
    return Table(title, columns, cells)


def _limits(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("case", "side", "vision at least", "taken", "decoding at least", "taken")
    cells: list[tuple[object, ...]] = [
        (
            row["case"],
            row["side"],
            f"{row['vision_limit']:.3f} s",
            f"{row['vision_times']:.2f}x",
            f"{row['decoding_limit']:.3f} s",
            f"{row['decoding_times']:.2f}x",
        )
        for row in rows
    ]
    return Table("Distance to the limit: multiplications of vision, reads of decoding", columns, cells)


def _memory(rows: Sequence[dict[str, Any]]) -> Table:
    cells: list[tuple[object, ...]] = []
    for row in rows:
        size = f"{row['bytes'] / MIB:.0f} MiB" if row["bytes"] else None
        cells.append((row["case"], row["side"], size, f"{row['ratio']:.2f}x" if "ratio" in row else None))
    return Table("Peak memory of a process that captions once", ("case", "side", "peak", "mm / peer"), cells)


def _curve(row: dict[str, Any]) -> Table:
    name = row["by"].removesuffix("s")
    title = (
        f"{row['side']} by {row['by']}: {1000 * row['constant']:.1f} ms + {1000 * row['each']:.1f} ms for each {name}, "
        f"at most {row['residual']:.1%} off"
    )
    cells: list[tuple[object, ...]] = [
        (count, f"{seconds:.3f}", f"{1000 * seconds / count:.1f} ms")
        for count, seconds in zip(row["counts"], row["seconds"], strict=True)
    ]
    return Table(title, (row["by"], "seconds", f"for each {name}"), cells)
