"""The local cache of remote shards: bounded in size, verified by hash, shared by processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mm.data.remote.fetching import FetchError, Retries, read_remote
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.layout import HASH_DIFFERS, LARGER
from mm.data.shards.tar import CUT, NOT_A_TAR
from mm.errors import OptionError, OutputError
from mm.files import cache_folder, make_folder, remove_leftover, whole_file

_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])
_TRANSFERS = f".*.tar.{'[0-9a-f]' * 8}.tmp"  # as whole_file names them
_WAIT = 0.1  # seconds between looks for room that other processes' transfers take


class ShardCache:
    """Makes remote shards local. Shards that weren't used for the longest time make room for new ones.

    A shard lies in the folder as ``HASH.tar``, where ``HASH`` is its SHA-256, so what the folder holds is right for
    any address. ``HASH.lock`` is held while the shard is fetched or removed; when it was last changed says when the
    shard was last used. A shard that another process removes stays readable to those who have it open.

    Args:
        folder: where shards are kept; ``shards`` in the user's cache folder if None.
        max_bytes: how much the folder may hold, with what is being fetched.
        attempts: how often fetching a shard or a manifest is tried.
        sleep: waits for a number of seconds.

    Raises:
        OptionError: a bound or number of attempts below 1.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        max_bytes: int = 50 << 30,
        attempts: int = 5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for name, value in (("max_bytes", max_bytes), ("attempts", attempts)):
            if value < 1:
                raise OptionError(f"{name} of the cache of shards must be at least 1, not {value}")
        self.folder = Path(folder) if folder is not None else cache_folder() / "shards"
        self.max_bytes = max_bytes
        self.retries = Retries(attempts, sleep)

    def place(self, sha256: str) -> Path:
        """Where the shard with this hash lies, or will lie."""
        return self.folder / f"{sha256}.tar"

    def fetch(self, entry: ManifestEntry) -> Path:
        """Makes a shard local, unless it is already.

        Args:
            entry: a shard with ``bytes`` and ``sha256``; one that isn't remote is where it is.

        Returns:
            The file. Other processes may remove it at any time: open it at once, and fetch it again if it is gone.

        Raises:
            ShardError: it doesn't exist, access is refused, or the last attempt failed.
            UsageError: its address can't be opened.
            OptionError: it is larger than the cache may be.
            OutputError: the cache can't be written, or the disk is full.
        """
        if entry.remote is None:
            return entry.path
        assert entry.bytes is not None and entry.sha256 is not None
        path = self.place(entry.sha256)
        if not _holds(path, entry.bytes):
            if entry.bytes > self.max_bytes:
                raise OptionError(
                    f"{entry.remote}: is {entry.bytes:,} bytes, and the cache of shards may hold {self.max_bytes:,}; "
                    "raise data.cache_gigabytes"
                )
            make_folder(self.folder, f"the cache of shards {self.folder}")
            try:
                self._fetch_once(entry.remote, entry.bytes, entry.sha256)
            except OSError as error:
                raise self._unwritable(error, entry.remote, entry.bytes) from error
        self._mark_used(entry.sha256)
        return path

    def _fetch_once(self, address: str, size: int, sha256: str) -> None:
        """Fetches a shard that isn't there, unless another process does meanwhile."""
        with _locked(self._lock(sha256)):
            path = self.place(sha256)
            if not _holds(path, size):
                path.unlink(missing_ok=True)  # one of another size counts against the bound
                self.retries.run(lambda: self._transfer(address, size, sha256), address)
            self._mark_used(sha256)

    def _lock(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.lock"

    def _mark_used(self, sha256: str) -> None:
        now = time.time_ns()
        with suppress(OSError):  # a cache that may only be read, or a shard that was just removed
            os.utime(self._lock(sha256), ns=(now, now))

    def _unwritable(self, error: OSError, address: str, size: int) -> OutputError:
        if error.errno not in _FULL:
            return OutputError(f"{self.folder}: can't be written ({error.strerror}); set data.cache")
        free = shutil.disk_usage(self.folder).free
        return OutputError(
            f"{self.folder}: the disk is full: {address} needs {size:,} bytes, {free:,} are free; "
            "make room, or set data.cache to a folder on another disk"
        )

    def _transfer(self, address: str, size: int, sha256: str) -> None:
        """Fetches a shard under a temporary name, which it loses when all of it is there and right."""
        with ExitStack() as stack:
            _copy(address, size, sha256, self._reserve(stack, size, sha256))

    def _reserve(self, stack: ExitStack, size: int, sha256: str) -> BinaryIO:
        """Opens the temporary file once there is room, and makes it count in full from the start."""
        while True:
            with _locked(self.folder / "room.lock"):
                if self._make_room(size):
                    file = stack.enter_context(whole_file(self.place(sha256)))
                    file.truncate(size)
                    return file
            self.retries.sleep(_WAIT)

    def _make_room(self, size: int) -> bool:
        """Removes what dead processes left, then the shards that weren't used for longest, as far as needed.

        Returns:
            Whether there is room now; if not, transfers of other processes take it.
        """
        for path in self.folder.glob(_TRANSFERS):
            remove_leftover(path)
        transfers = sum(map(_size, self.folder.glob(_TRANSFERS)))  # one that ends now counts again as a shard
        shards = {path: _size(path) for path in self.folder.glob("*.tar")}
        over = sum(shards.values()) + transfers + size - self.max_bytes
        lacking = size - shutil.disk_usage(self.folder).free
        if lacking > sum(shards.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for path in sorted(shards, key=lambda path: _last_use(self._lock(path.stem))):
            if max(over, lacking) > 0 and self._remove(path):
                over -= shards[path]
                lacking -= shards[path]
        return over <= 0

    def _remove(self, shard: Path) -> bool:
        """Removes a shard, unless a process is about to use it."""
        lock = self._lock(shard.stem)
        try:
            with _locked(lock, wait=False):
                shard.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        return True


def _copy(address: str, size: int, sha256: str, file: BinaryIO) -> None:
    """Writes a shard to a file, comparing it with what the manifest says on the way.

    Raises:
        FetchError: it differs.
    """
    digest, count, start = hashlib.sha256(), 0, b""
    with closing(read_remote(address)) as blocks:
        for block in blocks:
            start = start or block[:256]
            count += len(block)
            if count > size:
                break
            digest.update(block)
            file.write(block)
    if count == size and digest.hexdigest() == sha256:
        return
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise FetchError("an HTML page came instead of the shard", NOT_A_TAR)
    if count < size:
        raise FetchError(f"only {count:,} of {size:,} bytes came", CUT)
    if count > size:
        raise FetchError(f"more came than the {size:,} bytes in the manifest", LARGER)
    raise FetchError("the content that came differs from the manifest's SHA-256", HASH_DIFFERS)


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock file, made if need be, which its holder may remove.

    Raises:
        BlockingIOError: another holds it, and ``wait`` is false.
    """
    held = False
    while not held:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = os.fstat(descriptor).st_nlink > 0  # else it was removed before it could be held
            if held:
                yield
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing isn't enough where a fork has a copy
            os.close(descriptor)


def _holds(path: Path, size: int) -> bool:
    """Whether a shard is there: one of the right size was verified before it got its name."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _size(path: Path) -> int:
    """The size of a file in bytes; 0 if another process has just removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _last_use(lock: Path) -> int:
    try:
        return lock.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
