"""Where the samples of a shard lie, and which of them can't be used."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mm.data.samples import Sample, caption_language, parse_captions
from mm.data.shards.archive import Archive, HashingReader
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.tar import CUT, IMAGE_SUFFIXES, Group, Member, groups
from mm.errors import DataError, ShardError

FEWER = "fewer samples than the manifest says"
MORE = "more samples than the manifest says"
LARGER = "shard larger than the manifest says"
HASH_DIFFERS = "shard hash differs"
NO_IMAGE = "no image"
SEVERAL_IMAGES = "more than one image"
DUPLICATE_MEMBER = "duplicate member"
DUPLICATE_KEY = "duplicate key"
NOT_ADJACENT = "members of a sample not adjacent"
UNSAFE = "unsafe member"
TOO_LARGE = "file too large"
MISSING_CAPTION = "missing caption"
EMPTY_CAPTION = "empty caption"

LARGEST_IMAGE = 1 << 30
LARGEST_CAPTIONS = 1 << 24
DIGEST_BYTES = 8

Part = tuple[int, int] | None
Contents = tuple[bytes | None, bytes | None, bytes | None]
_WORDS = 7


@dataclass(frozen=True, slots=True)
class Located:
    """One sample of a shard: its key, and where its parts lie.

    ``parts`` are those of the image, the text and the JSON file: (offset, size) in bytes, or None where there is none.
    ``offset`` is where its first header starts. ``problem`` says why it can't be used.
    """

    key: str
    suffix: str
    offset: int
    parts: tuple[Part, Part, Part]
    problem: DataError | None


class Layout:
    """The samples of one shard, a few machine words each, in the order in which they begin.

    Args:
        archive: the shard, whose headers are read once; ``damage`` is where that ended early.
    """

    def __init__(self, archive: Archive) -> None:
        self.name = archive.name
        self.damage: ShardError | None = None
        self._keys: list[str] = []
        self._suffixes: list[str] = []
        self._words = array("q")
        self._problems: dict[int, tuple[str, str, int]] = {}
        self._places: dict[str, list[int]] = {}
        self._members: list[frozenset[str]] = []
        kinds: dict[frozenset[str], frozenset[str]] = {}
        try:
            for group in groups(archive):
                members = frozenset(group.members)
                self._add(group, kinds.setdefault(members, members))
        except ShardError as error:
            self.damage = ShardError(str(error), error.reason, error.offset)  # with no traceback, which holds the file
        del self._places, self._members

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Located]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Located:
        at = _WORDS * place
        offset, *words = self._words[at : at + _WORDS]
        image, text, document = ((words[i], words[i + 1]) if words[i] >= 0 else None for i in (0, 2, 4))
        wrong = self._problems.get(place)
        problem = None if wrong is None else DataError(*wrong)
        return Located(self._keys[place], self._suffixes[place], offset, (image, text, document), problem)

    def key(self, place: int) -> str:
        """The key of a sample."""
        return self._keys[place]

    def _add(self, group: Group, members: frozenset[str]) -> None:
        known = self._places.setdefault(group.key, [])
        if known and not any(members & self._members[place] for place in known):
            self._members[known[-1]] |= members
            for place in known:
                self._reject(place, NOT_ADJACENT, group.start, "its members don't lie side by side")
            return
        place = len(self._keys)
        known.append(place)
        self._members.append(members)
        self._append(group)
        if len(known) > 1:
            for place in known:
                self._reject(place, DUPLICATE_KEY, group.start, "the key occurs more than once; keys must differ")

    def _append(self, group: Group) -> None:
        suffix = group.image or ""
        members = [group.members.get(name) for name in (suffix, "txt", "json")]
        if not suffix:
            members[0] = None
        self._keys.append(group.key)
        self._suffixes.append(sys.intern(suffix))
        self._words.append(group.start)
        for member in members:
            self._words.extend((-1, 0) if member is None else (member.offset, member.size))
        self._judge(len(self._keys) - 1, group, members)

    def _judge(self, place: int, group: Group, members: list[Member | None]) -> None:
        """Notes what is wrong with a group by itself."""
        if group.unsafe is not None:
            what = f"{group.unsafe.name} {group.unsafe.unsafe}"
            self._reject(place, UNSAFE, group.unsafe.header, f"{what}; it isn't opened, leave it out")
        elif group.duplicate is not None:
            what = f"{group.duplicate.name} is there twice"
            self._reject(place, DUPLICATE_MEMBER, group.duplicate.header, f"{what}; leave one out")
        elif members[0] is None:
            several = bool(IMAGE_SUFFIXES & group.members.keys())
            reason = SEVERAL_IMAGES if several else NO_IMAGE
            self._reject(place, reason, group.start, f"{reason}; expected one image, with .txt or .json")
        for member, largest in zip(members, (LARGEST_IMAGE, LARGEST_CAPTIONS, LARGEST_CAPTIONS), strict=True):
            if member is not None and member.size > largest:
                what = f"{member.name} has {member.size:,} bytes, at most {largest:,} are read"
                self._reject(place, TOO_LARGE, member.header, what)

    def _reject(self, place: int, reason: str, offset: int, what: str) -> None:
        self._problems[place] = (f"{self.name}/{self._keys[place]}: {what}", reason, offset)


def read_parts(reader: Archive | HashingReader, located: Located, images: bool = True) -> Contents:
    """Reads the parts of a sample in the order in which they lie in the shard.

    Args:
        reader: what to read from.
        located: the sample.
        images: whether its image is read.

    Returns:
        Its image, text and JSON file; None for what isn't there, or isn't read.

    Raises:
        ShardError: reading fails.
    """
    contents: list[bytes | None] = [None, None, None]
    wanted = enumerate(located.parts if images else (None, *located.parts[1:]))
    for offset, size, which in sorted((*part, which) for which, part in wanted if part is not None):
        contents[which] = reader.content(offset, size)
    return contents[0], contents[1], contents[2]


def make_sample(name: str, located: Located, contents: Contents, captions: bool = False) -> Sample:
    """Makes a sample of its parts.

    Args:
        name: the shard, for messages.
        located: the sample.
        contents: its image, text and JSON file; None for what isn't there.
        captions: whether a sample without a caption is an error.

    Raises:
        DataError: it can't be used.
    """
    source = f"{name}/{located.key}"
    image, text, document = contents
    try:
        texts, metadata = parse_captions(text, document, source)
        if captions and not texts:
            raise _no_caption(source, located.key, contents)
    except DataError as error:
        error.offset = located.offset
        raise
    return Sample(located.key, f"{source}.{located.suffix}", image or b"", texts, metadata)


def combine_digests(parts: Iterable[bytes]) -> bytes:
    """The digest of a sample from the SHA-256 of each of its parts, ``b""`` for one that isn't there: 8 bytes."""
    return hashlib.sha256(b"".join(part or bytes(32) for part in parts)).digest()[:DIGEST_BYTES]


