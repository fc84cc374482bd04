from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mm.data.shards.keys import UniqueKeys, clean_key
from mm.data.shards.tar import split_name


@settings(max_examples=200)
@given(st.text())
def test_clean_keys_read_back(key: str) -> None:
    clean = clean_key(key)
    assert split_name(f"{clean}.jpg") == (clean, "jpg")
    assert not clean.startswith("/") and ".." not in clean.split("/") and clean.isprintable()
    assert clean_key(clean) == clean


@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "b", "a_2_2"]), max_size=20))
def test_keys_are_taken_once(keys: list[str]) -> None:
    unique = UniqueKeys()
    taken = [unique.take(key) for key in keys]
    assert len(set(taken)) == len(taken)
    assert all(name == key or name.startswith(f"{key}_") for name, key in zip(taken, keys, strict=True))


@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "b"]), max_size=20), st.integers(0, 20))
def test_what_was_taken_is_all_there_is_to_know(keys: list[str], count: int) -> None:
    unique = UniqueKeys()
    taken = [unique.take(key) for key in keys]
    again = UniqueKeys()
    assert [again.take(key) for key in taken[:count]] == taken[:count]
    assert [again.take(key) for key in keys[count:]] == taken[count:]


def test_many_alike_take_no_longer_each() -> None:
    unique = UniqueKeys()
    assert [unique.take("a") for _ in range(50_000)][-1] == "a_50000"
