"""BERT, RoBERTa, BLIP's text parts and GIT's decoder."""

from __future__ import annotations

from torch import Tensor, nn

from mm.layers import ACTIVATIONS, Attention, FeedForward
from mm.layers.masks import MaskKind
from mm.models.presets.blocks import Blocks, output_head, token_embedding
from mm.models.text import TextTransformer


def bert(
    vocabulary: int,
    width: int,
    heads: int,
    blocks: int,
    hidden: int,
    max_tokens: int,
    *,
    mask: MaskKind = "bidirectional",
    context_width: int | None = None,
    cross: str = "attention",
    cross_every: int = 1,
    head: bool = True,
    tied: bool = True,
    activation: str = "gelu",
    head_transform: bool = True,
    eps: float = 1e-12,
    dropout: float = 0.1,
    embedding: nn.Embedding | None = None,
) -> TextTransformer:
    """Builds BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692), BLIP's text parts or GIT's decoder: post-LayerNorm.

    Args:
        vocabulary: V.
        width: D.
        heads: N.
        blocks: their number.
        hidden: width inside the feed-forward networks.
        max_tokens: the most tokens of a text.
        mask: ``causal`` for a decoder, ``bidirectional`` for an encoder.
        context_width: width of what its cross-attention sees; None for none.
        cross: ``attention`` in the blocks, or ``gated`` before them.
        cross_every: one block in so many has cross-attention, from the first.
        head: whether it gives logits.
        tied: whether logits come from the token embedding.
        activation: of the feed-forward networks and the head.
        head_transform: whether hidden states pass a linear map, activation and norm before they become logits.
        eps: of the norms.
        dropout: probability of dropping a unit while training.
        embedding: of tokens, to be shared; None for one of its own.
    """

    def norm() -> nn.Module:
        return nn.LayerNorm(width, eps=eps)

    def attention(context: int | None = None) -> Attention:
        return Attention(width, heads, context_width=context)

    def network() -> FeedForward:
        return FeedForward(width, hidden, activation=activation)

    seeing = Blocks(width, context_width, cross, cross_every, norm, attention, network, dropout)
    return TextTransformer(
        embedding or token_embedding(vocabulary, width),
        [seeing.block(number, pre_norm=False) for number in range(blocks)],
        max_tokens,
        mask,
        embedding_norm=norm(),
        head=output_head(
            vocabulary, width, tied=tied, transform=_Transform(width, activation, eps) if head_transform else None
        )
        if head
        else None,
        dropout=dropout,
    )


class _Transform(nn.Module):
    """What hidden states of BERT pass before they become logits: a linear map, an activation and a norm."""

    def __init__(self, width: int, activation: str, eps: float) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.map(hidden)))
