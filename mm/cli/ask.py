"""``mm ask``: answers a question about photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mm.cli import common, decoding
from mm.data.samples import Sample, Tally
from mm.data.sources import count_images, iter_images, resolve_sources
from mm.errors import UsageError

if TYPE_CHECKING:
    from mm.pipeline import Answer


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm ask``."""
    options = _options(arguments, program)
    if not options.question.strip() or Path(options.question).exists():
        raise UsageError(f"the question comes last, and {options.question!r} is none; ask such as 'how many dogs?'")
    sources = resolve_sources(options.paths)

    import mm
    from mm.progress import progress

    config = decoding.generation_config(options, decoding.ANSWER)
    model = mm.load(options.model, options.device, options.precision, options.compile)
    model.require("ask")
    tally, rows, total = Tally(), [], count_images(sources)
    with progress("Answers") as update:
        images = common.decoded(iter_images(sources), tally, options.max_pixels)
        for batch in common.batches(images, options.batch_size):
            shown = [image for _, image in batch]
            answers = model.ask(shown, options.question, config=config, batch_size=options.batch_size)
            for (sample, _), answer in zip(batch, answers, strict=True):
                rows.append(_row(sample, answer))
                if not options.json:
                    print(f"{sample.source}\t{answer}", flush=True)
            update(tally.seen, total)
    if options.json:
        figures = {"question": options.question, "answers": rows, "used": tally.used, "rejected": tally.rejected}
        common.print_json(figures | {"rejections": common.rejections_json(tally)})
    return common.report_rejections(tally)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(prog=program, description="Answer a question about photos, those in folders and shards too.")
    parser.add_argument("paths", nargs="+", help="image files, folders, and .tar shards")
    parser.add_argument("question", help="what to answer about each photo: 'how many dogs?'")
    common.add_model(parser)
    common.add_compile(parser)
    decoding.add_generation(parser, decoding.ANSWER)
    parser.add_argument("--batch_size", type=int, default=16, help="photos that are looked at together")
    common.add_max_pixels(parser)
    common.add_json(parser)
    return common.parse(parser, arguments)


def _row(sample: Sample, answer: Answer) -> dict[str, Any]:
    return {
        "source": sample.source,
        "key": sample.key,
        "answer": answer.text,
        "score": round(answer.score, 4),
        "complete": answer.complete,
    }
