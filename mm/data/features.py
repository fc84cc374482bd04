"""Features of frozen network stages, kept on disk so that training computes them once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mm.errors import DataError, OutputError

MARK_EVERY = 1024
"""Features that are written to the disk together."""


class FeatureStore:
    """One half-precision array per image and view, in a memory-mapped file, with a mark for each that is filled.

    Args:
        folder: where the files are.
        identity: what the features depend on (weights, images, views); features of another identity are discarded, and
            so are damaged files.
        images: number of images.
        views: views of each image.
        shape: shape of one image's features.

    Raises:
        OutputError: the folder can't be written, or has no room for the features.
    """

    def __init__(self, folder: Path, identity: str, images: int, views: int, shape: tuple[int, ...]) -> None:
        self.folder = folder
        self.shape = (images, views, *shape)
        description = json.dumps({"identity": identity, "shape": self.shape}).encode()
        sizes = {"features.f16": 2 * math.prod(self.shape), "filled.u8": images * views}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            note = folder / "features.json"
            files = {folder / name: size for name, size in sizes.items()}
            kept = note.is_file() and note.read_bytes() == description
            if not kept or any(not path.is_file() or path.stat().st_size != size for path, size in files.items()):
                note.unlink(missing_ok=True)
                for path, size in files.items():
                    _make(path, size)
                note.write_bytes(description)
        except OSError as error:
            gigabytes = sum(sizes.values()) / 1e9
            raise OutputError(
                f"{folder}: {gigabytes:.2f} GB of features can't be kept there ({error.strerror})"
            ) from error

    def _map(self, mode: str = "r") -> tuple[np.memmap, np.memmap]:
        features = np.memmap(self.folder / "features.f16", np.float16, mode, shape=self.shape)  # type: ignore[call-overload]
        filled = np.memmap(self.folder / "filled.u8", np.uint8, mode, shape=self.shape[:2])  # type: ignore[call-overload]
        return features, filled

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Reads the features of one (image, view), in half precision.

        Raises:
            DataError: they were never filled in.
        """
        features, filled = self._map()
        if not filled[place]:
            raise DataError(f"{self.folder}: no features for image {place[0]}, view {place[1]}; delete the folder")
        return torch.from_numpy(np.array(features[place]))

    def fill(
        self,
        pixels: Callable[[int, int], Tensor],
        encode: Callable[[Tensor], Tensor],
        progress: Callable[[int, int], None] = lambda done, total: None,
        batch_size: int = 32,
    ) -> None:
        """Computes what is missing; interrupted, the next call goes on where it stopped.

        A process that is killed may lose the last ``MARK_EVERY``.

        Args:
            pixels: gives (3, H, W) uint8 of an image and view.
            encode: maps (B, 3, H, W) uint8 to (B, ...) features.
            progress: called with how many are done and how many there are.
            batch_size: images encoded together.
        """
        features, filled = self._map("r+")
        missing = np.argwhere(filled == 0)
        computed: list[tuple[int, int]] = []
        try:
            for start in range(0, len(missing), batch_size):
                progress(filled.size - len(missing) + start, filled.size)
                places = [(int(image), int(view)) for image, view in missing[start : start + batch_size]]
                encoded = encode(torch.stack([pixels(*place) for place in places])).half().cpu().numpy()
                for place, values in zip(places, encoded, strict=True):
                    features[place] = values
                computed += places
                if len(computed) >= MARK_EVERY:
                    _mark(features, filled, computed)
        finally:
            _mark(features, filled, computed)
        progress(filled.size, filled.size)


def _mark(features: np.memmap, filled: np.memmap, places: list[tuple[int, int]]) -> None:
    """Marks what was computed, once it is on the disk: a mark must outlast a loss of power only with its features."""
    features.flush()
    for place in places:
        filled[place] = 1
    filled.flush()
    places.clear()


def _make(path: Path, size: int) -> None:
    """Makes a file of zeros that has its space: to run out of it later would end the process, as the file is mapped."""
    path.unlink(missing_ok=True)
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
