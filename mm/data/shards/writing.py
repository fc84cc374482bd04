"""Shards written whole or not at all, with their manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from mm.data.images import sniff_suffix
from mm.data.samples import Rejection, Sample, Tally, caption_document
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.finding import MANIFEST_NAME, find_tars
from mm.data.shards.keys import UniqueKeys, clean_key
from mm.data.shards.manifest import Manifest
from mm.errors import DataError, OptionError, OutputError, ShardError
from mm.files import make_folder, remove_leftovers, sync_folder

NO_SAMPLES = "no samples"

_PREFIX = re.compile(r"\w[\w-]*")
_TEMPORARY = ".{}.tmp"


def write_shards(
    samples: Iterable[Sample | Rejection],
    out: str | Path,
    prefix: str = "shard",
    max_samples: int = 1000,
    max_bytes: int = 1 << 28,
    progress: Callable[[int], None] | None = None,
    tally: Tally | None = None,
) -> Manifest:
    """Writes samples to ``prefix-000000.tar`` and so on, and then ``manifest.json``.

    Each shard gets its name when it is complete and on disk. If writing or reading stops early, the shards finished
    so far are kept, with a manifest. The same samples give the same bytes. A key that occurred before gets a number.

    Args:
        samples: what to write.
        out: the folder; made where it doesn't exist, and must hold no shards.
        prefix: how the names of the shards begin.
        max_samples: the most samples in a shard.
        max_bytes: the most bytes of images and captions in a shard that has more than one sample.
        progress: called with 1 after each sample, written or rejected.
        tally: counts the samples; without one, the first sample that can't be written raises.

    Returns:
        The manifest written.

    Raises:
        OptionError: a limit below 1, or a prefix that isn't a plain name.
        OutputError: the folder can't be written to, or holds shards; found before the first sample is read.
        DataError: there are no samples; or one can't be written and there is no tally.
        ShardError: writing failed, for instance for lack of space; the message names the finished shards.
    """
    out = Path(out)
    writer = ShardWriter(out, prefix, max_samples, max_bytes)
    refuse_shards(out)
    prepare_folder(out)
    try:
        for item in samples:
            _write_or_reject(writer, item, tally)
            if progress is not None:
                progress(1)
        writer.finish_shard()
        if not writer.finished:
            raise DataError(f"{out}: no sample was left to write", NO_SAMPLES)
        manifest = Manifest(writer.finished)
        manifest.write(out)
    except (OSError, OutputError) as error:
        writer.abandon()
        raise ShardError(f"{writer.failure(error)}; {_keep(writer, out)}", "write failed") from error
    except BaseException:
        writer.abandon()
        _keep(writer, out)
        raise
    return manifest


class ShardWriter:
    """Samples written to one shard after the other, each of which gets its name once it is complete and on disk.

    Args:
        out: the folder.
        prefix: how the names of the shards begin.
        max_samples: the most samples in a shard.
        max_bytes: the most bytes of images and captions in a shard that has more than one sample.
        keys: the keys that are taken; ``on_finish`` is called with each shard when it has got its name.

    Raises:
        OptionError: a limit below 1, or a prefix that isn't a plain name.
    """

    def __init__(
        self,
        out: Path,
        prefix: str = "shard",
        max_samples: int = 1000,
        max_bytes: int = 1 << 28,
        keys: UniqueKeys | None = None,
    ) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise OptionError(f"max_samples {max_samples} and max_bytes {max_bytes} must be at least 1")
        if not _PREFIX.fullmatch(prefix):
            raise OptionError(f"prefix {prefix!r} must be a plain name of letters, digits, '-' and '_'")
        self.finished: list[ManifestEntry] = []
        self.out = out
        self.on_finish: Callable[[ManifestEntry], None] | None = None
        self._prefix, self._max_samples, self._max_bytes = prefix, max_samples, max_bytes
        self._keys = UniqueKeys() if keys is None else keys
        self._file: _HashingFile | None = None
        self._tar: tarfile.TarFile | None = None
        self._count = self._bytes = 0

    @property
    def name(self) -> str:
        """The shard being written."""
        return f"{self._prefix}-{len(self.finished):06d}.tar"

    def write(self, sample: Sample) -> str:
        """Writes a sample, and finishes the shard before it where that is full.

        Returns:
            The key that it is written under.

        Raises:
            DataError: it isn't an image, or its captions or metadata can't be written.
            OSError: writing failed.
        """
        suffix = sniff_suffix(sample.image)
        if suffix is None:
            raise DataError(f"{sample.source}: isn't an image", "not an image")
        document = caption_document(sample)
        size = len(sample.image) + len(document)
        if self._count and (self._count >= self._max_samples or self._bytes + size > self._max_bytes):
            self.finish_shard()
        tar = self._tar or self._open()
        key = self._keys.take(clean_key(sample.key))
        for name, content in sorted([(suffix, sample.image), ("json", document)]):
            member = tarfile.TarInfo(f"{key}.{name}")
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
        self._count += 1
        self._bytes += size
        return key

    def finish_shard(self) -> None:
        """Completes the current shard, if there is one, and gives it its name."""
        if self._file is None or self._tar is None:
            return
        self._tar.close()
        self._file.close()
        path = self.out / self.name
        self._temporary.replace(path)
        sync_folder(self.out)
        entry = ManifestEntry(path.name, path, self._count, self._file.size, self._file.digest)
        self.finished.append(entry)
        self._file = self._tar = None
        self._count = self._bytes = 0
        if self.on_finish is not None:
            self.on_finish(entry)

    def abandon(self) -> None:
        """Removes the shard that isn't finished."""
        if self._file is not None:
            self._file.discard()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        self._file = self._tar = None

    def failure(self, error: OSError | OutputError) -> str:
        """Says where writing failed, and why."""
        return f"{self.out / self.name}: {error.strerror or error}" if isinstance(error, OSError) else str(error)

    @property
    def kept(self) -> str:
        """Says which shards are finished."""
        if not self.finished:
            return "no shard was finished"
        names = [entry.url for entry in self.finished]
        listed = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        total = sum(entry.nsamples for entry in self.finished)
        return f"finished and kept in {self.out}: {listed} ({total} samples)"

    @property
    def _temporary(self) -> Path:
        return self.out / _TEMPORARY.format(self.name)

    def _open(self) -> tarfile.TarFile:
        self._file = _HashingFile(open_file(self._temporary))
        self._tar = tarfile.open(fileobj=cast(BinaryIO, self._file), mode="w|")  # noqa: SIM115 (finish_shard closes it)
        return self._tar


