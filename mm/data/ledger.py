"""What became of a split's samples: counted, written down, and held against the limit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm.data.opening import faults
from mm.data.samples import Rejection, Tally, rejection_line
from mm.errors import DataError, OutputError, ShardError

log = logging.getLogger(__name__)

SHOWN = 3  # problems that an error message lists


class Ledger:
    """Counts the samples of a split that are used or rejected, each once; keeps the rejections in a file.

    Args:
        split: its name.
        limit: the largest share of the samples that may be rejected, damaged shards allowed; None to refuse damaged
            shards and to allow any share of single samples.
        report: a file for one JSON object a line for each rejection; None for none.
        ranks: how many processes read the split together, each its share.
    """

    def __init__(self, split: str, limit: float | None, report: Path | None, ranks: int = 1) -> None:
        self.split = split
        self.limit = limit
        self.report = report
        self.ranks = ranks
        self.tally = Tally()
        self.found: list[Rejection] = []  # when samples were read
        self._known: set[tuple[str, str]] = set()
        self._told: Counter[str] = Counter()  # rejections by reason

    def begin(self, tally: Tally, where: str) -> None:
        """Takes up what was found before any sample was used, and begins the file anew.

        Args:
            tally: of all samples of the split.
            where: what the user named.

        Raises:
            ShardError: a shard is damaged, and nothing was said of a limit.
            DataError: none is left, or more are rejected than the limit allows.
        """
        self.tally = tally
        self._known = {(rejection.source, rejection.key) for rejection in tally.rejections}
        if self.report is not None:
            self.report.unlink(missing_ok=True)
        self._note(tally.rejections)
        self._check(tally.rejections)
        if not tally.used:
            reasons = ", ".join(tally.by_reason()) or "there are none"
            raise DataError(
                f"data.{self.split}: none of the {tally.seen} samples in {where} can be used: {reasons}", reasons
            )

    def add(self, rejections: Sequence[Rejection]) -> None:
        """Takes up samples that turned out to be unusable when they were read; known ones count once.

        Raises:
            ShardError: a shard was damaged since, and nothing was said of a limit.
            DataError: more are rejected than the limit allows.
        """
        if new := self._take(rejections):
            self._check(new)

    def restore(self, found: Sequence[dict[str, Any]]) -> None:
        """Takes up what a run had found in samples that it read before its checkpoint was saved.

        Raises:
            DataError: more are rejected than the limit allows.
        """
        self._take([Rejection(**rejection) for rejection in found])
        self._check([])

    def _take(self, rejections: Sequence[Rejection]) -> list[Rejection]:
        new = [rejection for rejection in rejections if (rejection.source, rejection.key) not in self._known]
        self._known |= {(rejection.source, rejection.key) for rejection in new}
        self.tally.used -= sum(rejection.samples for rejection in new)
        self.tally.rejections += new
        self.found += new
        self._note(new)
        return new

    def _note(self, rejections: Sequence[Rejection]) -> None:
        """Writes rejections down, and tells of the first of each reason."""
        for rejection in rejections:
            self._told[rejection.reason] += 1
            if self._told[rejection.reason] <= SHOWN:
                log.warning("data.%s: rejected: %s: %s", self.split, rejection.reason, rejection.detail)
            elif self._told[rejection.reason] == SHOWN + 1:
                log.warning("data.%s: rejected: %s: and more%s", self.split, rejection.reason, self._listed)
        if self.report is None or not rejections:
            return
        try:
            self.report.parent.mkdir(parents=True, exist_ok=True)
            with self.report.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(map(rejection_line, rejections))
        except OSError as error:
            raise OutputError(f"{self.report}: can't be written ({error.strerror})") from error

    @property
    def _listed(self) -> str:
        return f"; {self.report} lists all" if self.report is not None else ""

    def _check(self, new: Sequence[Rejection]) -> None:
        damage = faults(new)
        if self.limit is None and damage:
            shown = "; ".join(rejection.detail for rejection in damage[:SHOWN])
            more = f" and {len(damage) - SHOWN} more" if len(damage) > SHOWN else ""
            raise ShardError(
                f"data.{self.split}: damaged shards: {shown}{more}{self._listed}. Get them again, write clean ones "
                "with 'mm shards check --repair', or train on the rest with data.max_reject_rate",
                damage[0].reason,
            )
        # what this rank finds when it reads its share, the others find in theirs
        elsewhere = (self.ranks - 1) * sum(rejection.samples for rejection in self.found)
        share = (self.tally.rejected + elsewhere) / max(1, self.tally.seen)
        if self.limit is not None and share > self.limit:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self.tally.by_reason().items())
            raise DataError(
                f"data.{self.split}: {self.tally.rejected} of {self.tally.seen} samples were rejected, {share:.2%}, "
                f"more than data.max_reject_rate {self.limit:g} allows: {reasons}{self._listed}",
                "too many rejections",
            )
