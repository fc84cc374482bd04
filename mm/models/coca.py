"""What CoCa (arXiv:2205.01917) has that other models don't, as open_clip builds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.layers import Block, Cache, attention_mask
from mm.models.text import Context, Layout, TextTransformer
from mm.models.vision import Normalize


class OpenClipVision(nn.Module):
    """The image tower of a CoCa of open_clip: what stands for the image, then the tokens that the text decoder sees.

    Args:
        model: open_clip's tower, without the projection into the shared space, which comes behind it.
        mean: per-channel mean of the pixels its weights expect.
        std: per-channel standard deviation likewise.
    """

    prefix_tokens = 1
    has_summary = True

    def __init__(self, model: Any, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.model = model
        self.width: int = model.ln_post.weight.shape[0]

    def frozen(self, pixels: Tensor) -> Tensor:
        """Returns (B, 3, H, W) ``pixels`` as they are: nothing of it is frozen."""
        return pixels

    def tokens(self, frozen: Tensor) -> Tensor:
        """Maps what ``frozen`` returned to (B, 1 + P, D) image tokens."""
        summary, tokens = self.model(self.normalize(frozen))
        return torch.cat([summary[:, None], tokens], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps (B, 3, H, W) pixels in [0, 1] to (B, 1 + P, D) image tokens."""
        return self.tokens(self.frozen(pixels))


class ClassTokenEncoder(TextTransformer):
    """CoCa's text encoder: causal, with a class token behind the text that gathers it.

    The text's own tokens see no more than in a decoder, so that one may go on from their hidden states. The class token
    sees the text and, as in open_clip's weights, the first token of the padding; itself only where there is none.

    Args:
        embedding: (V, D) token embedding.
        blocks: the stack, at least one.
        max_tokens: the most tokens of a text, without the class token.
        norm: of what comes out.
        padding: id of the padding token.
        dropout: probability of dropping a unit of the embedded tokens while training.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        blocks: Iterable[Block],
        max_tokens: int,
        *,
        norm: nn.Module,
        padding: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(embedding, blocks, max_tokens, "causal", positions=None, norm=norm, dropout=dropout)
        self.positions = nn.Parameter(torch.randn(max_tokens + 1, self.width) * 0.02)
        self.class_token = nn.Parameter(torch.randn(self.width) * 0.02)
        self.padding = padding

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
        """Runs the stack on whole texts.

        Args:
            tokens: (B, T) int64 token ids, padded on the right, best to ``max_tokens``: where the class token stands
                is part of what it sees.
            padding: not looked at: every padding token counts as such.
            context: not looked at, and neither are ``prefix``, ``cache`` and ``layout``.

        Returns:
            (B, 1 + T, D) hidden states, that of the class token first.

        Raises:
            ValueError: more tokens than ``max_tokens``.
        """
        assert self.positions is not None
        if tokens.shape[1] > self.max_tokens:
            raise ValueError(f"{tokens.shape[1]} tokens are more than the {self.max_tokens} of this model")
        last = self.class_token.expand(tokens.shape[0], 1, -1)
        x = torch.cat([self.embedding(tokens), last], 1)
        length = x.shape[1]
        places = torch.arange(length, device=tokens.device)
        seen = F.pad(tokens != self.padding, (1, 0), value=True)
        mask = attention_mask("causal", length, length, padding=seen, device=tokens.device)
        hidden = self._run(self.dropout(x + self.positions[:length]), mask, 0, places, None, None)
        return hidden.roll(1, 1)
