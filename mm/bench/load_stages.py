"""What loading spends its time on: milliseconds for each image, by stage."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mm.bench.load_data import Collection
from mm.bench.load_sides import CROP, OPEN_CLIP, OWN, SIZE, open_clip_transform, open_own
from mm.bench.measure import median
from mm.data.augmentation import Augmentation, change_colors
from mm.data.images import EncodedImage
from mm.data.transforms import FILTERS, MARGIN, decode_part

Stages = dict[str, float]
"""Milliseconds for each image."""

HANDED = 24
"""Batches that a worker hands over to measure what that takes."""


class Stopwatch:
    """Adds up times by name; what counts for each is the median."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str, images: int = 1) -> Iterator[None]:
        """Times a block that deals with so many images."""
        begin = time.perf_counter()
        yield
        self._taken[name].append(1000 * (time.perf_counter() - begin) / images)

    def medians(self) -> Stages:
        """Gives the median of each name."""
        return {name: median(taken) for name, taken in self._taken.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute in one thread while the block runs, as in a worker: more would take processors from workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stages(collection: Collection, images: int) -> dict[str, Stages]:
    """Measures mm, with its own augmentation, and the transform of open_clip, in this process and one thread.

    Args:
        collection: the images.
        images: how many are loaded.
    """
    with one_thread():
        return {OWN: own_stages(collection, images), OPEN_CLIP: open_clip_stages(collection, images)}


def own_stages(collection: Collection, images: int) -> Stages:
    """Measures mm."""
    loader = open_own(collection.sources, collection.batch_size, 0, crop=CROP).train_dataloader()
    dataset: Any = loader.dataset
    batches: Any = loader.batch_sampler
    random, augmentation, watch = np.random.default_rng(0), Augmentation(CROP), Stopwatch()
    shards, size = dataset.shards, min(images, collection.images)
    for number in random.permutation(collection.images)[:size].tolist():
        with watch("read"):
            data = shards[number].image
        with watch("decode"):
            image = EncodedImage(data)
            part = decode_part(image, augmentation.draw_box(image.size, random), MARGIN * SIZE)
        with watch("resize"):
            pixels = v2.functional.resize(part, [SIZE, SIZE], FILTERS["bicubic"])
        with watch("colour"):
            change_colors(pixels, augmentation.draw_colors(random))
    for places in itertools.islice(batches, max(1, size // collection.batch_size)):
        with watch("all", len(places)):
            items = dataset.__getitems__(places)
        with watch("collate", len(places)):
            batch = loader.collate_fn(items)
    found = watch.medians()
    found["captions and the rest"] = max(0.0, found.pop("all") - sum(found.values()) + found["collate"])
    return found | {"transfer": _transfer(batch)}


def open_clip_stages(collection: Collection, images: int) -> Stages:
    """Measures what open_clip makes of an image."""
    transform: Any = open_clip_transform()
    crop, convert, to_tensor, normalize = transform.transforms
    watch = Stopwatch()
    for path in sorted((collection.folder / "all").iterdir())[:images]:
        with watch("read"):
            data = path.read_bytes()
        with watch("decode"):
            image = Image.open(BytesIO(data)).convert("RGB")
        with watch("resize"):
            image = convert(crop(image))
        with watch("to float"):
            normalize(to_tensor(image))
    batch = torch.zeros(collection.batch_size, 3, SIZE, SIZE)
    return watch.medians() | {"transfer": _transfer({"pixels": batch})}


class _Same(Dataset[dict[str, Any]]):
    """Gives copies of one batch again and again."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return HANDED

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in self._batch.items()}


def _transfer(batch: dict[str, Any]) -> float:
    """Measures the milliseconds for each image that a worker needs to hand over a batch."""
    batches = iter(DataLoader(_Same(batch), batch_size=None, num_workers=1))
    next(batches)  # when the worker has started
    begin = time.perf_counter()
    count = sum(1 for _ in batches)
    return 1000 * (time.perf_counter() - begin) / count / len(batch["pixels"])
