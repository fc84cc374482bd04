"""Where a resumed run goes on: Lightning's counts of epochs and batches, made anew from the position in the data.

Lightning counts batches, which another batch size or number of ranks makes meaningless; and it guesses from the counts
at which moment they were saved, which goes wrong after a second interruption near the end of an epoch.
"""

from __future__ import annotations

from typing import Any


def goes_on(loops: dict[str, Any], epoch: int, batches: int, steps: int) -> None:
    """Lets training go on between two batches.

    Args:
        loops: ``loops`` of a checkpoint that was saved while training; changed in place.
        epoch: to go on with, from 0.
        batches: how many of the epoch's batches are done.
        steps: how many steps of the optimizer are done, which loggers count on from.
    """
    fit = loops["fit_loop"]
    progress, state = fit["epoch_loop.batch_progress"], fit["epoch_loop.state_dict"]
    state["_batches_that_stepped"] = steps - (not batches)  # Lightning adds one at an epoch's start
    done = progress["total"]["processed"]
    progress["current"] = dict.fromkeys(progress["current"], batches)
    progress["total"] = dict.fromkeys(progress["total"], done)
    progress["is_last_batch"] = False
    counts = {"ready": epoch + 1, "started": epoch + bool(batches), "processed": epoch, "completed": epoch}
    fit["epoch_progress"] = {"total": counts, "current": dict(counts)}


def recount(loops: dict[str, Any], batches: int) -> None:
    """Counts the batches of the epoch at hand as they are now, and leaves the moment as it is: in validation.

    Args:
        loops: ``loops`` of a checkpoint that was saved during validation; changed in place.
        batches: how many of the epoch's batches are done.
    """
    counts = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    more = batches - counts["processed"]
    counts.update({name: count + more for name, count in counts.items()})
