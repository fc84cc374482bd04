"""Multi-head attention, for self-attention and cross-attention alike."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mm.layers.positions import Rotation


class KeyValues(NamedTuple):
    """Keys and values of one attention, already projected and split into heads: (B, heads, T or P, D / N) each."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Scaled dot-product attention over several heads (Vaswani et al., arXiv:1706.03762).

    Args:
        width: model width D of the queries and of the output.
        heads: number of heads N.
        key_value_heads: heads of keys and values, each shared by N / key_value_heads query heads (grouped-query
            attention, arXiv:2305.13245; multi-query with one); None for N.
        head_width: width of a head; None for D / N.
        context_width: width of what is attended to; None for ``width``.
        bias: whether the projections of queries, keys and values have a bias.
        output_bias: whether that of the output has one; None for as ``bias``.
        scale: what dot products are multiplied with; None for one over the root of the head's width.
        head_norms: normalizations of queries and of keys, over the head's width; None for none.

    Raises:
        ValueError: ``width`` is not a multiple of ``heads`` where the head's width depends on it, or ``heads`` not one
            of ``key_value_heads``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        head_width: int | None = None,
        context_width: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        scale: float | None = None,
        head_norms: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if head_width is None and width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.key_value_heads = key_value_heads or heads
        if heads % self.key_value_heads:
            raise ValueError(f"{heads} heads are not a multiple of {key_value_heads} heads of keys and values")
        self.head_width = head_width or width // heads
        self.scale = scale
        inner, shared = self.heads * self.head_width, self.key_value_heads * self.head_width
        self.query = nn.Linear(width, inner, bias=bias)
        self.key = nn.Linear(context_width or width, shared, bias=bias)
        self.value = nn.Linear(context_width or width, shared, bias=bias)
        self.output = nn.Linear(inner, width, bias=bias if output_bias is None else output_bias)
        self.query_norm = None if head_norms is None else head_norms[0]
        self.key_norm = None if head_norms is None else head_norms[1]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def keys_values(self, context: Tensor, rotation: Rotation | None = None) -> KeyValues:
        """Projects (B, T or P, D) ``context`` to what queries are compared with and what they gather.

        Args:
            context: what is attended to.
            rotation: of the keys by their positions, where the model has rotary positions.
        """
        keys = self._split(self.key(context))
        if self.key_norm is not None:
            keys = self.key_norm(keys)
        if rotation is not None:
            keys = rotation.turn(keys)
        return KeyValues(keys, self._split(self.value(context)))

    def forward(
        self, x: Tensor, keys_values: KeyValues, mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> Tensor:
        """Gathers from ``keys_values`` for every position of ``x``.

        Args:
            x: (B, T, D) where queries come from. Its batch may be K times that of ``keys_values``: then K consecutive
                rows (the beams of one image) share one row of keys and values, which are not copied.
            keys_values: what to attend to.
            mask: broadcastable to (B, N, T, keys): bool, true where a query may look, or numbers that are added to the
                scores. With shared rows it has a row for each row of keys.
            rotation: of the queries by their positions; not with shared rows.

        Returns:
            (B, T, D).
        """
        rows, length = x.shape[:2]
        sources = keys_values.keys.shape[0]
        query = self.query(x)
        if rows != sources:
            query = query.reshape(sources, -1, query.shape[-1])
            if mask is not None and mask.shape[2] > 1:
                mask = mask.repeat(1, 1, rows // sources, 1)
        query = self._split(query)
        if self.query_norm is not None:
            query = self.query_norm(query)
        if rotation is not None:
            query = rotation.turn(query)
        gathered = F.scaled_dot_product_attention(
            query,
            *keys_values,
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=self.key_value_heads != self.heads,
        )
        return self.output(gathered.transpose(1, 2).reshape(rows, length, -1))
