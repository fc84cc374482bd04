"""Who loads images: mm, open_clip's way through webdataset, and torchvision's ImageFolder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

import mm
from mm.bench.load_data import Collection
from mm.data.datamodule import CaptionData
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import to_pixels

SIZE = 224
"""Side of the square that images become, in pixels."""
CROP = 0.9
"""The smallest share of an image's area that the views of all sides show: open_clip's."""
BUFFER = 5000
"""Samples that webdataset shuffles among each other, and how many of them it waits for at first."""
FIRST = 1000

OWN, OWN_DEFAULT, OPEN_CLIP, FOLDER = "mm", "mm, its own views", "open_clip", "ImageFolder"
Batches = Iterator[Tensor]
"""(B, 3, H, W) float32 batches, normalised as the model wants them."""


def open_own(sources: Sequence[str], batch_size: int, workers: int, often: int = 1, **options: Any) -> CaptionData:
    """Opens shards for training with mm, verification on.

    Args:
        sources: what names the shards.
        batch_size: images in a batch.
        workers: processes that load.
        often: how often an epoch holds each image.
        options: what else ``CaptionData`` takes.
    """
    train: Any = list(sources) if often == 1 else dict.fromkeys(sources, float(often))
    data = CaptionData(train, batch_size=batch_size, workers=workers, verify=True, **options)
    data.attach(Tokenizer.read(Path(mm.__file__).parent / "assets" / "mm-tiny" / "tokenizer.json"), SIZE)
    data.setup("fit")
    return data


def load_own(collection: Collection, workers: int, images: int, **options: Any) -> Batches:
    """Loads with mm."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    often = math.ceil(images / collection.images)
    data = open_own(collection.sources, collection.batch_size, workers, often, **options)
    for batch in data.train_dataloader():
        yield to_pixels(batch["pixels"]).sub_(mean).div_(std)


def open_clip_transform() -> Callable[[Any], Tensor]:
    """What open_clip makes of images when it trains."""
    from open_clip.transform import image_transform

    transform: Callable[[Any], Tensor] = image_transform(SIZE, is_train=True)
    return transform


def load_as_open_clip(collection: Collection, workers: int, images: int) -> Batches:
    """Loads as open_clip does when it trains: shards at random for ever, a shuffle buffer, and whole batches only.

    Its training code is a package of its own; the steps are those of its documentation.
    """
    import open_clip
    import webdataset as wds

    tokenizer = open_clip.SimpleTokenizer()
    pipeline = wds.DataPipeline(
        wds.ResampledShards(collection.shards, deterministic=True),
        wds.tarfile_to_samples(handler=wds.warn_and_continue),
        wds.shuffle(min(BUFFER, collection.images), initial=min(FIRST, collection.images)),
        wds.select(_has_both),
        wds.decode("pilrgb", handler=wds.warn_and_continue),
        wds.rename(image="jpg;png;jpeg;webp", text="txt;json"),
        wds.map_dict(image=open_clip_transform(), text=partial(_tokens, tokenizer)),
        wds.to_tuple("image", "text"),
        wds.batched(collection.batch_size, partial=False),
    )
    loader = wds.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=workers, persistent_workers=True)
    for pixels, _ in loader:
        yield pixels


def _has_both(sample: dict[str, Any]) -> bool:
    return bool(sample.keys() & {"jpg", "png", "jpeg", "webp"}) and bool(sample.keys() & {"txt", "json"})


def _tokens(tokenizer: Callable[[str], Tensor], text: Any) -> Tensor:
    """Tokens of a caption, or of the first one in a document of mm's."""
    return tokenizer(text["captions"][0] if isinstance(text, dict) else text)[0]


def load_from_folder(collection: Collection, workers: int, images: int) -> Batches:
    """Loads files with torchvision, with open_clip's transform."""
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(collection.folder), open_clip_transform())
    sampler = RandomSampler(dataset, replacement=True, num_samples=images)
    for pixels, _ in DataLoader(dataset, collection.batch_size, sampler=sampler, num_workers=workers, drop_last=True):
        yield pixels


SIDES: dict[str, Callable[[Collection, int, int], Batches]] = {
    OWN: partial(load_own, crop=CROP, color=0.0),
    OWN_DEFAULT: load_own,
    OPEN_CLIP: load_as_open_clip,
    FOLDER: load_from_folder,
}
