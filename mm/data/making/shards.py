"""Shards made of images and captions wherever they lie, by runs that may be killed and go on."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mm.data.ahead import map_ahead
from mm.data.counting import add_counts
from mm.data.making.items import Item, Items, LeftOut, file_state, gather
from mm.data.making.packing import LEFT_OUT, Outcome, Packer, Packing
from mm.data.making.reworking import Preparation, Rework
from mm.data.making.selection import AddedCaptions, CaptionFile, ImageList, Selection
from mm.data.parallel import usable_cpus
from mm.data.samples import Tally
from mm.data.shards.manifest import Manifest

_AHEAD = 4  # images in work or waiting, for each worker

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Args:
        images: where the images lie that files name; beside the file if None.
        language: of captions in files that don't say it.
        listed: a file that names the images to choose; None for all.
        add: ``LANGUAGE=FILE``, each a file whose captions are added.
    """

    images: Path | None = None
    language: str = "en"
    listed: Path | None = None
    add: Sequence[str] = ()


@dataclass
class Made:
    """What was made.

    Args:
        manifests: of each split that has samples; ``""`` names the only one.
        counts: how often what happened, by the names of ``mm.data.making.packing``.
        members: members of shards that aren't carried over, by suffix.
        not_found: how many listed images no source has; None without a list.
        added_not_found: how many images that other files have captions for no source has.
        rows_rejected: how much in these files and the list can't be used; it is among the rejections.
    """

    manifests: dict[str, Manifest] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    members: Counter[str] = field(default_factory=Counter)
    not_found: int | None = None
    added_not_found: int = 0
    rows_rejected: int = 0

    @property
    def left_out(self) -> dict[str, int]:
        """How many samples were left out, by reason, most frequent first."""
        found = self.counts.most_common()
        return {name.removeprefix(LEFT_OUT): count for name, count in found if name.startswith(LEFT_OUT)}


def make_shards(
    sources: Sequence[Path],
    out: Path,
    reading: Reading = Reading(),
    selection: Selection = Selection(),
    rework: Rework = Rework(),
    packing: Packing = Packing(),
    *,
    tally: Tally,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Made:
    """Makes shards of everything that sources hold, with a manifest for each split.

    The bytes depend on sources and options alone. A run that was killed leaves its finished shards and a journal;
    another run with the same sources and options goes on from there, and ends with the very bytes of one that wasn't
    killed. Every item of the sources is written, left out, dropped as a duplicate, or rejected, and counted so.

    Args:
        sources: what ``gather`` takes.
        out: the folder; made where it doesn't exist. It must hold no shards but those of a run that was killed.
        reading: how sources are read.
        selection: which samples are wanted.
        rework: what becomes of images.
        packing: how samples are packed.
        tally: counts the samples written, and keeps the rejections.
        progress: called with how many items were read, and how many there are if that is known.
        workers: threads that read, decode and encode images; as many as there are CPUs if None.

    Raises:
        UsageError: a source or an option is wrong, or the folder can't be used; found before any image is read.
        DataError: no sample was left to write.
        ShardError: writing failed; the message says what is finished.
    """
    gathered = gather(sources, out, reading.images, reading.language)
    listed = None if reading.listed is None else ImageList(reading.listed)
    added = AddedCaptions(reading.add)
    prepare = Preparation(selection, rework, added)
    workers = workers or usable_cpus()

    def work(given: tuple[int, Item]) -> tuple[int, Item, Outcome]:
        return *given, prepare(given[1])

    with Packer(out, packing, _task(gathered, reading, selection, rework, packing), tally) as packer:
        made = _matched(gathered, listed, added, tally)
        made.counts = packer.counts
        items = packer.remaining(_chosen(gathered, listed, progress))
        for position, item, outcome in map_ahead(work, items, workers=workers, ahead=_AHEAD * workers):
            packer.take(position, item, outcome)
        made.manifests = packer.finish()
    made.members = sum((one.members_left_out() for one in gathered), Counter())
    return made


def _matched(gathered: Sequence[Items], listed: ImageList | None, added: AddedCaptions, tally: Tally) -> Made:
    """Finds out which images of the sources other files mean; rejects and counts what can't be used of the files."""
    files: list[CaptionFile | ImageList] = [*added.files]
    if listed is not None:
        files.append(listed)
    if files:
        for key in itertools.chain.from_iterable(items.keys() for items in gathered):
            for file in files:
                file.names.see(key)
    rejections = [rejection for file in files for rejection in file.rejections]
    tally.rejections += rejections
    return Made(
        not_found=None if listed is None else listed.names.missing,
        added_not_found=sum(file.names.missing for file in added.files),
        rows_rejected=len(rejections),
    )


def _chosen(gathered: Sequence[Items], listed: ImageList | None, progress: Progress | None) -> Iterator[Item]:
    """All items; those that aren't listed load as left out."""
    total = add_counts(items.count for items in gathered)
    for number, item in enumerate(itertools.chain.from_iterable(gathered), 1):
        if listed is None or not item.key or item.key in listed:
            yield item
        else:
            yield Item(item.key, lambda: LeftOut("not in the list"))
        if progress is not None:
            progress(number, total)


def _task(
    gathered: Sequence[Items], reading: Reading, selection: Selection, rework: Rework, packing: Packing
) -> dict[str, Any]:
    """What shards depend on, as JSON values."""
    task: dict[str, Any] = {
        f"source {number}": f"{items.name}: {items.state}" for number, items in enumerate(gathered, 1)
    }
    task |= {"images": reading.images, "language": reading.language, "add": list(map(_file, reading.add))}
    task |= {"list": reading.listed and _file(str(reading.listed))} | asdict(selection) | asdict(rework)
    task |= {"prefix": packing.prefix, "max_samples": packing.max_samples, "max_bytes": packing.max_bytes}
    task |= {"drop_duplicates": packing.drop_duplicates, "shares": packing.splits.shares}
    return dict(json.loads(json.dumps(task, default=str)))


def _file(name: str) -> str:
    """A file, with what differs when it has changed; it may follow a language and an equals sign."""
    return f"{name}, {file_state(Path(name.rpartition('=')[2]))}"
