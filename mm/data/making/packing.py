"""Samples packed into the shards of their splits, with a journal from which a killed run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.data.making.items import Item, LeftOut
from mm.data.making.journal import FinishedShard, Journal, is_begun
from mm.data.making.reworking import Prepared
from mm.data.making.splitting import ONE, Splits
from mm.data.samples import Rejection, Tally
from mm.data.shards.keys import UniqueKeys, clean_key
from mm.data.shards.manifest import Manifest, ManifestEntry
from mm.data.shards.writing import NO_SAMPLES, ShardWriter, prepare_folder, refuse_shards
from mm.errors import DataError, OutputError, ShardError
from mm.files import make_folder

DUPLICATES = "duplicates"
DUPLICATE_CAPTIONS = "captions of duplicates"
RENAMED = "keys made unique"
UNCAPTIONED = "samples without captions"
ADDED = "captions added"
LEFT_OUT = "left out: "

Outcome = Prepared | LeftOut | Rejection


@dataclass(frozen=True)
class Packing:
    """How samples are packed.

    Args:
        prefix: how the names of the shards begin.
        max_samples: the most samples in a shard.
        max_bytes: the most bytes of images and captions in a shard that has more than one sample.
        drop_duplicates: whether an image that occurred before, to the byte, is dropped with its captions.
        splits: the splits that samples are dealt out to, a folder each; ``""`` is the folder itself.
    """

    prefix: str = "shard"
    max_samples: int = 1000
    max_bytes: int = 1 << 28
    drop_duplicates: bool = False
    splits: Splits = ONE


class Packer:
    """Writes the shards of all splits. Use it in a ``with`` block; what isn't finished at the end of it is removed.

    Each item belongs to one split, by its key. The records of a split's finished shards hold what became of its items
    up to some position, so that a further run passes over these. An item's outcome depends on items before it alone,
    and these are all in records or dealt with again, whichever splits' shards were finished.

    Args:
        out: the folder; made where it doesn't exist. It must hold no shards but those of a run that was killed.
        packing: how samples are packed.
        task: sources and options, as JSON values.
        tally: counts samples, and keeps the rejections.

    Raises:
        OptionError: an option is out of range.
        OutputError: the folder can't be used.
    """

    def __init__(self, out: Path, packing: Packing, task: dict[str, Any], tally: Tally) -> None:
        self.counts: Counter[str] = Counter()
        self._out, self._packing, self._tally = out, packing, tally
        folders = {name: out / name for name in packing.splits.names}
        keys = UniqueKeys()
        writers = {
            name: ShardWriter(folder, packing.prefix, packing.max_samples, packing.max_bytes, keys)
            for name, folder in folders.items()
        }
        for folder in () if is_begun(out) else dict.fromkeys([out, *folders.values()]):
            refuse_shards(folder)
        make_folder(out)
        self._journal = Journal(out, task)  # another run must not lose what it hasn't finished
        try:
            for folder in dict.fromkeys([out, *folders.values()]):
                prepare_folder(folder)
        except OutputError:
            self._journal.close()
            raise
        self._digests: set[bytes] = set()
        self._splits = {name: _Split(name, writer, self._journal) for name, writer in writers.items()}
        for record in self._journal.records:
            self._splits[record.split].restore(record)
            self._digests.update(map(bytes.fromhex, record.digests))
            self.counts.update(record.counts)
            tally.use(record.nsamples)
            tally.rejections += record.rejections
            for key in record.keys:
                keys.take(key)
        self._journal.records.clear()

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.writer.abandon()
        self._journal.close()

    def remaining(self, items: Iterable[Item]) -> Iterator[tuple[int, Item]]:
        """The items that are to be dealt with, each with its position: one more than the number of those before."""
        for position, item in enumerate(items, 1):
            if position > self._split(item.key).done:
                yield position, item

    def take(self, position: int, item: Item, outcome: Outcome) -> None:
        """Takes what became of an item; positions only go up.

        Raises:
            ShardError: writing failed.
        """
        split = self._split(item.key)
        counts: Counter[str] = Counter()
        try:
            if isinstance(outcome, Prepared):
                counts = self._write(split, outcome)
                self._tally.use(1 - counts[DUPLICATES])
            elif isinstance(outcome, LeftOut):
                counts[LEFT_OUT + outcome.reason] = 1
            else:
                self._reject(split, outcome)
        except ShardError:
            raise
        except DataError as error:
            assert isinstance(outcome, Prepared)  # what raises is writing one
            self._reject(split, Rejection.of(error, outcome.sample.source, outcome.sample.key))
        split.dealt_with(position, counts)
        self.counts += counts

    def finish(self) -> dict[str, Manifest]:
        """Finishes all shards, writes the manifests, and removes the journal.

        Returns:
            The manifest of each split that has samples.

        Raises:
            DataError: no sample was left to write.
            ShardError: writing failed.
        """
        manifests: dict[str, Manifest] = {}
        for split in self._splits.values():
            with _writing(split.writer):
                split.writer.finish_shard()
        for name, split in self._splits.items():
            if split.writer.finished:
                manifests[name] = Manifest(split.writer.finished)
                with _writing(split.writer):
                    manifests[name].write(self._out / name)
        self._journal.remove()
        if not manifests:
            reasons = "".join(f"; {name} ({count})" for name, count in self.counts.most_common())
            raise DataError(f"{self._out}: no sample was left to write{reasons}", NO_SAMPLES)
        return manifests

    def _split(self, key: str) -> _Split:
        return self._splits[self._packing.splits.of(key)]

    def _write(self, split: _Split, prepared: Prepared) -> Counter[str]:
        """Writes a sample unless it is a duplicate, and says what is to be counted."""
        sample, digest = prepared.sample, prepared.digest
        if self._packing.drop_duplicates and digest in self._digests:
            return Counter({DUPLICATES: 1, DUPLICATE_CAPTIONS: sum(map(len, sample.captions.values()))})
        with _writing(split.writer):
            key = split.writer.write(sample)
        split.keys.append(key)
        if self._packing.drop_duplicates:
            self._digests.add(digest)
            split.digests.append(digest.hex())
        renamed = key != clean_key(sample.key)
        return Counter({RENAMED: int(renamed), UNCAPTIONED: int(not sample.captions), ADDED: prepared.added})

    def _reject(self, split: _Split, rejection: Rejection) -> None:
        split.rejections.append(rejection)
        self._tally.reject(rejection)


class _Split:
    """A split being written: what happened since its last finished shard, which is recorded with the next."""

    def __init__(self, name: str, writer: ShardWriter, journal: Journal) -> None:
        self.name, self.writer, self._journal = name, writer, journal
        self.done = self._position = 0
        self._begin()
        writer.on_finish = self._record

    def restore(self, record: FinishedShard) -> None:
        """Takes up a shard that an earlier run finished."""
        self.writer.finished.append(record.entry(self.writer.out))
        self.done = self._position = record.position

    def dealt_with(self, position: int, counts: Counter[str]) -> None:
        """Notes that all items of the split up to a position are in shards, counted or rejected."""
        self._position = position
        self.counts += counts

    def _begin(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rejections: list[Rejection] = []
        self.keys: list[str] = []
        self.digests: list[str] = []

    def _record(self, entry: ManifestEntry) -> None:
        assert entry.bytes is not None and entry.sha256 is not None
        self._journal.add(
            FinishedShard(
                self.name,
                entry.url,
                entry.nsamples,
                entry.bytes,
                entry.sha256,
                self._position,
                dict(self.counts),
                self.rejections,
                self.keys,
                self.digests,
            )
        )
        self._begin()


@contextmanager
def _writing(writer: ShardWriter) -> Iterator[None]:
    """Says where writing failed and what is finished, if it fails."""
    try:
        yield
    except (OSError, OutputError) as error:
        what = f"{writer.failure(error)}; {writer.kept}; the same command goes on from there"
        raise ShardError(what, "write failed") from error
