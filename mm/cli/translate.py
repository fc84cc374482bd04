"""``mm translate``: translates captions and other texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mm.cli import common, decoding
from mm.cli.lines import Lines
from mm.data.lines import TextLine, count_lines, read_lines
from mm.data.samples import Tally
from mm.errors import UsageError

if TYPE_CHECKING:
    from mm.pipeline import Translation

TRANSLATORS = "a T5, BART or mBART checkpoint, or one that 'mm fit --config configs/text/translate.yaml' trained"


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm translate``."""
    options = _options(arguments, program)
    if options.model is None:
        raise UsageError(f"--model is missing, and no model comes with mm that translates; give {TRANSLATORS}")
    total = count_lines(options.texts)
    output = Lines(options.output)

    import mm
    from mm.progress import progress

    config = decoding.generation_config(options, decoding.TRANSLATION)
    model = mm.load(options.model, options.device, options.precision, options.compile)
    model.require("translate", options.to)
    tally, rows, cut = Tally(), [], 0
    with progress("Translations", "texts") as update:
        lines = tally.accept(read_lines(options.texts, options.field))
        for batch in common.batches(lines, options.batch_size):
            translations = model.translate(
                [line.text for line in batch],
                to=options.to,
                source=[_source(line, options.source, model.languages) for line in batch],
                config=config,
                batch_size=options.batch_size,
            )
            new = [_row(*pair, options.field) for pair in zip(batch, translations, strict=True)]
            output.write(new)
            cut += sum(not translation.whole for translation in translations)
            if options.json:
                rows += new
            else:
                for line, translation in zip(batch, translations, strict=True):
                    print(f"{' '.join(line.text.split())}\t{translation}", flush=True)
            update(tally.seen, total)
    output.finish()
    if options.json:
        figures = {"translations": rows, "used": tally.used, "rejected": tally.rejected}
        common.print_json(figures | {"rejections": common.rejections_json(tally)})
    if options.output and not options.json:
        print(f"{options.output}: {tally.used} translations", file=sys.stderr)
    if cut:
        print(f"{cut} of {tally.used} texts were longer than the model reads, and were cut", file=sys.stderr)
    return common.report_rejections(tally)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(prog=program, description="Translate captions and other texts.")
    parser.add_argument(
        "texts", help="JSON lines as 'mm caption --output' writes (.jsonl), or text with one a line; - for stdin"
    )
    common.add_model(parser, default=None)
    common.add_compile(parser)
    parser.add_argument("--to", type=str | None, default=None, help="language to translate into: zh")
    parser.add_argument(
        "--source", type=str | None, default=None, help="language of the texts; that which JSON lines name"
    )
    parser.add_argument("--field", default="caption", help="key of the text in JSON lines")
    decoding.add_generation(parser, decoding.TRANSLATION)
    parser.add_argument("--batch_size", type=int, default=16, help="texts translated together")
    parser.add_argument(
        "--output", type=Path | None, default=None, help="write translations here too, one JSON object a line"
    )
    common.add_json(parser)
    return common.parse(parser, arguments)


def _source(line: TextLine, given: str | None, known: Sequence[str]) -> str | None:
    """Gives the language of a text: the one asked for, else the one that its line names if the model knows it."""
    named = line.row.get("language")
    return given if given is not None or named not in known else str(named)


def _row(line: TextLine, translation: Translation, field: str) -> dict[str, Any]:
    """Gives all that a line holds, with the translation in the text's place."""
    return line.row | {
        field: translation.text,
        "language": translation.language,
        "score": round(translation.score, 4),
        "complete": translation.complete,
        "whole": translation.whole,
        "original": line.text,
    }