class _HashingFile:
    """A file being written whose hash and size are known when it is closed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._discarded = False
        self.size = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        if not self._discarded:
            self._file.write(data)
            self._hash.update(data)
            self.size += len(data)
        return len(data)

    def close(self) -> None:
        """Closes the file once it is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Closes the file; anything still written to it is dropped."""
        self._discarded = True
        with contextlib.suppress(OSError):  # what was buffered doesn't matter any more
            self._file.close()


def open_file(path: Path) -> BinaryIO:
    """Opens a file for writing from its start."""
    return path.open("wb")


def refuse_shards(out: Path) -> None:
    """Makes sure that a folder holds no shards.

    Raises:
        OutputError: it does, or can't be read.
    """
    try:
        holds = out.is_dir() and ((out / MANIFEST_NAME).exists() or bool(find_tars(out)))
    except OSError as error:
        raise OutputError(f"{out}: can't be read ({error.strerror})") from error
    if holds:
        raise OutputError(f"{out}: already holds shards; choose an empty folder")


def prepare_folder(out: Path) -> None:
    """Makes a folder for shards, and removes what a run that was killed left unfinished in it.

    Raises:
        OutputError: it can't be made or written to.
    """
    make_folder(out)
    remove_leftovers(out / MANIFEST_NAME)
    for path in out.glob(_TEMPORARY.format("*.tar")):
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"{path}: can't be removed ({error.strerror})") from error


def _write_or_reject(writer: ShardWriter, item: Sample | Rejection, tally: Tally | None) -> None:
    try:
        if isinstance(item, Rejection):
            raise DataError(item.detail or f"{item.source}: {item.reason}", item.reason)
        writer.write(item)
    except DataError as error:
        if tally is None:
            raise
        tally.reject(item if isinstance(item, Rejection) else Rejection.of(error, item.source, item.key))
    else:
        if tally is not None:
            tally.use()


def _keep(writer: ShardWriter, out: Path) -> str:
    """Writes a manifest of the finished shards, and says which these are."""
    if writer.finished:
        try:
            Manifest(writer.finished).write(out)
        except OutputError:
            return f"{writer.kept}, without a manifest"
    return writer.kept
