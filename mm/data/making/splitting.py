"""Samples dealt out to splits by their keys, so that a sample's split never changes."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from itertools import accumulate

from mm.data.hashes import hash64
from mm.data.shards.keys import clean_key
from mm.errors import OptionError

_NAME = re.compile(r"\w[\w-]*")
_SCALE = 1 << 64


class Splits:
    """Splits with their shares of all samples.

    Which split a sample belongs to is a hash of its key and nothing else: neither other samples nor their order
    matter, and the same key in two sources is never in two splits. The shares hold on average.

    Args:
        shares: name of each split to its share; the shares add up to 1. A single split may be called ``""``.

    Raises:
        OptionError: a share isn't above 0, or they don't add up to 1; or a name isn't a plain one.
    """

    def __init__(self, shares: dict[str, float]) -> None:
        if not shares or not all(share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
            raise OptionError(f"splits {shares} must have shares above 0 that add up to 1, like train=0.9,val=0.1")
        if list(shares) != [""] and not all(map(_NAME.fullmatch, shares)):
            raise OptionError(f"splits {shares} must have plain names of letters, digits, '-' and '_'")
        self.shares = shares
        self.names = list(shares)
        self._ends = [round(end * _SCALE) for end in accumulate(shares.values())][:-1]

    @classmethod
    def parse(cls, text: str) -> Splits:
        """Reads splits from the form ``train=0.9,val=0.1``.

        Raises:
            OptionError: it has another form, a name twice, or shares that don't add up to 1.
        """
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, share = part.strip().partition("=")
            try:
                value = float(share)
            except ValueError:
                raise OptionError(f"splits {text!r} must look like train=0.9,val=0.1") from None
            if name in shares:
                raise OptionError(f"splits {text!r} name {name!r} twice")
            shares[name] = value
        return cls(shares)

    def of(self, key: str) -> str:
        """The split that a sample with this key belongs to."""
        return self.names[bisect_right(self._ends, hash64(clean_key(key)))]


ONE = Splits({"": 1.0})
