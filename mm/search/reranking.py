"""Re-ranking: the first results of a search by vectors, sorted anew by how probably the text describes each image.

A vector is made without knowing the query; a match is scored with image and text read together, which is slower and
more exact (arXiv:2107.07651).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mm.errors import CapabilityError, DataError, MMError
from mm.search.items import Embedder, Hit, content_hash

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@runtime_checkable
class Matcher(Protocol):
    """What re-ranking needs from a model."""

    def require(self, capability: str) -> None:
        """Raise CapabilityError when the model lacks a capability."""

    def match(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """Return (B, M) float32, the probabilities that texts describe images."""


def as_matcher(model: Embedder) -> Matcher:
    """Return a model that can match.

    Raises:
        CapabilityError: when it can't.
    """
    if not isinstance(model, Matcher):
        raise CapabilityError(f"{model.name} can't match; search without rerank")
    model.require("match")
    return model


def rerank_hits(hits: Sequence[Hit], count: int, text: str, model: Matcher) -> list[Hit]:
    """Sort the first results by the probability of a match; the others follow in the order they have.

    Args:
        hits: the results, the best first.
        count: how many of them are sorted.
        text: what was searched for.
        model: scores one image after the other, so that only one is held in memory.

    Returns:
        All results with their new ranks; ``match`` is set where it was scored.

    Raises:
        ImageError: when neither an image nor its thumbnail can be decoded.
    """
    scored = [replace(hit, match=float(model.match([read_hit(hit)], [text])[0, 0])) for hit in hits[:count]]
    scored.sort(key=lambda hit: -(hit.match or 0.0))
    return [replace(hit, rank=rank) for rank, hit in enumerate([*scored, *hits[count:]], start=1)]


def read_hit(hit: Hit) -> Image:
    """Return a result's image as it was indexed, or its thumbnail where the uri doesn't lead to that image any more."""
    from mm.data.images import decode_image

    try:
        data = _read(hit.uri)
        if content_hash(data) == hit.sha256:
            return decode_image(data, hit.uri)
    except (MMError, OSError):
        pass
    return decode_image(hit.thumbnail, hit.uri)


def _read(uri: str) -> bytes:
    """Return the content of an image file or of a shard's member."""
    from mm.data.images import read_image_bytes
    from mm.data.shards.finding import is_shard

    path = Path(uri)
    shard = next((parent for parent in path.parents if is_shard(parent) and parent.is_file()), None)
    return read_image_bytes(path) if shard is None else _read_member(shard, uri)


def _read_member(shard: Path, uri: str) -> bytes:
    from mm.data.shards.tar import groups

    for group in groups(shard):
        if group.image is not None and os.path.normpath(f"{shard}/{group.key}.{group.image}") == uri:
            member = group.members[group.image]
            with shard.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
    raise DataError(f"{uri}: isn't in the shard any more", "missing file")
