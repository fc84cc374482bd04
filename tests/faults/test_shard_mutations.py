"""Shards changed at random: every sample is accounted for, and none is made of parts of two."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import BLOCK, facts, member, tar, write_folder

from mm.data.samples import Sample, Tally
from mm.data.shards.inspecting import inspect_shards
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import IndexedShards, read_shard
from mm.errors import DataError

SHARDS = ("a.tar", "b.tar")
COUNT = 5
EXAMPLES, MUTATIONS = 1000, 4  # so often, up to so many changes to two shards

KEYS = [[sha256(f"{name}{number}".encode()).hexdigest()[:12] for number in range(COUNT)] for name in SHARDS]
ALL_KEYS = [key for keys in KEYS for key in keys]


def image(key: str) -> bytes:
    """The image of a sample: its key again and again, in a length of its own. It is never decoded here."""
    return key.encode() * (30 + 11 * ALL_KEYS.index(key))


def members_of(key: str) -> list[bytes]:
    """The members of a sample, each full of the key. Some have two, some three."""
    caption = f"a photo of {key} and {key}"
    document = {"captions_zh": [f"{key} 照片"], "of": key}
    parts = [member(f"{key}.jpg", image(key)), member(f"{key}.txt", caption.encode())]
    if ALL_KEYS.index(key) % 3:
        parts.append(member(f"{key}.json", json.dumps(document | {"captions": [caption]}).encode()))
    return parts


ORIGINALS = [[part for key in keys for part in members_of(key)] for keys in KEYS]


@dataclass(frozen=True)
class Mutation:
    """A change to one of the shards. ``here`` and ``there`` are members, or places in the file, modulo their number."""

    kind: str
    shard: int
    here: int
    there: int


def mutations(*kinds: str) -> st.SearchStrategy[Mutation]:
    places = st.integers(0, 1 << 16)
    return st.builds(Mutation, st.sampled_from(kinds), st.integers(0, 1), places, places)


MOVES = ("remove", "repeat", "move", "swap", "carry")
DAMAGE = ("flip", "zero", "cut", "zero header")


def move_members(shards: list[list[bytes]], mutation: Mutation) -> None:
    """Removes, repeats, moves or swaps members, within a shard or between two."""
    own, other = shards[mutation.shard], shards[1 - mutation.shard]
    if not own or not other:
        return
    here, there = mutation.here % len(own), mutation.there
    if mutation.kind == "remove":
        own.pop(here)
    elif mutation.kind == "repeat":
        own.insert(there % (len(own) + 1), own[here])
    elif mutation.kind == "move":
        own.insert(there % len(own), own.pop(here))
    elif mutation.kind == "swap":
        there %= len(other)
        own[here], other[there] = other[there], own[here]
    elif mutation.kind == "carry":
        other.insert(there % (len(other) + 1), own.pop(here))


def damage_bytes(content: bytearray, mutation: Mutation, flipped: set[int]) -> None:
    """Flips a bit, zeroes blocks, or cuts a file. A block is flipped once: its checksum can't be right again."""
    at = mutation.here % max(len(content), 1)
    if mutation.kind == "cut":
        del content[at - at % BLOCK * (mutation.there % 2) :]
    elif mutation.kind == "zero" or (mutation.kind == "zero header" and not content):
        first = at - at % BLOCK
        last = min(len(content), first + BLOCK * (1 + mutation.there % 3))
        content[first:last] = bytes(last - first)
    elif mutation.kind == "zero header":
        headers = [place for place in range(0, len(content), BLOCK) if content[place + 257 : place + 262] == b"ustar"]
        for place in headers[mutation.here % max(len(headers), 1) :][:1]:
            content[place : place + BLOCK] = bytes(BLOCK)
    elif mutation.kind == "flip" and content and at // BLOCK not in flipped:
        flipped.add(at // BLOCK)
        content[at] ^= 1 << mutation.there % 8


def mutate(all_mutations: list[Mutation]) -> list[bytes]:
    """Both shards, changed: members first, then bytes."""
    shards = [list(members) for members in ORIGINALS]
    for mutation in all_mutations:
        if mutation.kind in MOVES:
            move_members(shards, mutation)
    contents = [bytearray(tar(members)) for members in shards]
    flipped: tuple[set[int], set[int]] = (set(), set())
    for mutation in all_mutations:
        if mutation.kind in DAMAGE:
            damage_bytes(contents[mutation.shard], mutation, flipped[mutation.shard])
    return [bytes(content) for content in contents]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_folder(tmp_path_factory.mktemp("mutated"), dict(zip(SHARDS, ORIGINALS, strict=True)))


@pytest.fixture(scope="module")
def originals(written: Manifest) -> dict[str, tuple[object, ...]]:
    samples = [item for entry in written.shards for item in read_shard(entry.path, entry) if isinstance(item, Sample)]
    assert [sample.key for sample in samples] == ALL_KEYS
    return {sample.key: facts(sample) for sample in samples}


def check_pairing(sample: Sample) -> None:
    """Image, captions and metadata are those of the sample's key, as far as their bytes are still there."""
    assert sample.key in ALL_KEYS
    assert len(sample.image) == len(image(sample.key))
    texts = json.dumps([sample.captions, sample.metadata])
    for key in ALL_KEYS:
        if key != sample.key:
            assert key.encode() not in sample.image and key not in texts


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(changes=st.lists(mutations(*MOVES, *DAMAGE), min_size=1, max_size=MUTATIONS))
def test_ledger_and_pairs(written: Manifest, originals: dict[str, tuple[object, ...]], changes: list[Mutation]) -> None:
    contents = mutate(changes)
    for entry, content in zip(written.shards, contents, strict=True):
        entry.path.write_bytes(content)
    kinds = {mutation.kind for mutation in changes}
    # No content is changed then, so that whatever is used must be what it was.
    exact = kinds <= set(MOVES) or kinds <= {"cut", "zero header"}
    verified = inspect_shards(written.shards, verify=True)
    inspected = inspect_shards(written.shards)
    shards = IndexedShards(written, inspections=verified)
    for number, entry in enumerate(written.shards):
        changed = contents[number] != tar(ORIGINALS[number])
        tally = Tally()
        samples = list(tally.accept(read_shard(entry.path, entry)))
        there = len(inspected[number].languages)
        assert tally.seen == max(COUNT, there)
        for found in (inspected[number], verified[number]):
            assert sum(problem.samples for problem in found.problems) == len(found.unusable)
            assert set(found.unusable) <= set(range(max(COUNT, there)))
            assert found.damaged or all(problem.key for problem in found.problems)
        assert verified[number].damaged == changed
        for sample in samples:
            check_pairing(sample)
        used = check_by_position(shards, number, verified[number].unusable, samples)
        assert not exact or all(facts(sample) == originals[sample.key] for sample in used)


def check_by_position(shards: IndexedShards, number: int, unusable: list[int], samples: list[Sample]) -> list[Sample]:
    """Every position gives what was read in order, or an error; gives the samples that were found usable."""
    known = {sample.key: facts(sample) for sample in samples}
    used = []
    for place in range(COUNT):
        try:
            sample = shards[number * COUNT + place]
        except DataError as error:
            assert place in unusable and error.reason
            continue
        check_pairing(sample)
        assert facts(sample) == known[sample.key]
        if place not in unusable:
            used.append(sample)
    return used


def test_every_kind_of_mutation_changes_something() -> None:
    for kind in (*MOVES, *DAMAGE):
        assert mutate([Mutation(kind, 0, 7 * BLOCK + 3, 4)]) != [tar(members) for members in ORIGINALS], kind
