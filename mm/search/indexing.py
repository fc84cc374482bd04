"""Indexing what the readers of folders and shards yield."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mm.data.images import DEFAULT_MAX_PIXELS, decode_image
from mm.data.samples import Rejection, Sample, Tally
from mm.errors import ImageError
from mm.search.gallery import Gallery
from mm.search.items import AddReport, Entry

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class IndexTally(Tally):
    """What was used and rejected, and what became of it in the gallery."""

    report: AddReport = field(default_factory=AddReport)


@dataclass(frozen=True)
class _Decoder:
    """Decodes a sample's image when it is needed."""

    sample: Sample
    max_pixels: int

    def __call__(self) -> Image:
        return decode_image(self.sample.image, self.sample.source, self.max_pixels)


def index_samples(
    gallery: Gallery,
    samples: Iterable[Sample | Rejection],
    batch_size: int = 32,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[IndexTally], None] | None = None,
) -> IndexTally:
    """Add samples to a gallery, and keep account of those that can't be.

    An image's uri is the absolute path of its sample's source. Images whose content the gallery holds aren't decoded.

    Args:
        gallery: open for writing.
        samples: what a reader yields.
        batch_size: samples embedded and committed together.
        max_pixels: the most pixels of an image that is decoded.
        progress: is told the counts so far after each batch.

    Raises:
        GalleryError: when another model built the gallery.
        OutputError: when the gallery can't be written; the batches before are kept.
    """
    tally = IndexTally()

    def entries() -> Iterator[Entry]:
        for sample in samples:
            if isinstance(sample, Rejection):
                tally.reject(sample)
                continue
            uri = os.path.abspath(sample.source)  # noqa: PTH100 - a source may end in a shard's member: no path
            yield Entry(sample.image, _Decoder(sample, max_pixels), uri, sample.captions, sample.metadata)

    def reject(entry: Entry, error: ImageError) -> None:
        assert isinstance(entry.image, _Decoder)
        tally.reject(Rejection.of(error, entry.image.sample.source, entry.image.sample.key))

    def count(report: AddReport) -> None:
        tally.report = report
        tally.used = report.total - report.rejected
        if progress is not None:
            progress(tally)

    gallery.add(entries(), batch_size, count, reject)
    return tally
