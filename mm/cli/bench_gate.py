"""``mm bench gate``: says whether reduced precision keeps the quality of a model's captions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mm.cli import common
from mm.data.samples import Rejection, Sample, Tally

if TYPE_CHECKING:
    from mm.bench.gate import Gate

SHOWN = 10
"""How many of the captions that differ are printed, those of the largest gaps."""


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm bench gate``."""
    options = _options(arguments, program)

    from mm.bench.gate import save_precisions
    from mm.data.opening import find_manifest

    manifest, tally = find_manifest(options.data), Tally()
    gate = _open(options)
    total = manifest.total if options.limit is None else min(manifest.total, options.limit)
    samples = itertools.islice(common.captioned(manifest, [options.language]), options.limit)
    _caption(gate, samples, tally, total, options)
    if not tally.used:
        return common.report(
            "gate", {}, tally, as_json=options.json, problem=f"{program}: no image with a caption could be used"
        )
    rows = gate.figures()
    result: dict[str, Any] = {"model": options.model, "precisions": rows, "differences": _differences(gate)}
    if options.save:
        result["saved"] = save_precisions(options.save, rows)
    _print(result, tally, as_json=options.json)
    return common.report_rejections(tally)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(
        prog=program,
        description="Caption images in float32 and in every reduced precision that the machine has, as 'mm eval "
        "captioning' does, and compare. A precision passes where CIDEr is less than 1 % lower, relative. For a caption "
        "that differs the gap says how much better the one in float32 ranks there: near 0 it was a near tie.",
    )
    parser.add_argument("--data", nargs="+", required=True, help="folders, shards or patterns of shards")
    parser.add_argument("--model", default="mm-tiny", help="a name that 'mm models' explains")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; a GPU if there is one")
    parser.add_argument("--language", default="en", help="language of captions")
    parser.add_argument("--batch_size", type=int, default=32, help="images captioned together")
    parser.add_argument("--limit", type=int | None, default=None, help="caption the first so many images only")
    parser.add_argument("--save", action="store_true", help="write what passes into the model directory's config.json")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.save:
        from mm.bench.gate import require_directory

        options.save = require_directory(options.model)
    return options


def _open(options: Namespace) -> Gate:
    """Loads the model in every precision that the device has."""
    from mm.bench.comparison import open_own
    from mm.bench.gate import Gate
    from mm.models.precision import available
    from mm.pipeline import find_device
    from mm.pipeline.base import CAPTION

    device = find_device(options.device)
    precisions = available(device)
    models = {one: open_own(options.model, one, device, options.language) for one in precisions}
    return Gate(models, CAPTION, options.language)


def _caption(gate: Gate, samples: Iterable[Sample | Rejection], tally: Tally, total: int, options: Namespace) -> None:
    from mm.progress import progress

    with progress("Captions") as update:
        for batch in common.batches(common.decoded(samples, tally, options.max_pixels), options.batch_size):
            sources = [sample.source for sample, _ in batch]
            gate.add(sources, [image for _, image in batch], [sample.captions[options.language] for sample, _ in batch])
            update(tally.seen, total)


def _differences(gate: Gate) -> list[dict[str, Any]]:
    """Gives the captions that differ, those of the largest gaps first."""
    rows = [{"precision": name, **one._asdict()} for name, found in gate.differences.items() for one in found]
    return sorted(rows, key=lambda row: -abs(row["gap"]))


def _print(result: dict[str, Any], tally: Tally, *, as_json: bool) -> None:
    if as_json:
        common.print_json(result | {"rejections": common.rejections_json(tally)})
        return
    columns = ("precision", "CIDEr", "drop", "captions", "identical", "median gap", "largest gap", "verdict")
    cells = [
        (
            row["precision"],
            f"{row['CIDEr']:.4f}",
            f"{row['drop']:.2%}",
            row["captions"],
            f"{row['identical']:.2%}",
            row["median_gap"],
            row["largest_gap"],
            "passes" if row["passes"] else "fails",
        )
        for row in result["precisions"]
    ]
    common.print_table(f"Captions of {result['model']} by precision", columns, cells)
    shown = result["differences"][:SHOWN]
    if shown:
        names = ("precision", "source", "exact", "reduced", "gap")
        title = f"Captions that differ: {len(shown)} of {len(result['differences'])}, the largest gaps first"
        common.print_table(title, names, [[row[name] for name in names] for row in shown])
    if "saved" in result:
        print(f"saved in config.json: {', '.join(result['saved']) or 'none'}")
