"""The text transformer: an encoder or a decoder, by its mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.layers import Block, Cache, KeyValues, RelativeBias, Rotary, SelfAttentionCache, attention_mask
from mm.layers.masks import MaskKind


class Context(NamedTuple):
    """What blocks attend to beside the text, projected once.

    Args:
        layers: keys and values for each block; None for one without cross-attention.
        mask: (B, 1, 1 or T, P) bool, true where a token may look; None for everywhere. Tokens are counted without
            padding; those behind the T-th look where the last one does.
    """

    layers: Sequence[KeyValues | None]
    mask: Tensor | None = None

    def rows(self, rows: Tensor) -> Context:
        """Gives the context of the given rows (R,), in that order, with repetition."""
        layers = [None if kv is None else KeyValues(kv.keys[rows], kv.values[rows]) for kv in self.layers]
        return Context(layers, None if self.mask is None else self.mask[rows])

    def expand(self, count: int) -> Context:
        """Gives that of one row for ``count`` rows, without copying it."""
        layers = [
            None if kv is None else KeyValues(kv.keys.expand(count, -1, -1, -1), kv.values.expand(count, -1, -1, -1))
            for kv in self.layers
        ]
        return Context(layers, None if self.mask is None else self.mask.expand(count, -1, -1, -1))

    def for_tokens(self, places: Tensor) -> Tensor | None:
        """Gives the mask of the tokens at some places.

        Args:
            places: (T,) int64, or (B, T) where they differ.
        """
        if self.mask is None or self.mask.shape[2] == 1:
            return self.mask
        places = places.clamp_max(self.mask.shape[2] - 1)
        if places.ndim == 1:
            return self.mask[:, :, places]
        return self.mask.gather(2, places[:, None, :, None].expand(-1, 1, -1, self.mask.shape[3]))


class Conditioning(NamedTuple):
    """What a batch of texts is about: images or other texts, seen by cross-attention, in front of the text, or not.

    Args:
        rows: how many there are, B.
        context: what cross-attention sees; None for nothing.
        prefix: (B, P, D) tokens in front of each text; None for none.
    """

    rows: int
    context: Context | None = None
    prefix: Tensor | None = None

    def of(self, rows: Tensor) -> Conditioning:
        """Gives that of the given rows (R,), in that order, with repetition."""
        return Conditioning(
            len(rows),
            None if self.context is None else self.context.rows(rows),
            None if self.prefix is None else self.prefix[rows],
        )


class Layout(NamedTuple):
    """Where new tokens stand and what they see, where they don't simply follow one another: beams, or drafts.

    Args:
        places: (B, T) int64, each token's place in its text, from 0; those of a prefix aren't counted.
        sees: (B, T, S) bool, true where a token sees one of the S tokens there are, itself among them; None where all
            see all. A prefix is seen by all.
        keys: (B, S) int64 places of those S tokens.
    """

    places: Tensor
    sees: Tensor | None
    keys: Tensor


class Head(nn.Module):
    """From hidden states to logits.

    Args:
        vocabulary: number of tokens V.
        transform: what hidden states pass first, or None.
        weight: a (V, D) map of its own; None to use the token embedding.
        bias: whether logits have a bias.
        scale: what hidden states are multiplied with.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        transform: nn.Module | None = None,
        weight: Tensor | None = None,
        bias: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if bias else None
        self.scale = scale
        self.prepared: nn.Module | None = None  # the same map, bias included, with weights laid out for inference

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Maps (..., D) hidden states to (..., V) logits, with the (V, D) ``embedding`` where it has no weight."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        if self.scale != 1.0:
            hidden = hidden * self.scale
        if self.prepared is not None:
            return self.prepared(hidden)
        return nn.functional.linear(hidden, embedding if self.weight is None else self.weight, self.bias)


