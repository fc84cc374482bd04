"""What the parity tests share: checkpoints of the reference libraries, small and random, in the hub's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "child",
    "photo",
    "picture",
    "of",
    "on",
    "in",
    "runs",
    "sits",
    "two",
    "red",
    "green",
    "blue",
    "snow",
    "grass",
    ".",
    "'",
    "s",
]


def random_(model: torch.nn.Module, seed: int = 0, scale: float = 1.0) -> Any:
    """Gives a reference model other weights than it was initialized with, norms and biases too, in evaluation mode.

    Args:
        model: the reference.
        seed: what the weights depend on.
        scale: how far apart they are; larger ones make choices more decided.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = 0.3 * scale * torch.randn_like(value) / max(1.0, value.shape[-1] ** 0.5 / 4 if value.ndim else 1.0)
            value.copy_(
                1 + spread if value.ndim == 1 and "norm" in name.lower() and name.endswith("weight") else spread
            )
    return model.eval()


def wordpiece(
    folder: Path, vocabulary: int, special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
) -> Backend:
    """Writes a ``tokenizer.json`` of whole words: ``special``, then ``WORDS``, then fillers up to ``vocabulary``."""
    names = [*special, *WORDS]
    names += [f"##{number}" for number in range(vocabulary - len(names))]
    backend = Backend(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token=special[1]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(special))
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return backend


def padded(
    rows: int = 3, length: int = 7, low: int = 5, high: int = 40, padding: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, the rows of different lengths, padded on the right: (B, T) ids and (B, T) bool."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(low, high, (rows, length), generator=generator)
    real = torch.arange(length)[None] < torch.tensor([length - 2 * row for row in range(rows)])[:, None]
    return tokens.masked_fill(~real, padding), real
