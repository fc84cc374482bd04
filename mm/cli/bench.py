"""``mm bench``: measures mm beside its peers: captioning, loading, and what reduced precision costs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from mm.cli import common
from mm.cli.bench_output import measure_and_show, parse
from mm.data.counting import counter
from mm.errors import UsageError

if TYPE_CHECKING:
    from mm.bench.comparison import Timings

ACTIONS = ("caption", "gate", "load")


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm bench caption``, ``mm bench gate`` or ``mm bench load``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {program} caption [options] | {program} gate --data SHARDS [options]\n"
            f"       {program} load [options]\n\n"
            "caption  time captioning beside transformers and open_clip on the same random weights\n"
            "gate     say whether reduced precision keeps the quality of a model's captions\n"
            "load     time loading for training beside open_clip and torchvision\n\n"
            f"'{program} caption --help' explains the first, and so on."
        )
        return 0 if arguments else 2
    if arguments[0] == "gate":
        from mm.cli import bench_gate

        return bench_gate.run(arguments[1:], f"{program} gate")
    if arguments[0] == "load":
        from mm.cli import bench_load

        return bench_load.run(arguments[1:], f"{program} load")
    if arguments[0] != "caption":
        raise UsageError(f"{program}: no benchmark {arguments[0]!r}; there are {', '.join(ACTIONS)}")
    return _caption(arguments[1:], f"{program} caption")


def _caption(arguments: Sequence[str], program: str) -> int:
    options = _options(arguments, program)

    from mm.bench import report
    from mm.bench.plot import draw

    return measure_and_show(options, lambda: _measure(options), draw, report)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(
        prog=program,
        description="Time captioning of ready pixels with mm and with its peers, in turn, on the same random weights: "
        "a BLIP-base that sees 384 x 384 pixels and writes 21 tokens. Captions are compared, peak memory is that of "
        "processes of their own, and times are set beside what the machine allows.",
    )
    parser.add_argument("--device", default="cpu", help="where everything runs: cpu or cuda")
    quick = "a small model and at most two repeats: a first look"
    return parse(parser, arguments, "case", "times and curves", quick)


def _measure(options: Namespace) -> Timings:
    from mm.bench.checkpoint import write_blip
    from mm.bench.coca import CASES, compare_coca
    from mm.bench.comparison import compare, plan, steps
    from mm.bench.peers import open_clip_problem
    from mm.pipeline import find_device
    from mm.progress import progress

    device = find_device(options.device)
    planned = plan(device, options.repeats, quick=options.quick)
    problem = open_clip_problem() or ("--quick leaves it out" if options.quick else None)
    total = steps(planned) + (0 if problem else 2 * len(CASES) * (planned.repeats + 1))
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as folder, progress("Benchmark", "runs") as update:
        tick = counter(update, total)
        write_blip(Path(folder), planned.shape)
        found = compare(planned, Path(folder), tick)
        if problem:
            found.skipped["CoCa of open_clip"] = problem
        else:
            found.coca.update(compare_coca(Path(folder), device, planned.repeats, tick))
    return found
