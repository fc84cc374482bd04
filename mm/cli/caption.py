"""``mm caption``: captions photos, folders and shards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from mm.cli import common
from mm.data.samples import Tally
from mm.data.sources import count_images, iter_images, resolve_sources
from mm.errors import MMError, OutputError


class Lines:
    """A file of JSON lines, written under a temporary name until it is complete.

    Args:
        path: the file, or None to write nothing.

    Raises:
        OutputError: it can't be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part") if path else None
        self._file: TextIO | None = None
        if path and self._part:
            common.check_writable(path)
            try:
                self._file = self._part.open("w", encoding="utf-8")
            except OSError as error:
                raise OutputError(f"{self._part}: can't be written ({error.strerror})") from error

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends rows; they are on disk when this returns.

        Raises:
            MMError: no space is left; what was written before is kept, and named.
        """
        if self._file is None:
            return
        end = self._file.tell()
        try:
            self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self._file.flush()
        except OSError as error:
            self._abandon(end)
            what = "no space left" if error.errno == errno.ENOSPC else error.strerror
            raise MMError(f"{self.path}: {what}; the finished part is kept in {self._part}") from error

    def _abandon(self, end: int) -> None:
        """Cuts the part off behind its last whole line."""
        assert self._file is not None and self._part is not None
        with contextlib.suppress(OSError):
            self._file.close()
        os.truncate(self._part, end)
        self._file = None

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
            MMError: it can't be completed; what was written is kept, and named.
        """
        if self._file is None or self.path is None or self._part is None:
            return
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self.path)
        except OSError as error:
            raise MMError(f"{self.path}: {error.strerror}; the captions are kept in {self._part}") from error


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm caption``."""
    parser = common.Parser(prog=program, description="Caption photos, folders and shards.")
    parser.add_argument("paths", nargs="+", help="image files, folders, and .tar shards")
    common.add_model(parser)
    parser.add_argument("--language", default="en", help="language of the captions: en or zh for mm-tiny")
    parser.add_argument("--prompt", default="", help="words that captions begin with")
    common.add_generation(parser)
    parser.add_argument("--batch_size", type=int, default=16, help="images captioned together")
    parser.add_argument(
        "--output", type=Path | None, default=None, help="write captions here too, one JSON object a line"
    )
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)

    sources = resolve_sources(options.paths)
    output = Lines(options.output)

    import mm
    from mm.progress import progress

    config = common.generation_config(options)
    model = mm.load(options.model, options.device)
    model.require("caption", options.language)
    tally, rows, total = Tally(), [], count_images(sources)
    with progress("Captions") as update:
        images = common.decoded(iter_images(sources), tally, options.max_pixels)
        for batch in common.batches(images, options.batch_size):
            captions = model.caption(
                [image for _, image in batch], language=options.language, prompt=options.prompt, config=config
            )
            new: list[dict[str, Any]] = [
                {
                    "source": sample.source,
                    "key": sample.key,
                    "caption": caption.text,
                    "language": caption.language,
                    "score": round(caption.score, 4),
                    "complete": caption.complete,
                }
                for (sample, _), caption in zip(batch, captions, strict=True)
            ]
            output.write(new)
            if options.json:
                rows += new
            else:
                for row in new:
                    print(f"{row['source']}\t{row['caption']}", flush=True)
            update(tally.seen, total)
    output.finish()
    if options.json:
        common.print_json({"captions": rows, "used": tally.used, "rejected": common.rejections_json(tally)})
    if options.output and not options.json:
        print(f"{options.output}: {tally.used} captions", file=sys.stderr)
    return common.report_rejections(tally)
