"""Reads what lies at a remote address, and tries again where that can help."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from mm.data.samples import printable
from mm.data.shards.archive import MISSING, UNREADABLE
from mm.errors import ShardError, UsageError

T = TypeVar("T")

PIPE = "pipe:"

log = logging.getLogger(__name__)

_WEB = re.compile(r"https?://", re.IGNORECASE)
_BLOCK = 1 << 20
_SILENCE = 60  # seconds without a byte after which a connection counts as lost
_LONGEST_DELAY = 60.0  # seconds
_TRY_AGAIN = frozenset([408, 425, 429])
_filesystems: list[weakref.ref[Any]] = []
_random = random.SystemRandom()  # the generators that training draws from are left alone


class FetchError(Exception):
    """An attempt that failed in a way that another attempt may not.

    Args:
        problem: a few words on what went wrong.
        reason: what failures of this kind are counted by.
    """

    def __init__(self, problem: str, reason: str = UNREADABLE) -> None:
        super().__init__(problem)
        self.reason = reason


def is_web(address: str) -> bool:
    """Whether an address starts with ``http://`` or ``https://``."""
    return _WEB.match(address) is not None


@dataclass(frozen=True)
class Retries:
    """How often something remote is tried, with delays that double from one second on and vary at random.

    Args:
        attempts: how often, at least 1.
        sleep: waits for a number of seconds.
    """

    attempts: int = 5
    sleep: Callable[[float], None] = time.sleep

    def run(self, attempt: Callable[[], T], name: str) -> T:
        """Calls a function until it succeeds.

        Args:
            attempt: raises ``FetchError`` where trying again may help; other errors end the attempts.
            name: what is fetched, for messages.

        Raises:
            ShardError: the last attempt failed; the message says what went wrong in each.
        """
        problems: list[str] = []
        reason = UNREADABLE
        for number in range(1, self.attempts + 1):
            try:
                return attempt()
            except FetchError as problem:
                problems.append(str(problem))
                reason = problem.reason
            if number < self.attempts:
                delay = min(2.0 ** (number - 1), _LONGEST_DELAY) * _random.uniform(0.5, 1)
                log.warning("%s: %s; trying again in %.1f s", name, problems[-1], delay)
                self.sleep(delay)
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        raise ShardError(f"{name}: couldn't be fetched in {tries}: {_summary(problems)}", reason)


def _summary(problems: list[str]) -> str:
    """What went wrong, in order; the same thing several times in a row is named once."""
    runs = [(text, len(list(run))) for text, run in groupby(problems)]
    return "; then ".join(f"{text} ({count} times)" if count > 1 else text for text, count in runs)


def read_remote(address: str) -> Generator[bytes]:
    """Reads from an address block by block.

    Args:
        address: ``pipe:COMMAND``, whose output is read, or ``PROTOCOL://...`` with a protocol that fsspec knows.

    Raises:
        FetchError: reading failed; trying again may help.
        ShardError: it doesn't exist, or access is refused.
        UsageError: it isn't an address that can be opened, or a package is missing for it.
    """
    stream: Any = None
    try:
        stream = _open(address)
        while block := stream.read(_BLOCK):
            yield block
        stream.close()  # how a command ended is known only now
    except Exception as error:  # every protocol has errors of its own
        raise _translated(error, address, stream) from error
    finally:
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _open(address: str) -> Any:
    if address.startswith(PIPE):
        from webdataset import gopen

        return gopen(address, "rb")
    import fsspec

    if is_web(address):
        protocol = address.partition(":")[0].lower()
        filesystem, path = fsspec.filesystem(protocol, **_web_options()), address
        # With a size that isn't None no request is spent on asking for it, and blocks of 0 bytes mean a plain stream.
        options = {"block_size": 0, "size": 1}
    elif "::" in address:
        raise ValueError("chained addresses (`::`) aren't supported")
    else:
        filesystem, path = fsspec.url_to_fs(address, skip_instance_cache=True)
        options = {}
        _try_once(filesystem)
    if filesystem.async_impl:
        _filesystems.append(weakref.ref(filesystem))
    return filesystem.open(path, "rb", **options)


def _try_once(filesystem: Any) -> None:
    """Leaves trying again to ``Retries``: both s3fs and the client below it try requests five times each."""
    if "s3" in filesystem.protocol:
        filesystem.retries = 1
        filesystem.config_kwargs = {"retries": {"total_max_attempts": 1}} | filesystem.config_kwargs


def _close_connections() -> None:
    """Closes what isn't used any more, while the thread that can do so is there: a fork has none.

    The asynchronous filesystems of fsspec close their connections when they are freed. As they refer to themselves,
    that is when garbage is collected, which otherwise may be in a process forked in between.
    """
    if any(filesystem() is not None for filesystem in _filesystems):
        from fsspec.asyn import get_loop, sync

        sync(get_loop(), asyncio.sleep, 0)  # after the closing of streams, which it was given before
        gc.collect()
        _filesystems[:] = [filesystem for filesystem in _filesystems if filesystem() is not None]


os.register_at_fork(before=_close_connections)


def _web_options() -> dict[str, Any]:
    """Proxies and passwords come from the environment and ``~/.netrc``; content is taken as it lies on the server."""
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return {
        "skip_instance_cache": True,
        "headers": {"Accept-Encoding": "identity"},
        "client_kwargs": {"timeout": timeout, "trust_env": True},
    }


# What packages for protocols call the error of missing credentials, as opposed to those that can't be had just now.
_NO_CREDENTIALS = re.compile(r"(No|Partial|Default)Credentials")


def _translated(error: Exception, address: str, stream: Any) -> Exception:
    """The error to raise instead of what a protocol raised, on opening where there is no stream yet."""
    if stream is None and isinstance(error, ImportError | ValueError):
        return UsageError(f"{address}: can't be opened: {_one_line(error)}")
    if address.startswith(PIPE):
        status = getattr(stream, "status", None)
        return FetchError(f"the command ended with status {status}" if status else _one_line(error))
    status = getattr(error, "status", None)
    answer = f" (HTTP {status})" if status else ""
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return ShardError(f"{address}: doesn't exist{answer}", MISSING)
    if isinstance(error, PermissionError) or status in (401, 403):
        return ShardError(f"{address}: access is refused{answer}; check the credentials", UNREADABLE)
    if _NO_CREDENTIALS.match(type(error).__name__):
        return ShardError(f"{address}: access is refused ({_one_line(error)}); check the credentials", UNREADABLE)
    if isinstance(status, int) and 400 <= status < 500 and status not in _TRY_AGAIN:
        return ShardError(f"{address}: the server refuses the request{answer}", UNREADABLE)
    if isinstance(status, int) and status >= 400:
        return FetchError(f"HTTP {status} {getattr(error, 'message', '')}".strip())
    return FetchError(_one_line(error))


def _one_line(error: Exception) -> str:
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
