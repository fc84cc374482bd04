"""Images checked, and made smaller or encoded anew, on their way into shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from io import BytesIO

from PIL import Image

from mm.data.images import DEFAULT_MAX_PIXELS, EncodedImage, check_image, open_image
from mm.data.jpeg import enough_eighths
from mm.data.making.items import Item, LeftOut
from mm.data.making.selection import AddedCaptions, Selection
from mm.data.samples import Rejection, Sample
from mm.errors import DataError, OptionError

DEFAULT_QUALITY = 90
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Rework:
    """What becomes of images. One that is made smaller or encoded anew becomes an upright RGB JPEG without metadata.

    Args:
        max_side: the longer side in pixels that larger images are scaled to; None to leave them.
        quality: of JPEG (1 to 100), for every image; None to encode only those that are scaled, at 90.
    """

    max_side: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise OptionError(f"max_side must be at least 1, not {self.max_side}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise OptionError(f"quality must be 1 to 100, not {self.quality}")

    def apply(self, data: bytes, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
        """Makes sure that an image can be decoded, and reworks it.

        Args:
            data: content of the file.
            name: the image, for messages.
            max_pixels: the most pixels that are decoded.

        Returns:
            The content of a JPEG; or ``data`` where nothing is to be done.

        Raises:
            ImageError: it can't be decoded.
        """
        size = open_image(data, name, max_pixels).size
        larger = self.max_side is not None and max(size) > self.max_side
        if self.quality is None and not larger:
            check_image(data, name, max_pixels)
            return data
        encoded = EncodedImage(data, name, max_pixels)
        if self.max_side is not None and larger:
            image = _shrunk(encoded, size, self.max_side)
        else:
            image = encoded.decode(strict=True)
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=self.quality or DEFAULT_QUALITY)
        return buffer.getvalue()


@dataclass(frozen=True)
class Prepared:
    """A sample ready to be written.

    Args:
        sample: with its image as it is written.
        digest: hash of the image as it was read.
        added: how many captions another file added.
    """

    sample: Sample
    digest: bytes
    added: int


class Preparation:
    """Reads items and makes samples of them; calls don't depend on each other.

    Args:
        selection: which are wanted.
        rework: what becomes of their images.
        added: captions of other files.
    """

    def __init__(self, selection: Selection, rework: Rework, added: AddedCaptions) -> None:
        self._selection, self._rework, self._added = selection, rework, added
        self._max_pixels = max(DEFAULT_MAX_PIXELS, selection.max_pixels or 0)

    def __call__(self, item: Item) -> Prepared | LeftOut | Rejection:
        """Prepares a sample; says why where it is left out or can't be used."""
        if item.told is not None and (left_out := self._selection.judge(self._added.add(item.told)[0])):
            return left_out
        loaded = item.load()
        if not isinstance(loaded, Sample):
            return loaded
        sample, added = self._added.add(loaded)
        try:
            if left_out := self._selection.judge(sample):
                return left_out
            size = open_image(sample.image, sample.source, self._max_pixels).size
            if left_out := self._selection.judge_size(size):
                return left_out
            image = self._rework.apply(sample.image, sample.source, self._max_pixels)
        except DataError as error:
            return Rejection.of(error, sample.source, sample.key)
        digest = hashlib.sha256(sample.image).digest()[:_DIGEST_BYTES]
        return Prepared(replace(sample, image=image), digest, added)


def _shrunk(encoded: EncodedImage, size: tuple[int, int], max_side: int) -> Image.Image:
    """Scales an image down; a JPEG is decoded at no more than the size that leaves the filter something to do."""
    longest = max(size)
    image = Image.fromarray(encoded.pixels(enough_eighths((longest, longest), 2 * max_side)))
    shorter = max(1, round(min(size) * max_side / longest))
    upright = (max_side, shorter) if image.width >= image.height else (shorter, max_side)
    return image.resize(upright, Image.Resampling.LANCZOS)
