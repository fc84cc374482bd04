"""``mm caption``: captions photos, folders and shards."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jsonargparse import Namespace

from mm.cli import common, decoding
from mm.data.samples import Sample, Tally
from mm.data.shots import read_shots
from mm.data.sources import count_images, iter_images, resolve_sources
from mm.errors import MMError, OutputError
from mm.files import sync_folder

if TYPE_CHECKING:
    from mm.pipeline import Caption


class Lines:
    """A file of JSON lines, written as ``NAME.part`` until it is complete. The part appears with the first row.

    Args:
        path: the file, or None to write nothing.

    Raises:
        OutputError: it can't be written, or the part of an earlier run is in the way.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        if path is None:
            return
        common.check_writable(path)
        self._part = path.with_name(f"{path.name}.part")
        try:
            kept = self._part.exists() and self._part.stat().st_size > 0
        except OSError as error:
            raise OutputError(f"{self._part}: can't be written ({error.strerror})") from error
        if kept:
            raise OutputError(
                f"{self._part}: holds what a run that didn't finish has written; rename it to keep it, or remove it"
            )

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends rows; they are on disk when this returns.

        Raises:
            MMError: they can't be written; what was written before is kept, and named.
        """
        if self.path is None:
            return
        file = self._open()
        end = file.tell()
        try:
            file.write(common.json_lines(rows))
            file.flush()
            os.fsync(file.fileno())
        except BaseException as error:
            self._abandon(end)
            if not isinstance(error, OSError):
                raise
            what = "no space left" if error.errno == errno.ENOSPC else error.strerror
            kept = f"the finished part is kept in {self._part}" if end else "nothing was finished"
            raise MMError(f"{self.path}: {what}; {kept}") from error

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
            MMError: it can't be completed; what was written is kept, and named.
        """
        if self.path is None:
            return
        try:
            self._open().close()
            self._part.replace(self.path)
        except OSError as error:
            raise MMError(f"{self.path}: {error.strerror}; the captions are kept in {self._part}") from error
        sync_folder(self.path.parent)

    def _open(self) -> BinaryIO:
        if self._file is None:
            try:
                file = self._part.open("ab")
            except OSError as error:
                raise MMError(f"{self._part}: can't be written ({error.strerror})") from error
            if file.tell():
                file.close()
                raise MMError(f"{self._part}: another run is writing it; choose another --output")
            sync_folder(self._part.parent)
            self._file = file
        return self._file

    def _abandon(self, end: int) -> None:
        """Cuts the part off behind its last whole line; one without any is removed."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.truncate(self._part, end)
            if not end:
                self._part.unlink()


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm caption``."""
    options = _options(arguments, program)
    sources = resolve_sources(options.paths)
    output = Lines(options.output)
    shots = [] if options.shots is None else read_shots(options.shots, options.max_pixels)

    import mm
    from mm.progress import progress

    config = decoding.generation_config(options, decoding.CAPTION)
    model = mm.load(options.model, options.device, options.precision)
    model.require("caption", options.language)
    if shots:
        model.require("shots")
    tally, rows, total = Tally(), [], count_images(sources)
    with progress("Captions") as update:
        images = common.decoded(iter_images(sources), tally, options.max_pixels)
        for batch in common.batches(images, options.batch_size):
            captions = model.caption(
                [image for _, image in batch],
                language=options.language,
                prompt=options.prompt,
                shots=shots,
                config=config,
                batch_size=options.batch_size,
            )
            new = [_row(sample, caption) for (sample, _), caption in zip(batch, captions, strict=True)]
            output.write(new)
            if options.json:
                rows += new
            else:
                for row in new:
                    print(f"{row['source']}\t{row['caption']}", flush=True)
            update(tally.seen, total)
    output.finish()
    if options.json:
        figures = {"captions": rows, "used": tally.used, "rejected": tally.rejected}
        common.print_json(figures | {"rejections": common.rejections_json(tally)})
    if options.output and not options.json:
        print(f"{options.output}: {tally.used} captions", file=sys.stderr)
    return common.report_rejections(tally)


def _options(arguments: Sequence[str], program: str) -> Namespace:
    parser = common.Parser(prog=program, description="Caption photos, folders and shards.")
    parser.add_argument("paths", nargs="+", help="image files, folders, and .tar shards")
    common.add_model(parser)
    parser.add_argument("--language", default="en", help="language of the captions: en or zh for mm-tiny")
    parser.add_argument("--prompt", default="", help="words that captions begin with")
    parser.add_argument(
        "--shots",
        type=Path | None,
        default=None,
        help='examples to follow, for models that take them: JSON lines {"image": path, "caption": text}',
    )
    decoding.add_generation(parser, decoding.CAPTION)
    parser.add_argument("--batch_size", type=int, default=16, help="images captioned together")
    parser.add_argument(
        "--output", type=Path | None, default=None, help="write captions here too, one JSON object a line"
    )
    common.add_max_pixels(parser)
    common.add_json(parser)
    return common.parse(parser, arguments)


def _row(sample: Sample, caption: Caption) -> dict[str, Any]:
    return {
        "source": sample.source,
        "key": sample.key,
        "caption": caption.text,
        "language": caption.language,
        "score": round(caption.score, 4),
        "complete": caption.complete,
    }
