"""Language models: an encoder, a decoder, or both."""

from __future__ import annotations

from torch import Tensor, nn

from mm.models.text import Conditioning, TextTransformer
from mm.models.vision_language import SpecialTokens


class LanguageModel(nn.Module):
    """A model of text alone: with an encoder it fills masked words in (BERT), with a decoder it goes on writing (GPT),
    with both it rewrites (T5, BART).

    Args:
        encoder: bidirectional; or None.
        decoder: causal, with a language-model head; or None.
        special: ids of the tokens that aren't text.

    Raises:
        ValueError: neither is given.
    """

    def __init__(
        self, encoder: TextTransformer | None, decoder: TextTransformer | None, special: SpecialTokens
    ) -> None:
        super().__init__()
        if encoder is None and decoder is None:
            raise ValueError("a language model has an encoder, a decoder or both")
        self.encoder = encoder
        self.decoder = decoder
        self.special = special

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do: ``fill`` masked words, ``score`` texts, ``translate``."""
        if self.decoder is None:
            return ("fill",)
        return ("score",) if self.encoder is None else ("translate",)

    def about(self, tokens: Tensor, padding: Tensor) -> Conditioning:
        """Encodes (B, T) texts, special tokens included, once for the decoder.

        Args:
            tokens: (B, T) int64.
            padding: (B, T) bool, true at real tokens.
        """
        assert self.encoder is not None and self.decoder is not None, "this model doesn't rewrite texts"
        hidden = self.encoder(tokens, padding=padding)
        return Conditioning(len(tokens), context=self.decoder.keys_values(hidden, padding))
