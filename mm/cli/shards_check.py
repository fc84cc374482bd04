"""``mm shards check``: says everything that is wrong with shards, and writes clean ones."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.cli import common
from mm.data.counting import counter
from mm.errors import DataError, OptionError, UsageError

if TYPE_CHECKING:
    from mm.data.reports.checking import ShardReport
    from mm.data.samples import Rejection

LISTED = 200
"""The most problems that are printed one by one; ``--json`` gives all."""


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm shards check``."""
    parser = common.Parser(
        prog=program,
        description="Read shards from start to end, say what is wrong, and exit with status 1 if anything is.",
    )
    parser.add_argument("shards", nargs="*", help="folders of shards, and shards")
    parser.add_argument("--captions", action="store_true", help="samples must have a caption")
    parser.add_argument("--decode", action="store_true", help="decode every image, not only its header")
    parser.add_argument(
        "--repair",
        type=Path | None,
        default=None,
        metavar="OUT",
        help="folder for clean shards, and a list of the rest",
    )
    parser.add_argument(
        "--write_manifest", action="store_true", help="write manifest.json where there is none and nothing is wrong"
    )
    parser.add_argument(
        "--leaks",
        nargs=2,
        default=None,
        metavar=("TRAIN", "TEST"),
        help="find images of one split that resemble another's",
    )
    parser.add_argument("--html", type=Path | None, default=None, help="file for a page that shows what --leaks found")
    common.add_max_pixels(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if bool(options.shards) == (options.leaks is not None):
        raise UsageError(f"{program}: give the shards to check, or --leaks with two folders of shards")
    if options.leaks is not None:
        from mm.cli.shards_leaks import report_leaks

        train, test = options.leaks
        return report_leaks(train, test, options.html, options.max_pixels, as_json=options.json)
    if options.html is not None:
        raise OptionError("--html draws what --leaks finds; 'mm shards stats --html' draws what shards hold")
    return _check(options)


def _check(options: Any) -> int:
    from mm.data.reports.checking import check_shards, unlisted, write_manifests
    from mm.data.shards.writing import prepare_folder, refuse_shards
    from mm.data.sources import count_samples, find_shards
    from mm.progress import progress

    if options.repair is not None:
        refuse_shards(options.repair)
        prepare_folder(options.repair)
    total = count_samples(find_shards(options.shards)[0])
    with progress("Check", "samples") as update:
        report = check_shards(
            options.shards, counter(update, total), options.captions, options.decode, options.max_pixels
        )
    figures: dict[str, Any] = {
        "shards": len(report.shards),
        "samples": report.samples,
        "problems": len(report.problems),
    }
    if options.repair is not None:
        figures |= _repair(report, options.repair)
    refusal = None
    if options.write_manifest:
        try:
            figures["manifests_written"] = ", ".join(map(str, write_manifests(report))) or None
        except (DataError, UsageError) as error:
            refusal = str(error)
    if options.json:
        common.print_json(figures | {"rejections": [asdict(problem) for problem in report.problems]})
    else:
        common.print_figures(", ".join(options.shards), figures)
    for line in (refusal, None if options.write_manifest or not report.ok else _offer(unlisted(report))):
        if line is not None:
            print(line, file=sys.stderr)
    _print_problems(report)
    return 0 if report.ok and refusal is None else 1


def _repair(report: ShardReport, out: Path) -> dict[str, Any]:
    """Writes clean shards, where anything is wrong; gives figures about it."""
    from mm.data.reports.repairing import repair_shards
    from mm.progress import progress

    if report.ok:
        with suppress(OSError):
            out.rmdir()  # made to see that it can be written to; one that holds something stays
        return {"repaired_to": None}
    with progress("Repair", "samples") as update:
        repair = repair_shards(report, out, counter(update, sum(shard.samples for shard in report.shards)))
    return {
        "repaired_to": str(out),
        "shards_written": len(repair.manifest.shards) if repair.manifest is not None else 0,
        "samples_written": repair.tally.used,
        "samples_left_out": repair.tally.rejected,
        "rejects": str(repair.rejects),
    }


def _offer(folders: Iterable[Path]) -> str | None:
    """A line about folders that have no manifest."""
    names = ", ".join(map(str, folders))
    return f"{names}: no manifest.json; --write_manifest writes it, so that later damage shows" if names else None


def _print_problems(report: ShardReport) -> None:
    """Prints how often what is wrong, and where, on standard error."""
    problems = report.problems
    if not problems:
        return
    counts = report.tally.by_reason().items()
    common.print_table(f"Problems: {len(problems)}", ("reason", "problems"), counts, errors=True)
    columns = ("shard", "key", "byte", "reason", "samples lost", "detail")
    common.print_table("Where", columns, map(_row, problems[:LISTED]), errors=True)
    if len(problems) > LISTED:
        print(f"{len(problems) - LISTED} more; --json lists all", file=sys.stderr)


def _row(problem: Rejection) -> tuple[object, ...]:
    shard = problem.source.removesuffix(f"/{problem.key}") if problem.key else problem.source
    return Path(shard).name, problem.key or None, problem.offset, problem.reason, problem.samples, problem.detail
