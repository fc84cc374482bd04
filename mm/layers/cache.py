"""What decoding keeps between steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.layers.attention import KeyValues


class SelfAttentionCache:
    """Preallocated keys and values of every decoder block, for the tokens seen so far.

    Tokens of one row needn't follow one another: the beams of an image share its row, and a mask tells whose tokens are
    whose. So the prompt is there once for all beams, and a beam that goes on from another copies nothing.

    Args:
        layers: number of blocks.
        rows: number of texts, or of images whatever their number of beams.
        heads: number of heads N.
        capacity: the most tokens a row may reach, all of its beams' together.
        head_width: D / N.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        capacity: int,
        head_width: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.length = 0
        self.layers = layers
        self.capacity = capacity
        shape = (layers, 2, rows, heads, capacity, head_width)
        self._store = torch.zeros(shape, dtype=dtype, device=device)

    def append(self, layer: int, new: KeyValues) -> KeyValues:
        """Writes a block's new keys and values behind the old ones and returns all of them.

        Args:
            layer: which block.
            new: (rows, N, T, D / N) keys and values of T new tokens.

        Raises:
            ValueError: more tokens than the cache was made for.
        """
        end = self.length + new.keys.shape[2]
        if end > self.capacity:
            raise ValueError(f"a cache for {self.capacity} tokens can't hold {end}")
        keys, values = self._store[layer, 0], self._store[layer, 1]
        keys[:, :, self.length : end] = new.keys
        values[:, :, self.length : end] = new.values
        return KeyValues(keys[:, :, :end], values[:, :, :end])

    def advance(self, tokens: int) -> None:
        """Counts ``tokens`` as seen, once every block has appended them."""
        self.length += tokens

    def seen(self, layer: int) -> KeyValues:
        """Gives a block's keys and values of all that was seen."""
        return KeyValues(*self._store[layer, :, :, :, : self.length])

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows (R,), in that order: those of images that aren't finished."""
        kept = self._store.new_zeros(*self._store.shape[:2], len(rows), *self._store.shape[3:])
        kept[..., : self.length, :] = self._store[..., : self.length, :].index_select(2, rows)
        self._store = kept


class SlotCache:
    """Keys and values of every decoder block in slots, for a step whose shapes are the same as those of all others.

    All slots are attended to; a mask tells which of them hold tokens of a row.

    Args:
        layers: each block's keys and values, (rows, N, S, D / N) with S slots, which are written in place.
        slots: (T,) int64, where the T new tokens go.
    """

    def __init__(self, layers: Sequence[KeyValues], slots: Tensor) -> None:
        self.length = layers[0].keys.shape[2]
        self._layers, self._slots = layers, slots

    def append(self, layer: int, new: KeyValues) -> KeyValues:
        """Writes a block's new keys and values, (rows, N, T, D / N) each, and returns those of all slots."""
        whole = self._layers[layer]
        for part, value in zip(whole, new, strict=True):
            part.index_copy_(2, self._slots, value)
        return whole

    def advance(self, tokens: int) -> None:
        """Counts nothing: which slots hold ``tokens`` is known beforehand."""


Cache = SelfAttentionCache | SlotCache
