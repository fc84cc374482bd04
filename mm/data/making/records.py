"""What files that name images say about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm.data.samples import caption_language
from mm.errors import DataError

_NOT_CAPTIONS = "captions are not a list of strings"


@dataclass(slots=True)
class Record:
    """An image that a file names, with everything that the file says about it.

    Args:
        image: its path, as the file gives it.
        captions: captions by language.
        metadata: everything else.
        problem: why it can't be used.
    """

    image: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: DataError | None = None

    def add(self, texts: Any, language: str, where: str) -> None:
        """Adds captions: one text or a list of them; empty ones are left out.

        Raises:
            DataError: they are something else; the message names ``where``.
        """
        listed = [texts] if isinstance(texts, str) else [] if texts is None else texts
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise DataError(f"{where}: captions must be texts, or lists of texts", _NOT_CAPTIONS)
        if found := [text.strip() for text in listed if text.strip()]:
            self.captions.setdefault(language, []).extend(found)


class Records:
    """The images that a file names, in order of their first mention.

    Args:
        language: of captions that don't say theirs.
    """

    def __init__(self, language: str = "en") -> None:
        self.language = language
        self.by_image: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self.by_image)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.by_image.values())

    def get(self, image: str) -> Record:
        """The record of an image, a new one where it wasn't mentioned before."""
        return self.by_image.setdefault(image, Record(image))

    def reject(self, where: str, what: str, reason: str) -> None:
        """Records something that names no image that could be used."""
        self.by_image.setdefault(where, Record(where)).problem = DataError(f"{where}: {what}", reason)

    def add_row(self, row: Mapping[str, Any], where: str) -> None:
        """Adds what a row of a table, or a JSON object, says about an image.

        ``image`` is the path of the image, ``caption`` one caption or several in the language that ``language`` gives,
        ``captions`` and ``captions_<language>`` captions in English and in that language; everything else that isn't
        empty is metadata. Rows about the same image are put together.

        Args:
            row: names to values.
            where: file and line, for messages.
        """
        image = row.get("image")
        if not isinstance(image, str) or not image.strip():
            self.reject(where, "names no image; 'image' must be a path", "no image")
            return
        record = self.get(image.strip())
        try:
            for name, value in row.items():
                language = self._language(row) if name == "caption" else caption_language(name)
                if language is not None:
                    record.add(value, language, where)
                elif name not in ("image", "language") and value not in (None, ""):
                    record.metadata[name] = value
        except DataError as error:
            record.problem = error

    def _language(self, row: Mapping[str, Any]) -> str:
        language = row.get("language")
        return language.strip() if isinstance(language, str) and language.strip() else self.language
