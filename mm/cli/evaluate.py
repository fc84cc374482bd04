"""``mm eval``: measures captioning or retrieval on shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.cli import common
from mm.data.manifest import Manifest
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards import read_shard
from mm.data.tokenizer import clean_caption
from mm.errors import DataError, OutputError, UsageError
from mm.files import write_whole

if TYPE_CHECKING:
    from mm.pipeline import Pipeline

TASKS = ("captioning", "retrieval")


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm eval``."""
    parser = common.Parser(prog=program, description="Measure a model on captioned shards.")
    parser.add_argument("task", help="captioning (BLEU, ROUGE-L, CIDEr-D) or retrieval (R@k, median rank)")
    parser.add_argument("--data", nargs="+", required=True, help="folders, shards or patterns of shards")
    common.add_model(parser)
    parser.add_argument("--language", default="en", help="language of captions and queries")
    common.add_generation(parser)
    parser.add_argument("--batch_size", type=int, default=32, help="images encoded together")
    parser.add_argument("--limit", type=int | None, default=None, help="measure the first so many images only")
    parser.add_argument("--java", action="store_true", help="METEOR and SPICE too; needs Java and pycocoevalcap")
    parser.add_argument("--output", type=Path | None, default=None, help="write captions with their references here")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.task not in TASKS:
        raise UsageError(f"no task {options.task!r}; tasks are {' and '.join(TASKS)}")
    if options.output is not None:
        common.check_writable(options.output)

    from mm.data.datamodule import expand

    manifest = Manifest.of(expand(options.data))

    import mm

    config = common.generation_config(options)
    if options.java:
        from mm.metrics.java import JAVA_METRICS, require_java_metrics

        require_java_metrics(tuple(JAVA_METRICS), options.language)
    model = mm.load(options.model, options.device)
    model.require("caption" if options.task == "captioning" else "embed", options.language)
    tally = Tally()
    samples = _captioned(manifest, options.language, options.limit)
    if options.task == "captioning":
        figures = _captioning(model, samples, tally, manifest.total, options, config)
    else:
        figures = _retrieval(model, samples, tally, manifest.total, options)
    figures |= {
        "images": tally.used,
        "rejected": tally.rejected,
        "split": manifest.digest[:16],
        "model": model.name,
        "language": options.language,
    }
    if options.json:
        common.print_json(figures | {"rejections": common.rejections_json(tally)})
    else:
        common.print_figures(options.task, figures)
    return common.report_rejections(tally)


def _captioned(manifest: Manifest, language: str, limit: int | None) -> Iterator[Sample | Rejection]:
    count = 0
    for shard in manifest.shards:
        for item in read_shard(shard.path, shard):
            if count == limit:
                return
            count += 1
            if isinstance(item, Sample) and not item.captions.get(language):
                yield Rejection(item.source, item.key, "missing caption", f"no caption in {language!r}")
            else:
                yield item


def _captioning(
    model: Pipeline, samples: Iterator[Sample | Rejection], tally: Tally, total: int, options: Any, config: Any
) -> dict[str, Any]:
    from mm.metrics.captioning import score_captions
    from mm.metrics.java import JAVA_METRICS
    from mm.progress import progress

    references: dict[str, list[str]] = {}
    candidates: dict[str, str] = {}
    with progress("Captions") as update:
        for batch in common.batches(common.decoded(samples, tally, options.max_pixels), options.batch_size):
            found = model.caption([image for _, image in batch], language=options.language, config=config)
            for (sample, _), caption in zip(batch, found, strict=True):
                references[sample.source] = sample.captions[options.language]
                candidates[sample.source] = caption.text
            update(tally.seen, options.limit or total)
    if not candidates:
        raise DataError(f"{' '.join(options.data)}: no image with a caption could be used", "missing caption")
    if options.output is not None:
        lines = [
            json.dumps({"source": key, "caption": candidates[key], "references": texts}, ensure_ascii=False) + "\n"
            for key, texts in references.items()
        ]
        try:
            write_whole(options.output, "".join(lines).encode())
        except OSError as error:
            raise OutputError(f"{options.output}: can't be written ({error.strerror})") from error
    java = tuple(JAVA_METRICS) if options.java else ()
    figures: dict[str, Any] = dict(score_captions(references, candidates, options.language, java=java))
    return figures | {"beams": options.beams}


def _retrieval(
    model: Pipeline, samples: Iterator[Sample | Rejection], tally: Tally, total: int, options: Any
) -> dict[str, Any]:
    import numpy as np

    from mm.metrics.retrieval import retrieval_metrics
    from mm.progress import progress

    vectors, texts, owner, images = [], [], [], 0
    with progress("Embeddings") as update:
        for batch in common.batches(common.decoded(samples, tally, options.max_pixels), options.batch_size):
            for sample, _ in batch:
                known = sample.captions[options.language]
                owner += [images] * len(known)
                images += 1
                texts += [clean_caption(text) for text in known]
            vectors.append(model.embed_images([image for _, image in batch]))
            update(tally.seen, options.limit or total)
    if not vectors:
        raise DataError(f"{' '.join(options.data)}: no image with a caption could be used", "missing caption")
    figures: dict[str, Any] = dict(retrieval_metrics(np.concatenate(vectors), model.embed_text(texts), np.array(owner)))
    return figures | {"captions": len(texts)}
