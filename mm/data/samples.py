"""Samples, rejections, the tally of both, and how captions are read from the files beside an image."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from mm.errors import DataError

T = TypeVar("T")

_LANGUAGE_KEY = re.compile(r"captions_([a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)", re.ASCII)


def printable(name: str) -> str:
    """A name on one line: characters that don't print are written as escapes."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


@dataclass(frozen=True)
class Need:
    """What samples need to be used: a caption in one of each group of languages."""

    groups: tuple[tuple[str, ...], ...] = ()

    def lack(self, languages: Collection[str]) -> str | None:
        """Says what is missing from a sample with captions in some languages; None for nothing."""
        for group in self.groups:
            if not any(language in languages for language in group):
                return f"no caption in {' or '.join(group)}"
        return None


@dataclass(frozen=True)
class Sample:
    """One image, still encoded, with its captions and metadata.

    Args:
        key: name within its shard or folder.
        source: where it came from, for messages: ``photos/a.jpg`` or ``shards/x.tar/a.jpg``.
        image: the bytes of the image file.
        captions: captions by language (``en``, ``zh``); a language without captions is absent.
        metadata: everything else that the sample's JSON file held.
    """

    key: str
    source: str
    image: bytes = field(repr=False)
    captions: dict[str, list[str]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def lacks(self, languages: Collection[str]) -> str | None:
        """Says that there is no caption in any of these languages; None where there is one."""
        return Need((tuple(languages),)).lack([language for language, texts in self.captions.items() if texts])


@dataclass(frozen=True)
class Rejection:
    """A sample, or the unreadable part of a shard, that can't be used.

    Args:
        source: the shard or file.
        key: the sample within it, or ``""`` where no single sample is meant.
        reason: a few words that are the same for all rejections of this kind.
        detail: one line about this one.
        samples: how many samples were lost. 1 for a sample; for a damaged shard with a manifest, the
            number that the manifest promises and that couldn't be read (0 where all of them could).
        offset: where in the shard it is, in bytes, if that is known.
    """

    source: str
    key: str
    reason: str
    detail: str = ""
    samples: int = 1
    offset: int | None = None

    @classmethod
    def of(cls, error: DataError, source: str, key: str = "", samples: int = 1) -> Rejection:
        """The rejection that an error stands for."""
        return cls(source, key, error.reason, str(error), samples, error.offset)


def rejection_line(rejection: Rejection) -> str:
    """A rejection as a line of JSON, with its end; a file takes it with ``backslashreplace``, whatever its texts."""
    return json.dumps(asdict(rejection), ensure_ascii=False) + "\n"


@dataclass
class Tally:
    """Counts what was used and what was rejected, so that nothing is lost silently.

    ``seen`` is always ``used`` plus ``rejected``: the samples that rejections stand for.
    """

    used: int = 0
    rejections: list[Rejection] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """How many samples were rejected."""
        return sum(rejection.samples for rejection in self.rejections)

    @property
    def seen(self) -> int:
        """How many samples there were: used and rejected."""
        return self.used + self.rejected

    @property
    def ok(self) -> bool:
        """Whether nothing was rejected."""
        return not self.rejections

    def use(self, count: int = 1) -> None:
        """Counts samples that were used."""
        self.used += count

    def reject(self, rejection: Rejection) -> None:
        """Counts and keeps a rejection."""
        self.rejections.append(rejection)

    def by_reason(self) -> dict[str, int]:
        """How many rejections there were of each reason, most frequent first."""
        return dict(Counter(rejection.reason for rejection in self.rejections).most_common())

    def accept(self, items: Iterable[T | Rejection]) -> Iterator[T]:
        """Passes samples on, counting each as used once it has been dealt with, and keeps the rejections.

        Args:
            items: what a reader yields.
        """
        for item in items:
            if isinstance(item, Rejection):
                self.reject(item)
                continue
            rejections = len(self.rejections)
            yield item
            if len(self.rejections) == rejections:
                self.use()


def caption_language(name: str) -> str | None:
    """The language of the captions that a field of this name holds in a JSON file; None where it holds metadata."""
    if name == "captions":
        return "en"
    match = _LANGUAGE_KEY.fullmatch(name)
    return match.group(1) if match else None


def parse_captions(
    text: bytes | None, document: bytes | None, name: str
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Reads captions and metadata from the files beside an image.

    The JSON file's ``captions`` (English) and ``captions_<language>`` win over the text file, which holds one
    English caption. Everything else in the JSON file is metadata. Empty captions are dropped.

    Args:
        text: content of ``key.txt``, or None where there is none.
        document: content of ``key.json``, or None where there is none.
        name: the sample, for messages.

    Returns:
        Captions by language, and metadata.

    Raises:
        DataError: a file isn't UTF-8, isn't JSON, or holds something other than lists of strings; or a caption has lost
            characters.
    """
    captions: dict[str, list[str]] = {}
    metadata: dict[str, Any] = {}
    if document is not None:
        for field_name, value in _json_object(document, name).items():
            language = caption_language(field_name)
            if language is not None:
                captions.setdefault(language, []).extend(_caption_list(value, field_name, name))
            else:
                metadata[field_name] = value
        captions = {language: texts for language, texts in captions.items() if texts}
    if not captions and text is not None:
        caption = _decode(text, f"{name}.txt").strip()
        if caption:
            captions["en"] = [caption]
    if any("\ufffd" in text for texts in captions.values() for text in texts):
        raise DataError(
            f"{name}: a caption holds U+FFFD, which stands for a lost character; write it again from its source",
            "caption with lost characters",
        )
    return captions, metadata


def caption_document(sample: Sample) -> bytes:
    """The JSON file of a sample: what ``parse_captions`` reads back as the same captions and metadata.

    Raises:
        DataError: the captions or metadata can't be written as JSON, or metadata has a name that is meant for captions.
    """
    document = dict(sample.metadata)
    for name in document:
        if caption_language(name) is not None:
            raise DataError(
                f"{sample.source}: metadata can't be named {name!r}, which holds captions; give it another name",
                "metadata named like captions",
            )
    document["captions"] = sample.captions.get("en", [])
    for language, texts in sample.captions.items():
        name = f"captions_{language}"
        if not _LANGUAGE_KEY.fullmatch(name):
            raise DataError(
                f"{sample.source}: {language!r} isn't a language code like 'en' or 'zh'", "unknown caption language"
            )
        if language != "en":
            document[name] = texts
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{sample.source}: a caption isn't valid Unicode", "caption is not UTF-8") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{sample.source}: the metadata isn't JSON: {error}", "metadata is not JSON") from error


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: the caption isn't UTF-8 (byte {error.start}); save it as UTF-8", "caption is not UTF-8"
        ) from None


def load_json(content: bytes | str) -> Any:
    """Reads JSON; numbers that it can't hold again, such as the NaN that Python writes, are null.

    Raises:
        ValueError: it isn't JSON, or not in an encoding that JSON has.
        RecursionError: it is nested too deeply.
    """
    return json.loads(content, parse_float=_finite_number, parse_constant=_finite_number)


def _finite_number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _json_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        document = load_json(_decode(data, f"{name}.json"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}.json: isn't valid JSON: {error}", "caption file is not JSON") from None
    if not isinstance(document, dict):
        raise DataError(
            f'{name}.json: holds a {type(document).__name__}, expected an object like {{"captions": ["..."]}}',
            "caption file is not a JSON object",
        )
    return document


def _caption_list(value: Any, field_name: str, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{name}.json: {field_name!r} must be a list of strings", "captions are not a list of strings")
    texts = [text.strip() for text in value]
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{name}.json: {field_name!r} holds half a surrogate pair", "caption is not UTF-8") from None
    return [text for text in texts if text]
