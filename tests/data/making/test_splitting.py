from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm.data.making.splitting import ONE, Splits
from mm.errors import OptionError

KEYS = [f"photos/{number}" for number in range(4000)]


def test_the_split_of_a_key_never_changes() -> None:
    splits = Splits.parse("train=0.8, val=0.1,test=0.1")
    found = {key: splits.of(key) for key in ("a", "g", "F", "i", "W", "1000268201_693b08cb0e", "图")}
    assert [key for key, split in found.items() if split == "val"] == ["g", "i"]
    assert [key for key, split in found.items() if split == "test"] == ["F", "W"]


@pytest.mark.parametrize("shares", [{"train": 0.9, "val": 0.1}, {"a": 0.5, "b": 0.3, "c": 0.2}])
def test_shares_hold_on_average(shares: dict[str, float]) -> None:
    found = [Splits(shares).of(key) for key in KEYS]
    for name, share in shares.items():
        assert abs(found.count(name) / len(KEYS) - share) < 0.03


def test_a_larger_share_takes_nothing_from_the_first_split() -> None:
    small, large = Splits({"train": 0.8, "val": 0.2}), Splits({"train": 0.9, "val": 0.1})
    assert {key for key in KEYS if small.of(key) == "train"} < {key for key in KEYS if large.of(key) == "train"}


@given(st.text())
def test_every_key_has_a_split(key: str) -> None:
    assert ONE.of(key) == "" and Splits({"a": 0.5, "b": 0.5}).of(key) in ("a", "b")


def test_keys_that_are_written_alike_are_not_parted() -> None:
    splits = Splits({"a": 0.5, "b": 0.5})
    for key in KEYS[:50]:
        assert splits.of(f"/{key}.v1") == splits.of(f"{key}_v1".replace("/", "//"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train",
        "train=",
        "train=x",
        "train=0.9",
        "train=1,val=0",
        "a=0.5,a=0.5",
        "a=1.5,b=-0.5",
        "../x=1",
        "a=nan",
    ],
)
def test_wrong_shares(text: str) -> None:
    with pytest.raises(OptionError, match="splits"):
        Splits.parse(text)
