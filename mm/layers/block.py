"""The transformer block: the same for images and text, encoder and decoder."""

from __future__ import annotations

from torch import Tensor, nn

from mm.layers.attention import Attention, KeyValues
from mm.layers.cache import SelfAttentionCache
from mm.layers.feedforward import FeedForward


class Block(nn.Module):
    """Self-attention, then optional cross-attention, then a feed-forward network, each added to what came in.

    Args:
        attention: self-attention.
        feed_forward: the position-wise network.
        norms: one normalization for each part, in the order self-attention, (cross-attention,) feed-forward.
        cross_attention: attention to the image, or None.
        pre_norm: normalize what goes into each part (GPT-2, ViT) rather than the sum that comes out (BERT).
        dropout: probability of dropping a unit of what each part adds, while training.

    Raises:
        ValueError: the number of norms doesn't fit the parts.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norms: list[nn.Module],
        *,
        cross_attention: Attention | None = None,
        pre_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(norms) != 2 + (cross_attention is not None):
            raise ValueError(f"{len(norms)} norms for {2 + (cross_attention is not None)} parts")
        self.attention = attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.attention_norm = norms[0]
        self.cross_attention_norm = norms[1] if cross_attention is not None else None
        self.feed_forward_norm = norms[-1]
        self.pre_norm = pre_norm
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: KeyValues | None = None,
        cache: SelfAttentionCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Runs the block.

        Args:
            x: (B, T, D).
            mask: which position may look at which, as ``attention_mask`` builds it.
            context: the image's keys and values for this block; None passes the cross-attention by.
            cache: keys and values of earlier tokens; the new ones are appended.
            layer: this block's place in ``cache``.

        Returns:
            (B, T, D).
        """
        h = self.attention_norm(x) if self.pre_norm else x
        keys_values = self.attention.keys_values(h)
        if cache is not None:
            keys_values = cache.append(layer, keys_values)
        x = self._add(x, self.attention(h, keys_values, mask), self.attention_norm)
        if context is not None:
            assert self.cross_attention is not None and self.cross_attention_norm is not None
            h = self.cross_attention_norm(x) if self.pre_norm else x
            x = self._add(x, self.cross_attention(h, context), self.cross_attention_norm)
        h = self.feed_forward_norm(x) if self.pre_norm else x
        return self._add(x, self.feed_forward(h), self.feed_forward_norm)

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.dropout(update)
        return x if self.pre_norm else norm(x)
