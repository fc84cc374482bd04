"""The text transformer: an encoder or a decoder, by its mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mm.layers import Block, KeyValues, SelfAttentionCache, attention_mask
from mm.layers.masks import MaskKind


class TextTransformer(nn.Module):
    """Token embeddings, learned positions and a stack of blocks under one mask.

    Args:
        embedding: (V, D) token embedding; may be shared with another transformer.
        blocks: the stack, at least one.
        max_tokens: the most tokens a sequence may have.
        mask: ``bidirectional`` for an encoder, ``causal`` for a decoder.
        head: share the embedding as the map from D to V logits, with a bias of its own; without it there are no logits.
        dropout: probability of dropping a unit of the embedded tokens while training.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        blocks: Iterable[Block],
        max_tokens: int,
        mask: MaskKind,
        *,
        head: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.width = embedding.embedding_dim
        self.max_tokens = max_tokens
        self.mask: MaskKind = mask
        self.positions = nn.Parameter(torch.randn(max_tokens, self.width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(self.width) if self._stack()[0].pre_norm else nn.Identity()
        self.head_bias = nn.Parameter(torch.zeros(embedding.num_embeddings)) if head else None

    def _stack(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def keys_values(self, context: Tensor) -> list[KeyValues]:
        """Projects (B, P, D) image tokens once for the cross-attention of every block.

        Raises:
            ValueError: a block has no cross-attention.
        """
        crossing = [block.cross_attention for block in self._stack()]
        if None in crossing:
            raise ValueError("this text transformer has blocks without cross-attention")
        return [attention.keys_values(context) for attention in crossing if attention is not None]

    def cache(self, rows: int, capacity: int) -> SelfAttentionCache:
        """Makes an empty cache for ``rows`` sequences of up to ``capacity`` tokens."""
        heads = self._stack()[0].attention.heads
        weight = self.embedding.weight
        return SelfAttentionCache(
            len(self.blocks),
            rows,
            heads,
            capacity,
            self.width // heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        context: Sequence[KeyValues] | None = None,
        cache: SelfAttentionCache | None = None,
    ) -> Tensor:
        """Runs the stack on tokens that follow those in ``cache``.

        Args:
            tokens: (B, T) int64 token ids.
            padding: (B, cached + T) bool, true at real tokens. Positions count real tokens only, so that padding on the
                left changes nothing.
            context: the image's keys and values, one for each block, from ``keys_values``.
            cache: what earlier calls saw; it is extended by T tokens.

        Returns:
            (B, T, D) hidden states.

        Raises:
            ValueError: more tokens than ``max_tokens``.
        """
        past = cache.length if cache is not None else 0
        queries, keys = tokens.shape[1], past + tokens.shape[1]
        if keys > self.max_tokens:
            raise ValueError(f"{keys} tokens are more than the {self.max_tokens} that this model has positions for")
        if padding is None:
            positions = self.positions[past:keys]
        else:
            positions = self.positions[(padding.cumsum(1) - 1).clamp_min(0)[:, past:]]
        mask = attention_mask(self.mask, queries, keys, padding=padding, device=tokens.device)
        x = self.dropout(self.embedding(tokens) + positions)
        for layer, block in enumerate(self._stack()):
            x = block(x, mask=mask, context=context[layer] if context else None, cache=cache, layer=layer)
        if cache is not None:
            cache.advance(queries)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps (..., D) hidden states to (..., V) logits of the next token.

        Raises:
            ValueError: this transformer was built without a head.
        """
        if self.head_bias is None:
            raise ValueError("this text transformer has no language-model head")
        return nn.functional.linear(hidden, self.embedding.weight, self.head_bias)
