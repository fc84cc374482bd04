"""Multi-head attention, for self-attention and cross-attention alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.layers.positions import Rotation

FEW_QUERIES, MANY_KEYS = 8, 64


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
        self.joint: nn.Linear | None = None
        self.kept_in: torch.dtype | None = None

    def fuse(self, *, queries: bool) -> None:
        """Joins projections of the same input into a single linear map, ``joint``, which takes their place.

        Args:
            queries: whether that of the queries is one of them, as in self-attention; else those of keys and values.
        """
        names = ["query", "key", "value"] if queries else ["key", "value"]
        parts: list[nn.Linear] = [getattr(self, name) for name in names]
        joint = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), device="meta")
        joint.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        biases = [part.bias.detach() for part in parts if part.bias is not None]
        joint.register_parameter("bias", nn.Parameter(torch.cat(biases)) if biases else None)
        self.joint = joint
        for name in names:
            delattr(self, name)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], x.shape[-1] // self.head_width, self.head_width).transpose(1, 2)

    def keys_values(self, context: Tensor, rotation: Rotation | None = None) -> KeyValues:
        """Projects (B, T or P, D) ``context`` to what queries are compared with and what they gather.

        Args:
            context: what is attended to.
            rotation: of the keys by their positions, where the model has rotary positions.
        """
        if self.joint is None:
            return self._keys_values(self.key(context), self.value(context), rotation)
        keys, values = self.joint(context).chunk(2, -1)
        return self._keys_values(keys, values, rotation)

    def kept(self, context: Tensor) -> KeyValues:
        """Does the same for what is attended to again and again: side by side in memory, in ``kept_in`` if that is set.

        Args:
            context: (B, P, D) what is attended to.
        """
        keys_values = self.keys_values(context)
        if torch.is_grad_enabled():
            return keys_values
        return KeyValues(*(part.to(self.kept_in or part.dtype).contiguous() for part in keys_values))

    def project(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, KeyValues]:
        """Projects (B, T, D) ``x`` to queries, keys and values, as self-attention does.

        Args:
            x: where queries come from, and what they are compared with.
            rotation: of queries and keys by their positions.
        """
        if self.joint is None:
            return self._queries(self.query(x), rotation), self.keys_values(x, rotation)
        shared = self.key_value_heads * self.head_width
        query, keys, values = self.joint(x).split([self.heads * self.head_width, shared, shared], -1)
        return self._queries(query, rotation), self._keys_values(keys, values, rotation)

    def _queries(self, query: Tensor, rotation: Rotation | None) -> Tensor:
        query = self._split(query)
        if self.query_norm is not None:
            query = self.query_norm(query)
        return query if rotation is None else rotation.turn(query)

    def _keys_values(self, keys: Tensor, values: Tensor, rotation: Rotation | None) -> KeyValues:
        keys = self._split(keys)
        if self.key_norm is not None:
            keys = self.key_norm(keys)
        return KeyValues(keys if rotation is None else rotation.turn(keys), self._split(values))

    def forward(
        self, x: Tensor, keys_values: KeyValues, mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> Tensor:
        """Gathers from ``keys_values`` for every position of ``x``.

        Args:
            x: (B, T, D) where queries come from.
            keys_values: what to attend to.
            mask: broadcastable to (B, N, T, keys): bool, true where a query may look, or numbers that are added to the
                scores.
            rotation: of the queries by their positions.

        Returns:
            (B, T, D).
        """
        return self.attend(self._queries(self.query(x), rotation), keys_values, mask)

    def attend(self, query: Tensor, keys_values: KeyValues, mask: Tensor | None = None) -> Tensor:
        """Does the same for (B, N, T, D / N) queries that are projected already."""
        grouped = self.key_value_heads != self.heads
        if mask is None and not grouped and _few(query, keys_values):
            gathered = _gather(query, keys_values, self.scale)
        else:
            gathered = F.scaled_dot_product_attention(
                query.to(keys_values.keys.dtype), *keys_values, attn_mask=mask, scale=self.scale, enable_gqa=grouped
            ).to(query.dtype)
        return self.output(gathered.transpose(1, 2).flatten(2))


def _few(query: Tensor, keys_values: KeyValues) -> bool:
    """Says whether so few queries look at so many keys that two matrix products take less time than a fused kernel.

    On a CPU they do where a few beams look at an image, but not a single row in float32.
    """
    if query.device.type != "cpu" or torch.is_grad_enabled():
        return False
    keys = keys_values.keys
    several = query.shape[0] * query.shape[2] > 1 or keys.dtype != query.dtype
    return several and query.shape[2] <= FEW_QUERIES and keys.shape[2] >= MANY_KEYS


def _gather(query: Tensor, keys_values: KeyValues, scale: float | None) -> Tensor:
    keys, values = keys_values
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scaled.to(keys.dtype) @ keys.transpose(2, 3)
    return (scores.float().softmax(-1).to(values.dtype) @ values).to(query.dtype)
