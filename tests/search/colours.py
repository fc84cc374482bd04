"""Images of one colour, and a model that finds them: what the gallery's tests are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from mm.search import Entry

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (30, 60, 220),
    "white": (245, 245, 245),
    "yellow": (230, 220, 20),
}


class ColourEmbedder:
    """Embeds an image as its mean colour and a text as the mean of the colours it names."""

    dimension = 4
    preprocessing = "mean colour"

    def __init__(self, name: str = "colours", fingerprint: str | None = None) -> None:
        self.name = name
        self.fingerprint = fingerprint or hashlib.sha256(name.encode()).hexdigest()
        self.images_seen = 0

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.images_seen += len(images)
        means = [np.asarray(image.convert("RGB"), dtype=np.float32).reshape(-1, 3).mean(axis=0) for image in images]
        return self._unit(np.array(means))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        named = [[COLOURS[word] for word in text.split() if word in COLOURS] or [(128, 128, 128)] for text in texts]
        return self._unit(np.array([np.mean(colours, axis=0) for colours in named]))

    def require(self, capability: str) -> None:
        assert capability == "embed"

    @staticmethod
    def _unit(colours: np.ndarray) -> np.ndarray:
        vectors = np.concatenate([colours - 128, np.full((len(colours), 1), 20)], axis=1).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def picture(colour: str | tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour] if isinstance(colour, str) else colour)


def encode(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def entry(colour: str | tuple[int, int, int], uri: str | None = None, **rest: object) -> Entry:
    image = picture(colour)
    return Entry(encode(image), image, f"{colour}.png" if uri is None else uri, **rest)  # type: ignore[arg-type]