class TextTransformer(nn.Module):
    """Token embeddings, positions of one kind and a stack of blocks under one mask.

    Args:
        embedding: (V, D) token embedding; may be shared with another transformer.
        blocks: the stack, at least one.
        max_tokens: the most tokens a sequence may have.
        mask: ``bidirectional`` for an encoder, ``causal`` for a decoder. An image in front of a text, a prefix, is seen
            by all of it.
        positions: learned positions (``"learned"``), rotary ones, a relative bias, or None.
        norm: of what comes out; None for none.
        embedding_norm: of embedded tokens; None for none.
        embedding_scale: what embedded tokens are multiplied with.
        head: maps hidden states to logits; without it there are none.
        dropout: probability of dropping a unit of the embedded tokens while training.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        blocks: Iterable[Block],
        max_tokens: int,
        mask: MaskKind,
        *,
        positions: str | Rotary | RelativeBias | None = "learned",
        norm: nn.Module | None = None,
        embedding_norm: nn.Module | None = None,
        embedding_scale: float = 1.0,
        head: Head | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.width = embedding.embedding_dim
        self.max_tokens = max_tokens
        self.mask: MaskKind = mask
        learned = positions == "learned"
        self.positions = nn.Parameter(torch.randn(max_tokens, self.width) * 0.02) if learned else None
        self.rotary = positions if isinstance(positions, Rotary) else None
        self.relative = positions if isinstance(positions, RelativeBias) else None
        self.embedding_norm = embedding_norm
        self.embedding_scale = embedding_scale
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()
        self.head = head

    def _stack(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @property
    def crosses(self) -> bool:
        """Whether it has cross-attention."""
        return any(block.cross_attention is not None or block.crossing is not None for block in self._stack())

    def keys_values(self, context: Tensor, padding: Tensor | None = None) -> Context:
        """Projects what the cross-attention of every block sees once.

        Args:
            context: (B, P, D) image tokens, or the hidden states of a text.
            padding: (B, P) bool, true at real tokens; None where all are.

        Raises:
            ValueError: no block has cross-attention.
        """
        if not self.crosses:
            raise ValueError("this text transformer has blocks without cross-attention")
        mask = None if padding is None else padding[:, None, None, :]
        return Context([block.keys_values(context) for block in self._stack()], mask)

    def cache(self, rows: int, capacity: int) -> SelfAttentionCache:
        """Makes an empty cache for ``rows`` sequences of up to ``capacity`` tokens, those of a prefix included."""
        attention = self._stack()[0].attention
        weight = self.embedding.weight
        return SelfAttentionCache(
            len(self.blocks),
            rows,
            attention.key_value_heads,
            capacity,
            attention.head_width,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        context: Context | None = None,
        prefix: Tensor | None = None,
        cache: Cache | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Runs the stack on tokens that follow those in ``cache``.

        Args:
            tokens: (B, T) int64 token ids.
            padding: (B, cached + T) bool, true at real tokens. Positions count real tokens only, so that padding on the
                left changes nothing.
            context: what the cross-attention sees, from ``keys_values``.
            prefix: (B, P, D) image tokens in front of the text, which see each other. With a cache they go into it with
                the first tokens: they are given again with later ones, and skipped.
            cache: what earlier calls saw; it is extended by the tokens, and the prefix before the first.
            layout: where the tokens stand and what they see; None where each follows the one before it. It is in place
                of ``padding``.

        Returns:
            (B, T, D) hidden states of the tokens.

        Raises:
            ValueError: more tokens than ``max_tokens``.
        """
        ahead = 0 if prefix is None else prefix.shape[1]
        begun = cache is not None and cache.length > 0
        past = cache.length - ahead if begun and cache is not None else 0
        end = past + tokens.shape[1]
        if layout is None and end > self.max_tokens:
            raise ValueError(f"{end} tokens are more than the {self.max_tokens} that this model has positions for")
        x = self.embedding(tokens)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        if layout is not None:
            places = layout.places
        elif padding is not None:
            places = (padding.cumsum(1) - 1).clamp_min(0)[:, past:]
        else:
            places = torch.arange(past, end, device=tokens.device)
        if self.positions is not None:
            x = x + self.positions[places]
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x)
        if prefix is not None and not begun:
            x = torch.cat([prefix.to(x.dtype), x], 1)
        mask = self._self_attention_mask(x.shape[1], ahead, end, padding, layout)
        x = self._run(x, mask, ahead, places, context, cache)
        return x[:, -tokens.shape[1] :]

    def _self_attention_mask(
        self, queries: int, ahead: int, end: int, padding: Tensor | None, layout: Layout | None
    ) -> Tensor | None:
        """Gives what the last ``queries`` of ``ahead`` prefix tokens and ``end`` tokens of text may look at.

        Returns:
            (1 or B, 1 or N, queries, ahead + end): bool, true where one may look; with a relative bias, numbers that
            are added to the scores. None for everywhere.
        """
        if padding is not None and ahead:
            padding = F.pad(padding, (ahead, 0), value=True)
        device = self.embedding.weight.device
        if layout is not None:
            mask = _laid_out(layout, queries, ahead)
        else:
            kind: MaskKind = "prefix" if ahead and self.mask == "causal" else self.mask
            mask = attention_mask(kind, queries, ahead + end, padding=padding, prefix=ahead, device=device)
        if self.relative is None:
            return mask
        if layout is not None:
            image = torch.arange(ahead, device=device).expand(len(layout.keys), -1)
            keys = torch.cat([image, layout.keys + ahead], 1)
            asking = torch.cat([image[:, : queries - layout.places.shape[1]], layout.places + ahead], 1)
        else:
            keys = torch.arange(ahead + end, device=device)
            if padding is not None:
                keys = (padding.cumsum(1) - 1).clamp_min(0)
            asking = keys[..., -queries:]
        bias = self.relative(asking, keys)
        return bias if mask is None else torch.where(mask, bias, -torch.inf)

    def _run(
        self,
        x: Tensor,
        mask: Tensor | None,
        ahead: int,
        places: Tensor,
        context: Context | None,
        cache: Cache | None,
    ) -> Tensor:
        """Runs the blocks on embedded (B, T, D) tokens, ``ahead`` of them an image's in front of the first text."""
        queries = x.shape[1]
        context_mask = None if context is None else context.for_tokens(places)
        rotation = None
        if self.rotary is not None:
            places = places + ahead
            if queries > places.shape[-1]:
                image = torch.arange(ahead, device=x.device).expand(*places.shape[:-1], -1)
                places = torch.cat([image, places], -1)
            rotation = self.rotary(places)
        for layer, block in enumerate(self._stack()):
            x = block(
                x,
                mask=mask,
                rotation=rotation,
                context=None if context is None else context.layers[layer],
                context_mask=context_mask,
                cache=cache,
                layer=layer,
            )
        if cache is not None:
            cache.advance(queries)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps (..., D) hidden states to (..., V) logits.

        Raises:
            ValueError: this transformer was built without a head.
        """
        if self.head is None:
            raise ValueError("this text transformer has no language-model head")
        return self.head(hidden, self.embedding.weight)


def _laid_out(layout: Layout, queries: int, ahead: int) -> Tensor | None:
    """Gives the (B, 1, queries, ahead + S) mask of a layout, ``ahead`` prefix tokens in front of it."""
    (rows, tokens), keys = layout.places.shape, layout.keys.shape[1]
    sees = layout.sees
    if sees is None:
        if queries == tokens:
            return None
        sees = layout.keys.new_ones(rows, tokens, keys, dtype=torch.bool)
    sees = F.pad(sees, (ahead, 0), value=True)
    if queries > tokens:  # the prefix itself is among what is new; its tokens see one another
        within = F.pad(sees.new_ones(rows, ahead, ahead), (0, keys), value=False)
        sees = torch.cat([within, sees], 1)
    return sees[:, None]
