"""``mm eval``: measures captioning or retrieval on shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mm.cli import common, decoding
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards.manifest import Manifest
from mm.errors import OptionError, ShardError, UsageError
from mm.files import write_whole

if TYPE_CHECKING:
    from mm.generation import GenerationConfig
    from mm.pipeline import Pipeline

TASKS = ("captioning", "retrieval")


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm eval``."""
    options = _options(arguments, program)

    from mm.data.opening import find_manifest

    manifest = find_manifest(options.data)

    import mm

    config = decoding.generation_config(options, decoding.CAPTION)
    if options.java:
        from mm.metrics.java import JAVA_METRICS, require_java_metrics

        require_java_metrics(tuple(JAVA_METRICS), options.language)
    model = mm.load(options.model, options.device, options.precision)
    model.require("caption" if options.task == "captioning" else "embed", options.language)
    total = manifest.total if options.limit is None else min(manifest.total, options.limit)
    samples = itertools.islice(common.captioned(manifest, [options.language]), options.limit)
    tally, problem = Tally(), None
    if options.task == "captioning":
        rows = _captions(model, samples, tally, total, options, config)
        if options.output is not None:
            problem = _write(options.output, rows)
        figures = _scores(rows, options) | {"strategy": str(config)}
    else:
        figures = _retrieval(model, samples, tally, total, options)
    if not tally.used:
        problem = f"{' '.join(options.data)}: no image with a caption could be used"
    split = _split(manifest, tally)
    figures |= {
        "images": tally.used,
        "rejected": tally.rejected,
        "split": split,
        "model": model.name,
        "language": options.language,
    }
    line = f"{program}: {problem}" if problem is not None else None
    return common.report(options.task, figures, tally, as_json=options.json, problem=line)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(prog=program, description="Measure a model on captioned shards.")
    parser.add_argument("task", help="captioning (BLEU, ROUGE-L, CIDEr-D) or retrieval (R@k, median rank)")
    parser.add_argument("--data", nargs="+", required=True, help="folders, shards or patterns of shards")
    common.add_model(parser)
    parser.add_argument("--language", default="en", help="language of captions and queries")
    decoding.add_generation(parser, decoding.CAPTION)
    parser.add_argument("--batch_size", type=int, default=32, help="images encoded together")
    parser.add_argument("--limit", type=int | None, default=None, help="measure the first so many images only")
    parser.add_argument("--java", action="store_true", help="METEOR and SPICE too; needs Java and pycocoevalcap")
    parser.add_argument("--output", type=Path | None, default=None, help="write captions with their references here")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.task not in TASKS:
        raise UsageError(f"no task {options.task!r}; tasks are {' and '.join(TASKS)}")
    if options.task == "retrieval":
        for name in ("output", "java"):
            if options[name]:
                raise OptionError(f"--{name} doesn't go with retrieval, which makes no captions; leave it out")
    if options.output is not None:
        common.check_writable(options.output)
    return options


def _split(manifest: Manifest, tally: Tally) -> str | None:
    """The hash that says which split was measured; None, and a rejection that says why, where there is none."""
    try:
        return manifest.digest[:16]
    except ShardError as error:
        detail = f"the split has no hash, because a shard can't be read whole: {error}"
        tally.reject(Rejection("split", "", "split without a hash", detail, 0))
        return None


def _captions(
    model: Pipeline,
    samples: Iterable[Sample | Rejection],
    tally: Tally,
    total: int,
    options: Namespace,
    config: GenerationConfig,
) -> list[dict[str, Any]]:
    """Captions images; one row for each, with its references."""
    from mm.progress import progress

    rows = []
    with progress("Captions") as update:
        for batch in common.batches(common.decoded(samples, tally, options.max_pixels), options.batch_size):
            images = [image for _, image in batch]
            found = model.caption(images, language=options.language, config=config, batch_size=options.batch_size)
            for (sample, _), caption in zip(batch, found, strict=True):
                references = sample.captions[options.language]
                rows.append({"source": sample.source, "caption": caption.text, "references": references})
            update(tally.seen, total)
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> str | None:
    """Writes rows as JSON lines; gives what went wrong, if anything."""
    try:
        write_whole(path, common.json_lines(rows))
    except OSError as error:
        return f"{path}: the captions couldn't be written ({error.strerror})"
    return None


def _scores(rows: list[dict[str, Any]], options: Namespace) -> dict[str, Any]:
    from mm.metrics.captioning import score_captions
    from mm.metrics.java import JAVA_METRICS

    if not rows:
        return {}
    # Numbers are the keys: sources repeat where a key does, and where a shard is named twice.
    references = {str(number): row["references"] for number, row in enumerate(rows)}
    candidates = {str(number): row["caption"] for number, row in enumerate(rows)}
    java = tuple(JAVA_METRICS) if options.java else ()
    return score_captions(references, candidates, options.language, java=java)


def _retrieval(
    model: Pipeline, samples: Iterable[Sample | Rejection], tally: Tally, total: int, options: Namespace
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
                texts += known
            vectors.append(model.embed_images([image for _, image in batch], options.batch_size))
            update(tally.seen, total)
    if not vectors:
        return {}
    figures = retrieval_metrics(np.concatenate(vectors), model.embed_text(texts), np.array(owner))
    return {**figures, "captions": len(texts)}
