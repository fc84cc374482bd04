"""Multi-head attention, for self-attention and cross-attention alike."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class KeyValues(NamedTuple):
    """Keys and values of one attention, already projected and split into heads: (B, N, T or P, D / N) each."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Scaled dot-product attention over several heads (Vaswani et al., arXiv:1706.03762).

    Args:
        width: model width D of the queries and of the output.
        heads: number of heads N; divides ``width``.
        context_width: width of what is attended to; None for ``width``.
        bias: whether the projections have a bias.

    Raises:
        ValueError: ``width`` is not a multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int, *, context_width: int | None = None, bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(context_width or width, width, bias=bias)
        self.value = nn.Linear(context_width or width, width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeyValues:
        """Projects (B, T or P, D) ``context`` to what queries are compared with and what they gather."""
        return KeyValues(self._split(self.key(context)), self._split(self.value(context)))

    def forward(self, x: Tensor, keys_values: KeyValues, mask: Tensor | None = None) -> Tensor:
        """Gathers from ``keys_values`` for every position of ``x``.

        Args:
            x: (B, T, D) where queries come from. Its batch may be K times that of ``keys_values``: then K consecutive
                rows (the beams of one image) share one row of keys and values, which are not copied.
            keys_values: what to attend to.
            mask: bool, broadcastable to (B, N, T, keys), true where a query may look. Not with shared rows.

        Returns:
            (B, T, D).
        """
        rows, length = x.shape[:2]
        query = self.query(x)
        shared = rows != keys_values.keys.shape[0]
        if shared:
            query = query.reshape(keys_values.keys.shape[0], -1, query.shape[-1])
        gathered = F.scaled_dot_product_attention(self._split(query), *keys_values, attn_mask=mask)
        return self.output(gathered.transpose(1, 2).reshape(rows, length, -1))
