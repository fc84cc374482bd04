"""Shards written whole or not at all, with their manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from mm.data.images import sniff_suffix
from mm.data.manifest import MANIFEST_NAME, Manifest, ManifestEntry
from mm.data.samples import Rejection, Sample, Tally, caption_document, printable
from mm.errors import DataError, OptionError, OutputError, ShardError
from mm.files import sync_folder

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
    if max_samples < 1 or max_bytes < 1:
        raise OptionError(f"max_samples {max_samples} and max_bytes {max_bytes} must be at least 1")
    if not _PREFIX.fullmatch(prefix):
        raise OptionError(f"prefix {prefix!r} must be a plain name of letters, digits, '-' and '_'")
    out = Path(out)
    _prepare(out)
    writer = _Writer(out, prefix, max_samples, max_bytes)
    try:
        for item in samples:
            try:
                if isinstance(item, Rejection):
                    raise DataError(item.detail or f"{item.source}: {item.reason}", item.reason)
                writer.write(item)
            except ShardError:
                raise
            except DataError as error:
                if tally is None:
                    raise
                tally.reject(item if isinstance(item, Rejection) else Rejection.of(error, item.source, item.key))
            else:
                if tally is not None:
                    tally.use()
            if progress is not None:
                progress(1)
        writer.finish_shard()
        if not writer.finished:
            raise DataError(f"{out}: no sample was left to write", "no samples")
        manifest = Manifest(writer.finished)
        manifest.write(out)
    except (OSError, OutputError) as error:
        writer.abandon()
        what = f"{out / writer.name}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        raise ShardError(f"{what}; {_keep(writer, out)}", "write failed") from error
    except BaseException:
        writer.abandon()
        _keep(writer, out)
        raise
    return manifest


def clean_key(key: str) -> str:
    """A key that reads back as it was written: a relative path whose last part has no dot."""
    parts = [
        part for part in printable(key.replace("\\", "/")).replace("\\", "_").split("/") if part not in ("", ".", "..")
    ]
    parts = parts or ["sample"]
    parts[-1] = parts[-1].replace(".", "_")
    if parts[0].startswith("__"):
        parts[0] = parts[0].lstrip("_") or "sample"
    return "/".join(parts)


class _Writer:
    """The shard being written, and those that are finished."""

    def __init__(self, out: Path, prefix: str, max_samples: int, max_bytes: int) -> None:
        self.finished: list[ManifestEntry] = []
        self._out, self._prefix, self._max_samples, self._max_bytes = out, prefix, max_samples, max_bytes
        self._keys: dict[str, int] = {}
        self._file: _HashingFile | None = None
        self._tar: Any = None
        self._count = self._bytes = 0

    @property
    def name(self) -> str:
        """The shard being written."""
        return f"{self._prefix}-{len(self.finished):06d}.tar"

    def write(self, sample: Sample) -> None:
        suffix = sniff_suffix(sample.image)
        if suffix is None:
            raise DataError(f"{sample.source}: isn't an image", "not an image")
        document = caption_document(sample)
        size = len(sample.image) + len(document)
        if self._count and (self._count >= self._max_samples or self._bytes + size > self._max_bytes):
            self.finish_shard()
        if self._tar is None:
            self._open()
        self._tar.write({"__key__": self._unique(clean_key(sample.key)), suffix: sample.image, "json": document})
        self._count += 1
        self._bytes += size

    def _open(self) -> None:
        from webdataset.writer import TarWriter  # imports torch

        self._file = _HashingFile(open_file(self._temporary))
        self._tar = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)

    @property
    def _temporary(self) -> Path:
        return self._out / _TEMPORARY.format(self.name)

    def _unique(self, key: str) -> str:
        name = key
        while name in self._keys:
            self._keys[key] += 1
            name = f"{key}_{self._keys[key]}"
        self._keys[name] = 1
        return name

    def finish_shard(self) -> None:
        """Completes the current shard, if there is one, and gives it its name."""
        if self._file is None:
            return
        self._tar.close()
        self._file.close()
        path = self._out / self.name
        self._temporary.replace(path)
        sync_folder(self._out)
        self.finished.append(ManifestEntry(path.name, path, self._count, self._file.size, self._file.digest))
        self._file = self._tar = None
        self._count = self._bytes = 0

    def abandon(self) -> None:
        """Removes the shard that isn't finished."""
        if self._file is not None:
            self._file.discard()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        self._file = self._tar = None


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


def _prepare(out: Path) -> None:
    """Makes the folder and checks that it can be written to."""
    probe = out / _TEMPORARY.format("probe")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / MANIFEST_NAME).exists() or any(out.glob("*.tar")):
            raise OutputError(f"{out}: already holds shards; choose an empty folder")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{out}: can't be written to: {error.strerror}; choose another folder") from error


def _keep(writer: _Writer, out: Path) -> str:
    """Writes a manifest of the finished shards, and says which these are."""
    if not writer.finished:
        return "no shard was finished"
    names = [entry.url for entry in writer.finished]
    listed = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    total = sum(entry.nsamples for entry in writer.finished)
    kept = f"finished and kept in {out}: {listed} ({total} samples)"
    try:
        Manifest(writer.finished).write(out)
    except OutputError:
        return f"{kept}, without a manifest"
    return kept
