"""``mm classify``: says which of some labels fits photos best."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from mm.cli import common
from mm.data.labels import TEMPLATE, label_prompts
from mm.data.samples import Sample, Tally
from mm.data.sources import count_images, iter_images, resolve_sources
from mm.errors import OptionError

SHOWN = 3


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm classify``."""
    options = _options(arguments, program)
    sources, labels = resolve_sources(options.paths), read_labels(options.labels)

    label_prompts(labels, options.template)

    import mm
    from mm.progress import progress

    model = mm.load(options.model, options.device, options.precision)
    model.require("embed")
    tally, total = Tally(), count_images(sources)
    rows: list[dict[str, Any]] = []
    try:
        with progress("Labels") as update:
            images = common.decoded(iter_images(sources), tally, options.max_pixels)
            for batch in common.batches(images, options.batch_size):
                decoded = [image for _, image in batch]
                found = model.classify(decoded, labels, template=options.template, batch_size=options.batch_size)
                rows += [_row(sample, labels, likely) for (sample, _), likely in zip(batch, found, strict=True)]
                update(tally.seen, total)
    finally:  # what is finished is shown, even when the rest is interrupted
        if rows and not options.json:
            _print_table(rows)
    if options.json:
        figures = {"images": rows, "used": tally.used, "rejected": tally.rejected}
        common.print_json(figures | {"rejections": common.rejections_json(tally)})
    return common.report_rejections(tally)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(prog=program, description="Say which of some labels fits photos best, by a model's vectors.")
    parser.add_argument("paths", nargs="+", help="image files, folders, and .tar shards")
    parser.add_argument("--labels", required=True, help="labels separated by commas, or a file with one label a line")
    parser.add_argument("--template", default=TEMPLATE, help="what labels are put into, at {}")
    common.add_model(parser)
    parser.add_argument("--batch_size", type=int, default=32, help="images embedded together")
    common.add_max_pixels(parser)
    common.add_json(parser)
    return common.parse(parser, arguments)


def read_labels(given: str) -> list[str]:
    """Gives the labels that ``--labels`` names.

    Args:
        given: labels separated by commas, or the path of a file with one label a line.

    Raises:
        OptionError: the file can't be read.
    """
    if not os.path.isfile(given):  # noqa: PTH113 - a long list of labels is no path at all
        return [label.strip() for label in given.split(",")]
    try:
        lines = Path(given).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise OptionError(f"--labels {given}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"--labels {given}: isn't UTF-8 text with one label a line") from error
    return [line.strip() for line in lines if line.strip()]


def _row(sample: Sample, labels: Sequence[str], likely: np.ndarray) -> dict[str, Any]:
    order = np.argsort(-likely, kind="stable")
    ranked = {labels[number]: round(float(likely[number]), 6) for number in order}
    label, probability = next(iter(ranked.items()))
    result = {"source": sample.source, "key": sample.key, "label": label, "probability": probability}
    return result | {"probabilities": ranked}


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the likeliest labels of every image."""
    names = ("label", "probability", "second", "third")[: 1 + min(SHOWN, len(rows[0]["probabilities"]))]
    cells = []
    for row in rows:
        others = list(row["probabilities"].items())[1:SHOWN]
        best = (row["source"], row["label"], f"{row['probability']:.3f}")
        cells.append([*best, *(f"{label} {probability:.3f}" for label, probability in others)])
    common.print_table("Labels", ("image", *names), cells)
