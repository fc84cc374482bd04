"""The tokenizer of a public checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm.data.tokenizer import Tokenizer


def read_tokenizer(folder: Path, special: Mapping[str, Any]) -> Tokenizer:
    """Reads ``tokenizer.json``.

    Args:
        folder: the checkpoint.
        special: ids of the special tokens.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return Tokenizer.read(folder / "tokenizer.json", special)
