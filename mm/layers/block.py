"""The transformer block: the same for images and text, encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mm.layers.attention import Attention, KeyValues
from mm.layers.cache import Cache
from mm.layers.feedforward import FeedForward
from mm.layers.positions import Rotation


class Crossing(nn.Module):
    """Cross-attention and a feed-forward network of its own, which stand between the blocks of another model.

    With gates, both are multiplied with the tanh of a learned number that begins at 0, so that a pretrained language
    model begins as it is (Flamingo, arXiv:2204.14198).

    Args:
        attention: cross-attention to the image.
        feed_forward: the position-wise network.
        norms: normalizations of what goes into the two.
        gate_width: 1 for one number per gate, D for one per unit, 0 for no gates.
        context_norm: normalization of what is attended to, or None.
        dropout: probability of dropping a unit of what each part adds, while training.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norms: tuple[nn.Module, nn.Module],
        *,
        gate_width: int = 0,
        context_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm, self.feed_forward_norm = norms
        self.context_norm = context_norm
        self.attention_gate = nn.Parameter(torch.zeros(gate_width)) if gate_width else None
        self.feed_forward_gate = nn.Parameter(torch.zeros(gate_width)) if gate_width else None
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, context: Tensor) -> KeyValues:
        """Projects (B, P, D) image tokens once."""
        return self.attention.kept(context if self.context_norm is None else self.context_norm(context))

    def forward(self, x: Tensor, context: KeyValues, mask: Tensor | None = None) -> Tensor:
        """Adds to (B, T, D) ``x`` what it gathers from the image.

        Args:
            x: (B, T, D).
            context: what ``keys_values`` gave.
            mask: (B, 1, 1 or T, P) bool, true where a token may look; one that may look nowhere gathers nothing.
        """
        gathered = self._gather(self.attention_norm(x), context, mask)
        x = x + self.dropout(_gated(gathered, self.attention_gate))
        return x + self.dropout(_gated(self.feed_forward(self.feed_forward_norm(x)), self.feed_forward_gate))

    def _gather(self, x: Tensor, context: KeyValues, mask: Tensor | None) -> Tensor:
        """Gathers zeros for a token that may look nowhere.

        Attention lets such a token look everywhere: kernels differ in what they give for one without anything to see.
        """
        if mask is None:
            return self.attention(x, context)
        blind = ~mask.any(-1, keepdim=True)
        gathered = self.attention(x, context, mask | blind)
        return gathered.masked_fill(blind[:, 0], 0.0)


def _gated(update: Tensor, gate: Tensor | None) -> Tensor:
    return update if gate is None else update * gate.tanh()


class Block(nn.Module):
    """Self-attention, then optional cross-attention, then a feed-forward network, each added to what came in.

    Args:
        attention: self-attention.
        feed_forward: the position-wise network.
        norms: one normalization for each part, in the order self-attention, (cross-attention,) feed-forward. A parallel
            block may have a single one for both.
        cross_attention: attention to the image, or None.
        crossing: cross-attention with a feed-forward network of its own, or None.
        crossing_first: whether ``crossing`` acts before the block rather than after it.
        pre_norm: normalize what goes into each part (GPT-2, ViT) rather than the sum that comes out (BERT).
        parallel: self-attention and feed-forward network both see what came in (PaLM, arXiv:2204.02311).
        dropout: probability of dropping a unit of what each part adds, while training.

    Raises:
        ValueError: the number of norms doesn't fit the parts, or a parallel block has a cross-attention or isn't
            normalized first.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norms: Sequence[nn.Module],
        *,
        cross_attention: Attention | None = None,
        crossing: Crossing | None = None,
        crossing_first: bool = True,
        pre_norm: bool = True,
        parallel: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        parts = 2 + (cross_attention is not None)
        if len(norms) != parts and not (parallel and len(norms) == 1):
            raise ValueError(f"{len(norms)} norms for {parts} parts")
        if parallel and (cross_attention is not None or not pre_norm):
            raise ValueError("a parallel block is normalized first, and its cross-attention is a crossing")
        self.attention = attention
        self.cross_attention = cross_attention
        self.crossing = crossing
        self.crossing_first = crossing_first
        self.feed_forward = feed_forward
        self.attention_norm = norms[0]
        self.cross_attention_norm = norms[1] if cross_attention is not None else None
        self.feed_forward_norm = norms[-1] if len(norms) > 1 else None
        self.pre_norm = pre_norm
        self.parallel = parallel
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, context: Tensor) -> KeyValues | None:
        """Projects (B, P, D) image tokens for this block's way of seeing them; None where it has none."""
        if self.cross_attention is not None:
            return self.cross_attention.kept(context)
        return None if self.crossing is None else self.crossing.keys_values(context)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        context: KeyValues | None = None,
        context_mask: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Runs the block.

        Args:
            x: (B, T, D).
            mask: which position may look at which, as ``attention_mask`` builds it, or numbers added to the scores.
            rotation: of queries and keys, where the model has rotary positions.
            context: the image's keys and values for this block; None passes the cross-attention by.
            context_mask: (B, 1, 1 or T, P) bool, true where a token may look at the image; None for everywhere.
            cache: keys and values of earlier tokens; the new ones are appended.
            layer: this block's place in ``cache``.

        Returns:
            (B, T, D).
        """
        if self.crossing is not None and self.crossing_first and context is not None:
            x = self.crossing(x, context, context_mask)
        h = self.attention_norm(x) if self.pre_norm else x
        query, keys_values = self.attention.project(h, rotation)
        if cache is not None:
            keys_values = cache.append(layer, keys_values)
        gathered = self.attention.attend(query, keys_values, mask)
        if self.parallel:
            h = h if self.feed_forward_norm is None else self.feed_forward_norm(x)
            x = x + self.dropout(gathered + self.feed_forward(h))
        else:
            x = self._add(x, gathered, self.attention_norm)
            if self.cross_attention is not None and self.cross_attention_norm is not None and context is not None:
                h = self.cross_attention_norm(x) if self.pre_norm else x
                x = self._add(x, self.cross_attention(h, context, context_mask), self.cross_attention_norm)
            assert self.feed_forward_norm is not None
            h = self.feed_forward_norm(x) if self.pre_norm else x
            x = self._add(x, self.feed_forward(h), self.feed_forward_norm)
        if self.crossing is not None and not self.crossing_first and context is not None:
            x = self.crossing(x, context, context_mask)
        return x

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        x = x + (self.dropout(update) if self.training else update)
        return x if self.pre_norm else norm(x)
