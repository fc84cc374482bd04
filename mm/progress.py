"""Progress bars with rate and remaining time, for everything that takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, unit: str = "images", *, shown: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar on standard error while the block runs; nothing where standard error isn't a terminal.

    What is printed meanwhile appears above the bar where standard output is a terminal too, else where it belongs.

    Args:
        title: what is being done.
        unit: what is counted.
        shown: False for no bar, where single characters are printed meanwhile: a bar holds them back to the line's end.

    Returns:
        A function to call with how many are done, and how many there are (None if unknown).
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, {{task.fields[rate]}}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden, redirected = not (shown and console.is_terminal), sys.stdout.isatty()
    with Progress(*columns, console=console, disable=hidden, transient=True, redirect_stdout=redirected) as bar:
        task = bar.add_task(title, total=None, rate="-")

        def update(done: int, total: int | None = None) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.1f}" if speed else "-")

        yield update
