"""Which samples go into shards, and the captions that other files add to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mm.data.making.annotations import read_records
from mm.data.making.items import LeftOut
from mm.data.making.records import Record
from mm.data.samples import Rejection, Sample, printable
from mm.data.shards.keys import clean_key
from mm.errors import OptionError, UsageError


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


class Names:
    """Names that a file has for images of the sources.

    A name means the image whose key it is; where there is none, the only image with it as the last part of its key.
    That is known once ``see`` was told the keys of all images.

    Args:
        names: the names, as keys.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._keys: dict[str, list[str]] = {name: [] for name in names}  # up to two that each may mean

    def see(self, key: str) -> None:
        """Takes notice of an image that a source has."""
        key = clean_key(key)
        last = key.rpartition("/")[2]
        if key in self._keys:
            self._keys[key] = [key]
        keys = self._keys.get(last)
        if keys is not None and last not in keys and key not in keys and len(keys) < 2:
            keys.append(key)

    def of(self, key: str) -> list[str]:
        """The names that mean an image: its key, the last part of it, or both."""
        key = clean_key(key)
        return [name for name in dict.fromkeys((key, key.rpartition("/")[2])) if self._keys.get(name) == [key]]

    @property
    def missing(self) -> int:
        """How many names mean no image."""
        return sum(not keys for keys in self._keys.values())

    def ambiguous(self, path: Path) -> list[Rejection]:
        """Names that may mean several images; no sample is lost by them.

        Args:
            path: the file that has them.
        """
        return [
            Rejection(
                str(path),
                name,
                "ambiguous image name",
                f"{path}: {name!r} may be {keys[0]} or {keys[1]}; name the image with its folder",
                samples=0,
            )
            for name, keys in self._keys.items()
            if len(keys) > 1
        ]


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
        names = [_stem(line.strip()) for line in lines if line.strip()]
        if not names:
            raise UsageError(f"{path}: names no images; give one name a line")
        self.names = Names(names)
        self._path = path

    def __contains__(self, key: str) -> bool:
        return bool(self.names.of(key))

    @property
    def rejections(self) -> list[Rejection]:
        """The names that may mean several images, and so choose none."""
        return self.names.ambiguous(self._path)


class CaptionFile:
    """A file with captions for images of other sources.

    Args:
        path: the file.
        language: of captions that don't say theirs.

    Raises:
        UsageError: it can't be read.
    """

    def __init__(self, path: Path, language: str) -> None:
        self._path = path
        self._records: dict[str, list[Record]] = {}
        self._problems: list[Rejection] = []
        for record in read_records(path, language):
            if record.problem is not None:
                self._problems.append(Rejection.of(record.problem, str(path), printable(record.image), samples=0))
            elif record.captions:
                self._records.setdefault(_stem(record.image), []).append(record)
        self.names = Names(self._records)

    def records(self, key: str) -> list[Record]:
        """What the file says about an image."""
        return [record for name in self.names.of(key) for record in self._records[name]]

    @property
    def rejections(self) -> list[Rejection]:
        """What in the file can't be used, and names that may mean several images; no sample is lost by either."""
        return self._problems + self.names.ambiguous(self._path)


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
        self.files: list[CaptionFile] = []
        for addition in additions:
            language, equals, path = addition.partition("=")
            if not language or not equals or not path:
                raise OptionError(f"--add {addition!r} must look like zh=captions.txt")
            self.files.append(CaptionFile(Path(path), language))

    def add(self, sample: Sample) -> tuple[Sample, int]:
        """The sample with what the files add to it, and how many captions that is."""
        captions = {language: list(texts) for language, texts in sample.captions.items()}
        count = 0
        for record in (record for file in self.files for record in file.records(sample.key)):
            for language, texts in record.captions.items():
                captions.setdefault(language, []).extend(texts)
                count += len(texts)
        return (replace(sample, captions=captions), count) if count else (sample, 0)


def _stem(image: str) -> str:
    """An image's name as a key: its path without the suffix."""
    name = image.replace("\\", "/")
    folder, slash, last = name.rpartition("/")
    return clean_key(f"{folder}{slash}{last.rpartition('.')[0] or last}")
