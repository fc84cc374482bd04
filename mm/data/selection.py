"""Which samples go into shards, and the captions that other files add to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mm.data.annotations import read_records
from mm.data.items import LeftOut
from mm.data.keys import clean_key
from mm.data.records import Record
from mm.data.samples import Sample
from mm.errors import OptionError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Selection:
    """What is asked of samples; the others are left out, and counted.

    Args:
        languages: a caption in one of them; any or none if empty.
        splits: the ``split`` of their metadata is one of these; any or none if empty.
        min_side: pixels that the shorter side of the image has at least.
        max_pixels: pixels that the image has at most; None for the limit over which images are rejected.
    """

    languages: Sequence[str] = ()
    splits: Sequence[str] = ()
    min_side: int = 1
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.min_side < 1 or (self.max_pixels is not None and self.max_pixels < 1):
            raise OptionError(f"min_side {self.min_side} and max_pixels {self.max_pixels} must be at least 1")

    def judge(self, sample: Sample) -> LeftOut | None:
        """Why a sample is left out, going by its captions and metadata; None if it isn't."""
        if self.splits and sample.metadata.get("split") not in self.splits:
            return LeftOut(f"split isn't {' or '.join(self.splits)}")
        lack = sample.lacks(self.languages) if self.languages else None
        return LeftOut(lack) if lack is not None else None

    def judge_size(self, size: tuple[int, int]) -> LeftOut | None:
        """Why a sample is left out, going by the width and height of its image; None if it isn't."""
        if min(size) < self.min_side:
            return LeftOut(f"a side under {self.min_side} pixels")
        if self.max_pixels is not None and size[0] * size[1] > self.max_pixels:
            return LeftOut(f"more than {self.max_pixels} pixels")
        return None


class ImageList:
    """Images to choose, named in a file with one name a line.

    Args:
        path: the file.

    Raises:
        UsageError: it can't be read, or names nothing.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")
        except OSError as error:
            raise UsageError(f"{path}: can't be read: {error.strerror}") from error
        self._names = {_stem(line.strip()): False for line in lines if line.strip()}
        if not self._names:
            raise UsageError(f"{path}: names no images; give one name a line")

    def __contains__(self, key: str) -> bool:
        name = _find(self._names, key)
        if name is not None:
            self._names[name] = True
        return name is not None

    @property
    def missing(self) -> int:
        """How many names no image was asked for by."""
        return sum(not found for found in self._names.values())


class AddedCaptions:
    """Captions that files have for images of other sources.

    Args:
        additions: each ``LANGUAGE=FILE``; what the file says about images, whose captions are in that language where
            it doesn't say otherwise, is found by their names.

    Raises:
        OptionError: an addition has another form.
        UsageError: a file can't be read.
    """

    def __init__(self, additions: Iterable[str] = ()) -> None:
        self._files: list[dict[str, list[Record]]] = []
        for addition in additions:
            language, equals, path = addition.partition("=")
            if not language or not equals or not path:
                raise OptionError(f"--add {addition!r} must look like zh=captions.txt")
            named: dict[str, list[Record]] = {}
            for record in read_records(Path(path), language):
                if record.problem is None:
                    named.setdefault(_stem(record.image), []).append(record)
            self._files.append(named)

    def add(self, sample: Sample) -> tuple[Sample, int]:
        """The sample with what the files add to it, and how many captions that is."""
        captions = {language: list(texts) for language, texts in sample.captions.items()}
        count = 0
        for named in self._files:
            name = _find(named, sample.key)
            for record in named[name] if name is not None else ():
                for language, texts in record.captions.items():
                    captions.setdefault(language, []).extend(texts)
                    count += len(texts)
        return (replace(sample, captions=captions), count) if count else (sample, 0)


def _stem(image: str) -> str:
    """An image's name as a key: its path without the suffix."""
    name = image.replace("\\", "/")
    folder, slash, last = name.rpartition("/")
    return clean_key(f"{folder}{slash}{last.rpartition('.')[0] or last}")


def _find(names: Mapping[str, T], key: str) -> str | None:
    """The name that means a sample: its whole key, or the last part of it."""
    key = clean_key(key)
    return next((name for name in (key, key.rpartition("/")[2]) if name in names), None)