def digest_contents(contents: Contents) -> bytes:
    """The digest of a sample from its parts, 8 bytes."""
    return combine_digests(b"" if part is None else hashlib.sha256(part).digest() for part in contents)


def disagreement(name: str, found: ManifestEntry, expected: ManifestEntry) -> ShardError | None:
    """What is wrong with a well-formed shard, going by its manifest.

    Args:
        name: the shard, for messages.
        found: how many samples and bytes there are, and the SHA-256 if it is known.
        expected: what the manifest says.
    """
    there, size = found.nsamples, found.bytes
    if there != expected.nsamples:
        reason = FEWER if there < expected.nsamples else MORE
        return ShardError(f"{name}: holds {there} samples, the manifest says {expected.nsamples}", reason, size)
    if size is not None and expected.bytes is not None and size != expected.bytes:
        reason = CUT if size < expected.bytes else LARGER
        message = f"{name}: is {size} bytes, the manifest says {expected.bytes}"
        return ShardError(message, reason, min(size, expected.bytes))
    if found.sha256 is not None and expected.sha256 not in (None, found.sha256):
        return ShardError(f"{name}: its SHA-256 isn't the manifest's; get it again", HASH_DIFFERS)
    return None


def _no_caption(source: str, key: str, contents: Contents) -> DataError:
    _, text, document = contents
    if text is None and not any(caption_language(name) for name in json.loads(document or b"{}")):
        return DataError(f"{source}: has no caption; add {key}.txt or .json", MISSING_CAPTION)
    return DataError(f"{source}: its caption is empty; write one", EMPTY_CAPTION)
