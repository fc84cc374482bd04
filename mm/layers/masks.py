"""The one function that says which token may look at which."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MaskKind = Literal["bidirectional", "causal", "prefix"]


def attention_mask(
    kind: MaskKind,
    queries: int,
    keys: int,
    *,
    padding: Tensor | None = None,
    prefix: int = 0,
    device: torch.device | None = None,
) -> Tensor | None:
    """Builds the mask of a self-attention: true where a query may look at a key.

    The queries are the last ``queries`` of the ``keys`` positions, as they are when earlier keys come from a cache.

    Args:
        kind: ``bidirectional`` (every position sees every other), ``causal`` (each sees itself and what precedes it) or
            ``prefix`` (the first ``prefix`` positions see each other, the rest is causal; UniLM, arXiv:1905.03197).
        queries: number of query positions.
        keys: number of key positions, at least ``queries``.
        padding: (B, keys) bool, true at real tokens and false at padding. Where causality leaves a position nothing but
            padding to look at, it looks at itself: kernels differ in what they give for one that looks at nothing.
        prefix: number of positions that see each other, for ``prefix``.
        device: where to build the mask.

    Returns:
        (1 or B, 1, queries, keys) bool, or None where every query may look at every key.

    Raises:
        ValueError: an unknown kind, or fewer keys than queries.
    """
    if keys < queries:
        raise ValueError(f"{keys} keys are fewer than {queries} queries")
    if kind == "bidirectional" or (kind in ("causal", "prefix") and queries == 1):
        allowed = None
    elif kind in ("causal", "prefix"):
        key = torch.arange(keys, device=device)
        query = torch.arange(keys - queries, keys, device=device)
        allowed = key[None, :] <= query[:, None]
        if kind == "prefix":
            allowed = allowed | (key < prefix)[None, :]
        allowed = allowed[None, None]
    else:
        raise ValueError(f"unknown mask {kind!r}: bidirectional, causal or prefix")
    if padding is None:
        return allowed
    real = padding[:, None, None, :]
    if allowed is None:
        return real.expand(-1, 1, queries, -1)
    allowed = allowed & real
    itself = torch.eye(keys, dtype=torch.bool, device=real.device)[-queries:]
    return allowed | (itself & ~allowed.any(-1, keepdim=True))
