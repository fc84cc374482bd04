"""What goes into a gallery and what comes out of it, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    ImageSource: TypeAlias = Image | Callable[[], Image]

THUMBNAIL_SIDE = 256
"""Longest side of a stored thumbnail, in pixels."""


class Embedder(Protocol):
    """What a gallery needs from a model: images and texts as unit vectors in one space."""

    @property
    def name(self) -> str:
        """Name that ``mm.load`` takes."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights, hexadecimal."""

    @property
    def preprocessing(self) -> str:
        """Short description of the image size, mean and standard deviation."""

    @property
    def dimension(self) -> int:
        """Length E of a vector."""

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """Return (B, E) float32, each row of unit length."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return (B, E) float32, each row of unit length."""


class Entry(NamedTuple):
    """One image to add to a gallery.

    Args:
        data: the bytes of the file; their sha256 is the image's identity.
        image: the decoded image, or a function that decodes it, which is called only if it has to be embedded.
        uri: where the image is found; any text. Empty: named after the sha256.
        captions: captions by language; empty keeps those recorded before.
        metadata: anything that JSON can hold; empty keeps what was recorded before.
    """

    data: bytes
    image: ImageSource
    uri: str
    captions: Mapping[str, Sequence[str]] = {}
    metadata: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Item:
    """One image of a gallery."""

    sha256: str
    uri: str
    captions: dict[str, list[str]]
    metadata: dict[str, Any]
    thumbnail: bytes = field(repr=False)
    """JPEG, at most ``THUMBNAIL_SIDE`` pixels on its longest side."""


@dataclass(frozen=True)
class Hit(Item):
    """One result of a search: the better the match, the higher the score; the best has rank 1."""

    score: float
    rank: int
    match: float | None = None
    """Probability that the query's text describes the image, where the search was re-ranked."""


@dataclass(frozen=True)
class AddReport:
    """What became of the entries given to ``Gallery.add``: each is counted in one of the first four."""

    added: int = 0
    """Images that are new in the gallery."""
    updated: int = 0
    """Images known by their content whose uri, captions or metadata changed, or whose damaged vector was renewed."""
    unchanged: int = 0
    rejected: int = 0
    """Entries that couldn't be decoded."""
    replaced: int = 0
    """Older images that left the gallery because another image took their uri."""

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(
            self.added + other.added,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.rejected + other.rejected,
            self.replaced + other.replaced,
        )

    @property
    def total(self) -> int:
        """Number of entries seen."""
        return self.added + self.updated + self.unchanged + self.rejected


@dataclass(frozen=True)
class Problem:
    """Something wrong in a gallery; ``sha256`` and ``uri`` are empty when it isn't about one image."""

    sha256: str
    uri: str
    what: str


def content_hash(data: bytes) -> str:
    """Return the identity of an image file: the sha256 of its bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def make_thumbnail(image: Image) -> bytes:
    """Return the image as a JPEG of at most ``THUMBNAIL_SIDE`` pixels on its longest side; never enlarged."""
    from PIL.Image import Resampling

    scale = min(1.0, THUMBNAIL_SIDE / max(image.size))
    small = image.convert("RGB")
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = small.resize(size, Resampling.LANCZOS, reducing_gap=3.0)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()
