"""What several processes that train together must agree on before they begin."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from mm.errors import DataError


@contextmanager
def same_on_all_ranks(what: str) -> Iterator[Callable[[str], None]]:
    """Runs a block on every rank that must find the same; where one fails, all fail, and none waits for the others.

    Args:
        what: the block is about, for messages.

    Yields:
        A function that takes a description of what was found.

    Raises:
        DataError: another rank failed, or the ranks found different things.
    """
    found: list[str] = []
    failure: Exception | None = None
    try:
        yield found.append
    except Exception as error:  # whatever it is, the others mustn't wait for this rank
        failure = error
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        mine = (None if failure is None else str(failure), hashlib.sha256("\n".join(found).encode()).hexdigest())
        everyone: list[tuple[str | None, str]] = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        others = [f"on rank {rank}: {message}" for rank, (message, _) in enumerate(everyone) if message is not None]
        if failure is None and others:
            raise DataError("; ".join(others), "another rank failed")
        if failure is None and len({digest for _, digest in everyone}) > 1:
            raise DataError(
                f"{what}: the ranks don't see the same samples, so that they would train on different ones; give all "
                "of them the same shards",
                "ranks differ",
            )
    if failure is not None:
        raise failure
