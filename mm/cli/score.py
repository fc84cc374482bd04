"""``mm score``: says how likely a language model finds texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mm.cli import common
from mm.data.lines import TextLine, count_lines, read_lines
from mm.data.samples import Tally
from mm.errors import UsageError

if TYPE_CHECKING:
    from mm.pipeline import Score


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm score``."""
    options = _options(arguments, program)
    if options.model is None:
        raise UsageError(
            "--model is missing, and no model comes with mm that scores texts; give a GPT-2, LLaMA or Falcon "
            "checkpoint: hf:openai-community/gpt2"
        )
    total = count_lines(options.texts)

    import mm
    from mm.progress import progress

    model = mm.load(options.model, options.device, options.precision)
    model.require("score", options.language)
    tally, rows = Tally(), []
    scores: list[Score] = []
    with progress("Scores", "texts") as update:
        lines = tally.accept(read_lines(options.texts, options.field))
        for batch in common.batches(lines, options.batch_size):
            new = model.score([line.text for line in batch], language=options.language, batch_size=options.batch_size)
            scores += new
            for line, score in zip(batch, new, strict=True):
                rows.append(_row(line, score))
                if not options.json:
                    text = " ".join(line.text.split())
                    print(f"{score.log_probability:.3f}\t{score.perplexity:.3f}\t{text}", flush=True)
            update(tally.seen, total)
    figures = _in_all(scores) | {"rejected": tally.rejected}
    if options.json:
        figures = {"scores": rows} | figures
    return common.report("Log-probability, perplexity and text above; in all", figures, tally, as_json=options.json)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(
        prog=program,
        description="Say how likely a language model finds texts: log-probability and perplexity of each and of all. "
        "Every token of a text counts, given those before it and the one that texts begin with.",
    )
    parser.add_argument(
        "texts", help="JSON lines as 'mm caption --output' writes (.jsonl), or text with one a line; - for stdin"
    )
    common.add_model(parser, default=None)
    parser.add_argument("--language", type=str | None, default=None, help="of the texts, where the model knows several")
    parser.add_argument("--field", default="caption", help="key of the text in JSON lines")
    parser.add_argument("--batch_size", type=int, default=16, help="texts scored together")
    common.add_json(parser)
    return common.parse(parser, arguments)


def _row(line: TextLine, score: Score) -> dict[str, Any]:
    return {
        "text": line.text,
        "log_probability": round(score.log_probability, 4),
        "perplexity": round(score.perplexity, 4),
        "tokens": score.tokens,
        "whole": score.whole,
    }


def _in_all(scores: Sequence[Score]) -> dict[str, Any]:
    from mm.pipeline.language import perplexity

    total, tokens = sum(score.log_probability for score in scores), sum(score.tokens for score in scores)
    return {
        "texts": len(scores),
        "cut": sum(not score.whole for score in scores),
        "tokens": tokens,
        "log_probability": round(total, 4),
        "perplexity": round(perplexity(total, tokens), 4),
    }
