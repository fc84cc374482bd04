"""Connectors: from the vision encoder's tokens to what a text decoder sees."""

from __future__ import annotations

from torch import Tensor, nn

from mm.layers import Attention, FeedForward, Resampler, ResamplerBlock


class Projection(nn.Sequential):
    """A linear map of image tokens, optionally normalized afterwards.

    Args:
        image_width: D of the vision encoder.
        width: D of what comes out.
        norm: whether a LayerNorm follows.
        eps: of that LayerNorm.
    """

    def __init__(self, image_width: int, width: int, *, norm: bool = False, eps: float = 1e-5) -> None:
        self.width = width
        super().__init__(nn.Linear(image_width, width), *([nn.LayerNorm(width, eps=eps)] if norm else []))


def resampler(
    image_width: int,
    *,
    blocks: int,
    latents: int,
    heads: int,
    head_width: int,
    hidden: int,
    head_norms: bool = False,
    activation: str = "relu",
) -> Resampler:
    """Builds a perceiver resampler as in Flamingo and IDEFICS.

    Args:
        image_width: D of the image tokens, and of what comes out.
        blocks: their number.
        latents: image tokens that come out.
        heads: N.
        head_width: width of a head.
        hidden: width inside the feed-forward networks.
        head_norms: normalize the queries and keys of each head.
        activation: of the feed-forward networks.
    """

    def norm(width: int) -> nn.Module:
        return nn.LayerNorm(width)

    def block() -> ResamplerBlock:
        pair = (norm(head_width), norm(head_width)) if head_norms else None
        attention = Attention(image_width, heads, head_width=head_width, bias=False, head_norms=pair)
        network = FeedForward(image_width, hidden, activation=activation, bias=False)
        return ResamplerBlock(attention, network, [norm(image_width) for _ in range(3)])

    return Resampler([block() for _ in range(blocks)], latents, image_width)


class Pass(nn.Module):
    """Image tokens as they are.

    Args:
        image_width: D.
        skip: how many of the first are left out.
    """

    def __init__(self, image_width: int, *, skip: int = 0) -> None:
        super().__init__()
        self.width = image_width
        self.skip = skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (B, P, D) image tokens to the (B, P - skip, D) that stay."""
        return tokens[:, self.skip :]
