"""Phrases that must appear in captions, and how far captions are with them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.generation.text import Text, words

NOTHING = -1  # stands where there is no token


class Boundaries(NamedTuple):
    """Where words end: there is no boundary between a token that is ``open`` and one that ``joins``.

    Args:
        opens: (V + 1,) bool, true for a token whose last word goes on if letters follow; the last is ``NOTHING``.
        joins: (V + 1,) bool, true for a token that begins with letters of the word before it.
    """

    opens: Tensor
    joins: Tensor

    def broken(self, before: Tensor, behind: Tensor) -> Tensor:
        """Says of pairs of tokens whether a word goes on from one to the other."""
        return self.opens[before] & self.joins[behind]


@lru_cache(maxsize=8)
def find_boundaries(text: Text, vocabulary: int) -> Boundaries:
    """Finds them by decoding every token of a vocabulary, alone and behind a word."""
    alone = text.decode([[token] for token in range(vocabulary)])
    opens = [words(one + "a")[-1] != "a" for one in alone]
    joins = [False] * vocabulary
    word = next((token for token, one in enumerate(alone) if opens[token] and len(words(one)) == 1), None)
    if word is not None:
        behind = text.decode([[word, token] for token in range(vocabulary)])
        joins = [words(one)[:1] != words(alone[word]) for one in behind]
    return Boundaries(torch.tensor([*opens, False]), torch.tensor([*joins, False]))


class Met(NamedTuple):
    """Which of R phrases are there.

    Args:
        surely: (..., R) bool, whatever follows.
        last: (..., R) bool, those that a row ends with: they are there unless the next token goes on with their last
            word.
    """

    surely: Tensor
    last: Tensor


class Phrases:
    """Phrases that must appear, each in any of its spellings, and how far rows are with them.

    Args:
        spellings: of each of R phrases the token ids, S in all.
        boundaries: a spelling counts only where its first and last words are whole.
        device: where rows are.
    """

    def __init__(
        self, spellings: Sequence[Sequence[Sequence[int]]], boundaries: Boundaries, device: torch.device
    ) -> None:
        flat = [(phrase, ids) for phrase, several in enumerate(spellings) for ids in several]
        self.longest = max(len(ids) for _, ids in flat)
        padded = [[*ids, *[NOTHING] * (self.longest - len(ids))] for _, ids in flat]
        self.tokens = torch.tensor(padded, device=device)  # (S, L)
        self.lengths = torch.tensor([len(ids) for _, ids in flat], device=device)  # (S,)
        owners = torch.tensor([phrase for phrase, _ in flat], device=device)
        self.owned = owners == torch.arange(len(spellings), device=device)[:, None]  # (R, S)
        self.shortest = torch.tensor([min(map(len, several)) for several in spellings], device=device)  # (R,)
        self.all = int(self.shortest.sum())  # tokens that all phrases take
        self.parts = torch.tensor(sorted({token for _, ids in flat for token in ids}), device=device)  # (U,)
        self.boundaries = Boundaries(*(one.to(device) for one in boundaries))

    def tails(self, rows: Tensor) -> Tensor:
        """Gives of (..., T) rows the (..., T, L + 1) last tokens at each place."""
        return F.pad(rows, (self.longest, 0), value=NOTHING).unfold(-1, self.longest + 1, 1)

    def progress(self, tails: Tensor) -> Tensor:
        """Counts the tokens of each spelling that rows end with: (..., L + 1) last tokens to (..., S)."""
        done = torch.zeros(*tails.shape[:-1], len(self.tokens), dtype=torch.int64, device=tails.device)
        for length in range(1, self.longest + 1):
            first = self.tokens[:, :length]
            same = (tails[..., None, -length:] == first).all(-1)  # shorter spellings have NOTHING there
            cut = self.boundaries.broken(tails[..., -length - 1, None], first[:, 0])
            done = torch.where(same & ~cut, length, done)
        return done

    def complete(self, progress: Tensor) -> Tensor:
        """Says which phrases rows end with: (..., S) to (..., R)."""
        return ((progress == self.lengths)[..., None, :] & self.owned).any(-1)

    def met(self, rows: Tensor) -> Met:
        """Finds the phrases in (..., T) rows."""
        ends = self.complete(self.progress(self.tails(rows)))
        whole = ~self.boundaries.broken(rows[..., :-1], rows[..., 1:])
        return Met((ends[..., :-1, :] & whole[..., None]).any(-2), ends[..., -1, :])

    def needed(self, met: Tensor, progress: Tensor | None = None) -> Tensor:
        """Counts the tokens that are enough to bring in what isn't there.

        Those of the phrase that a row is furthest with count once; of any other it may only begin after that.

        Args:
            met: (..., R) bool.
            progress: (..., S); None for none.

        Returns:
            (...) int64.
        """
        needed = (self.shortest * ~met).sum(-1)
        if progress is None:
            return needed
        left = (self.lengths - progress)[..., None, :].masked_fill(~self.owned, self.longest).amin(-1)
        return needed - ((self.shortest - left) * ~met).amax(-1).clamp_min(0)

    def needed_now(self, rows: Tensor) -> Tensor:
        """Counts them for (..., T) rows as they are."""
        surely, last = self.met(rows)
        return self.needed(surely | last, self.progress(self.tails(rows)[..., -1, :]))

    def needed_behind(self, rows: Tensor, vocabulary: int) -> Tensor:
        """Counts them for (..., T) rows and each token that may follow: (..., V)."""
        surely, last = self.met(rows)
        token = rows[..., -1:]
        goes_on = self.boundaries.broken(token, torch.arange(vocabulary, device=rows.device))
        needed = torch.where(goes_on, self.needed(surely)[..., None], self.needed(surely | last)[..., None])

        tail = self.tails(rows)[..., -1, 1:]
        behind = self.parts[:, None].expand(*tail.shape[:-1], -1, 1)
        grown = torch.cat([tail[..., None, :].expand(*behind.shape[:-1], -1), behind], -1)
        progress = self.progress(grown)
        kept = last[..., None, :] & ~self.boundaries.broken(token, self.parts)[..., None]
        met = surely[..., None, :] | kept | self.complete(progress)
        return needed.scatter(-1, behind[..., 0], self.needed(met, progress))
