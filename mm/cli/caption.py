"""``mm caption``: captions photos, folders and shards."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mm.cli import common, decoding
from mm.cli.lines import Lines
from mm.data.samples import Sample, Tally
from mm.data.shots import read_shots
from mm.data.sources import count_images, iter_images, resolve_sources
from mm.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from mm.generation import GenerationConfig
    from mm.pipeline import Caption, Pipeline


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm caption``."""
    options = _options(arguments, program)
    sources = resolve_sources(options.paths)
    output = Lines(options.output)
    shots = [] if options.shots is None else read_shots(options.shots, options.max_pixels)

    import mm
    from mm.progress import progress

    config = decoding.generation_config(options, decoding.CAPTION)
    model = mm.load(options.model, options.device, options.precision, options.compile)
    model.require("caption", options.language)
    if shots:
        model.require("shots")
    draft = None if options.draft is None else mm.load(options.draft, options.device, options.precision)
    caption = Captioner(model, config, options, shots, draft)
    tally, rows, total, problems = Tally(), [], count_images(sources), Counter[str]()
    live = total == 1 and sys.stdout.isatty() and not options.json and caption.can_stream
    start = time.monotonic()
    with progress("Captions", shown=not live) as update:
        images = common.decoded(iter_images(sources), tally, options.max_pixels, model.ready)
        for batch in common.batches(images, options.batch_size):
            captions = [caption.live(*batch[0])] if live else caption.all([image for _, image in batch])
            problems.update(one.problem for one in captions if one.problem is not None)
            if options.json or options.output:
                new = [caption.row(sample, one) for (sample, _), one in zip(batch, captions, strict=True)]
                output.write(new)
                rows += new if options.json else []
            if not options.json and not live:
                for (sample, _), one in zip(batch, captions, strict=True):
                    _print(sample, one)
            update(tally.seen, total)
    output.finish()
    if options.json:
        figures = {"captions": rows, "used": tally.used, "rejected": tally.rejected}
        common.print_json(figures | {"rejections": common.rejections_json(tally)})
    elif options.output:
        speed = tally.used / max(1e-9, time.monotonic() - start)
        print(f"{options.output}: {tally.used} captions, {speed:.1f} images/s", file=sys.stderr)
    if problems:
        reasons = ", ".join(f"{count} {reason}" for reason, count in problems.most_common())
        print(f"degenerate captions: {problems.total()} of {tally.used} ({reasons})", file=sys.stderr)
    return common.report_rejections(tally)


class Captioner:
    """Captions images as the command line says.

    Args:
        model: what captions.
        config: how.
        options: of the command line.
        shots: images with captions whose example is followed.
        draft: a model that proposes tokens, or None.
    """

    def __init__(
        self,
        model: Pipeline,
        config: GenerationConfig,
        options: Namespace,
        shots: Sequence[tuple[Any, str]],
        draft: Pipeline | None,
    ) -> None:
        self.model = model
        self.config = config
        self.options = options
        self.shots = shots
        self.draft = draft

    @property
    def can_stream(self) -> bool:
        """Whether a caption can be shown as it is written."""
        several = max(self.config.captions, self.config.best_of) > 1
        return not (several or self.shots or self.draft)

    def all(self, images: Sequence[Tensor]) -> list[Caption]:
        """Captions images that were made ready."""
        return self.model.caption(
            images,
            language=self.options.language,
            prompt=self.options.prompt,
            shots=self.shots,
            config=self.config,
            retry=self.options.retry,
            draft=self.draft,
            batch_size=self.options.batch_size,
        )

    def live(self, sample: Sample, image: Tensor) -> Caption:
        """Captions an image, and prints the caption as it is written; another follows where it is degenerate."""
        pieces = self.model.stream(
            image, language=self.options.language, prompt=self.options.prompt, config=self.config
        )
        print(f"{sample.source}\t", end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
        caption = pieces.caption
        assert caption is not None  # it was written to its end
        if caption.problem is not None and self.options.retry:
            (caption,) = self.all([image])
            if caption.retried is not None:
                print(f"that {caption.retried}; another try:", file=sys.stderr)
                _print(sample, caption)
        return caption

    def row(self, sample: Sample, caption: Caption) -> dict[str, Any]:
        """Gives what is written of a caption as JSON."""
        row = {
            "source": sample.source,
            "key": sample.key,
            "caption": caption.text,
            "language": caption.language,
            "score": round(caption.score, 4),
            "log_probability": round(caption.log_probability, 4),
            "complete": caption.complete,
            "strategy": caption.strategy,
            "model": self.model.fingerprint,
            "precision": self.model.precision,
        }
        row |= {name: value for name in ("problem", "retried") if (value := getattr(caption, name)) is not None}
        if self.options.tokens:
            row["tokens"] = [[token.text, round(token.probability, 4)] for token in caption.tokens]
        if caption.alternatives:
            row["alternatives"] = [
                {"caption": other.text, "score": round(other.score, 4)} for other in caption.alternatives
            ]
        return row


def _print(sample: Sample, caption: Caption) -> None:
    for one in (caption, *caption.alternatives):
        print(f"{sample.source}\t{one}", flush=True)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(prog=program, description="Caption photos, folders and shards.")
    parser.add_argument("paths", nargs="+", help="image files, folders, and .tar shards")
    common.add_model(parser)
    common.add_compile(parser)
    parser.add_argument("--language", default="en", help="language of the captions: en or zh for mm-tiny")
    parser.add_argument("--prompt", default="", help="words that captions begin with")
    parser.add_argument(
        "--shots",
        type=Path | None,
        default=None,
        help='examples to follow, for models that take them: JSON lines {"image": path, "caption": text}',
    )
    parser.add_argument(
        "--retry", type=bool, default=True, help="caption again, in other ways, where a caption is degenerate"
    )
    parser.add_argument(
        "--draft", type=str | None, default=None, help="a smaller model that proposes tokens, for greedy and sample"
    )
    decoding.add_generation(parser, decoding.CAPTION)
    parser.add_argument("--batch_size", type=int, default=16, help="images captioned together")
    parser.add_argument(
        "--output", type=Path | None, default=None, help="write captions here too, one JSON object a line"
    )
    parser.add_argument("--tokens", action="store_true", help="write each token's probability too")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.compile and options.draft is not None:
        raise OptionError("--compile doesn't act with --draft; leave one of them out")
    if options.tokens and not (options.output or options.json):
        raise OptionError("--tokens acts with --output or --json alone; give one of them too")
    return options
