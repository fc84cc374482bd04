"""What several commands share: parsing, reading images, and reporting."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, Namespace

from mm.data.ahead import map_ahead
from mm.data.images import DEFAULT_MAX_PIXELS, decode_image
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards.layout import MISSING_CAPTION
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import read_shard
from mm.errors import ImageError, OptionError, OutputError, ShardError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

SMALLEST = {"batch_size": 1, "limit": 0, "max_pixels": 1, "max_samples": 1, "max_bytes": 1}


def wrong_use(program: str, message: str) -> NoReturn:
    """Prints what is wrong with the arguments of a command in one line, and exits with status 2."""
    print(f"{program}: {' '.join(str(message).split())}; see '{program} --help'", file=sys.stderr)
    raise SystemExit(2)


class Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong, and exits with status 2."""
        wrong_use(self.prog, message)


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parses a command's arguments.

    Raises:
        OptionError: a number is too small.
    """
    options = parser.parse_args(list(arguments))
    for name, smallest in SMALLEST.items():
        value = options.get(name)
        if value is not None and value < smallest:
            raise OptionError(f"--{name} must be at least {smallest}, not {value}")
    return options


def add_model(parser: ArgumentParser, default: str | None = "mm-tiny") -> None:
    """Adds ``--model``, ``--device`` and ``--precision``."""
    parser.add_argument("--model", type=str | None, default=default, help="a name that 'mm models' explains")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; a GPU if there is one")
    parser.add_argument(
        "--precision",
        default="auto",
        help="float32, bfloat16, int8; or auto, the quickest that the model is known to be good in",
    )


def add_compile(parser: ArgumentParser) -> None:
    """Adds ``--compile``."""
    parser.add_argument(
        "--compile", action="store_true", help="compile the steps of decoding first: for many images, on a GPU"
    )


def add_json(parser: ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def add_max_pixels(parser: ArgumentParser) -> None:
    """Adds ``--max_pixels``."""
    parser.add_argument("--max_pixels", type=int, default=DEFAULT_MAX_PIXELS, help="largest image that is decoded")


def decoded(
    items: Iterable[Sample | Rejection],
    tally: Tally,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    ready: Callable[[Image], Any] | None = None,
) -> Iterator[tuple[Sample, Any]]:
    """Decodes the images of samples, ahead of whoever takes them; what can't be decoded is rejected.

    Args:
        items: what a reader yields.
        tally: counts used and rejected samples.
        max_pixels: the most pixels an image may have.
        ready: what else is done to each image ahead, such as a model's own scaling; None for nothing.
    """

    def decode(item: Sample | Rejection) -> tuple[Sample, Any] | Rejection:
        if isinstance(item, Rejection):
            return item
        try:
            image = decode_image(item.image, item.source, max_pixels)
        except ImageError as error:
            return Rejection.of(error, item.source, item.key)
        return item, image if ready is None else ready(image)

    # decoded photos of a camera take tens of megabytes each, those made ready for a model less than one
    return tally.accept(map_ahead(decode, items, ahead=8 if ready is None else 64))


def captioned(manifest: Manifest, languages: Sequence[str]) -> Iterator[Sample | Rejection]:
    """Reads shards, fetching remote ones; samples without a caption in any of the languages are rejected."""
    from mm.data.remote.cache import ShardCache

    cache = ShardCache()
    for shard in manifest.shards:
        try:
            path = cache.fetch(shard)
        except ShardError as error:
            yield Rejection.of(error, shard.name, samples=shard.nsamples)
            continue
        for item in read_shard(path, shard):
            if isinstance(item, Sample) and (lack := item.lacks(languages)):
                yield Rejection(item.source, item.key, MISSING_CAPTION, lack)
            else:
                yield item


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Groups items into lists of ``size``; the last may be shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def check_writable(path: Path) -> None:
    """Makes sure, before any work is done, that a file can be written under a temporary name and then renamed.

    Leaves nothing behind, and a file that is there already as it is.

    Raises:
        OutputError: it can't.
    """
    try:
        if path.exists():
            if not path.is_file():
                raise OutputError(f"{path}: can't be written (it isn't a regular file)")
            with path.open("ab"):
                pass
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"):
            pass
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror})") from error


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Gives the content of a file of JSON lines."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return lines.encode("utf-8", "backslashreplace")  # bytes of a file name that aren't UTF-8


def print_json(result: dict[str, Any]) -> None:
    """Prints one JSON object on standard output."""
    print(json.dumps(result, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, errors: bool = False) -> None:
    """Prints a table on standard output, or on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if number == 0 else "default")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(stderr=errors, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 1000  # whole lines for files and pipes
    console.print(title, style="bold")
    console.print(table)


def print_figures(title: str, figures: dict[str, Any]) -> None:
    """Prints figures as a table of two columns."""
    print_table(title, ("figure", "value"), list(figures.items()))


def report(title: str, figures: dict[str, Any], tally: Tally, *, as_json: bool, problem: str | None = None) -> int:
    """Prints figures, then what went wrong, then what was rejected.

    Args:
        title: what the figures are about.
        figures: name to value.
        tally: what was rejected.
        as_json: whether figures and rejections are printed as one JSON object.
        problem: a line that says what went wrong, or None.

    Returns:
        The exit status: 0 where nothing went wrong and nothing was rejected, else 1.
    """
    if as_json:
        print_json(figures | {"rejections": rejections_json(tally)})
    else:
        print_figures(title, figures)
    return report_rejections(tally, problem)


def report_rejections(tally: Tally, problem: str | None = None) -> int:
    """Prints what was rejected and why, as the last table.

    Args:
        tally: what was rejected.
        problem: a line that says what else went wrong, printed before the table; or None.

    Returns:
        The exit status: 0 where nothing was rejected and nothing went wrong, else 1.
    """
    if problem is not None:
        print(problem, file=sys.stderr)
    if tally.ok:
        return int(problem is not None)
    rows = [(r.reason, r.source, r.detail) for r in sorted(tally.rejections, key=lambda r: (r.reason, r.source))]
    print_table(f"Rejected: {tally.rejected} of {tally.seen}", ("reason", "source", "detail"), rows, errors=True)
    return 1


def rejections_json(tally: Tally) -> list[dict[str, str]]:
    """Gives rejections as JSON values."""
    return [{"source": r.source, "key": r.key, "reason": r.reason, "detail": r.detail} for r in tally.rejections]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
