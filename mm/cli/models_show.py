"""``mm models show``: says everything about a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.cli import common

if TYPE_CHECKING:
    from torch import nn

    from mm.checkpoints import Loaded
    from mm.data.tokenizer import Tokenizer

PARTS = {
    "vision": "vision",
    "model.visual": "vision",
    "text_encoder": "text encoder",
    "model": "text encoder",
    "connector": "connector",
    "text_decoder": "text decoder",
    "encoder": "text encoder",
    "decoder": "text decoder",
}
"""What parts of a model are called, by the beginning of their tensors' names; the first that fits counts."""
HEADS = "heads"
ORDER = ("vision", "text encoder", "connector", "text decoder", HEADS)


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm models show``."""
    parser = common.Parser(
        prog=program,
        description="Say what a model is: family, sizes, capabilities, image size, tokenizer and preprocessing.",
    )
    parser.add_argument("model", help="a name that 'mm models' explains")
    common.add_json(parser)
    options = common.parse(parser, arguments)

    from mm.checkpoints.resolve import load_model

    described = describe(options.model, load_model(options.model))
    if options.json:
        common.print_json(described)
    else:
        common.print_figures(f"Model {options.model}", _in_words(described))
    return 0


def describe(name: str, loaded: Loaded) -> dict[str, Any]:
    """Describes a model.

    Args:
        name: what it was loaded as.
        loaded: the model.

    Returns:
        Plain data; None for what such a model doesn't have.
    """
    from mm.models import LanguageModel

    sees = not isinstance(loaded.model, LanguageModel)
    parts = count(loaded.model)
    return {
        "model": name,
        "family": loaded.family,
        "capabilities": list(loaded.model.capabilities),
        "parameters": sum(parts.values()),
        "parts": parts,
        "bytes": _bytes(name, loaded),
        "embedding_width": loaded.model.embedding_width if "embed" in loaded.model.capabilities else None,
        "max_tokens": loaded.architecture.max_tokens,
        "tokenizer": {
            "kind": kind_of(loaded.tokenizer),
            "vocabulary": len(loaded.tokenizer),
            "languages": list(loaded.tokenizer.languages),
        },
        "image_size": loaded.transform.size if sees else None,
        "preprocessing": str(loaded.transform) if sees else None,
        "pixels": _pixels(loaded.model),
    }


def count(model: nn.Module) -> dict[str, int]:
    """Counts a model's parameters, part by part; those that several parts share count for the first."""
    from mm.checkpoints.convert import tensors

    counts = dict.fromkeys(ORDER, 0)
    for name, value in tensors(model):
        counts[next((part for begin, part in PARTS.items() if name.startswith(f"{begin}.")), HEADS)] += value.numel()
    return {part: number for part, number in counts.items() if number}


def kind_of(tokenizer: Tokenizer) -> str:
    """Names the kind of a tokenizer: ``byte-level BPE``, ``WordPiece``, ``Unigram``, ..."""
    described = json.loads(tokenizer.to_json())
    bytewise = '"ByteLevel"' in json.dumps(described.get("pre_tokenizer"))
    return f"{'byte-level ' if bytewise else ''}{described['model']['type']}"


def _bytes(name: str, loaded: Loaded) -> int | None:
    """Gives the size of the files of weights; None for those that open_clip keeps."""
    from mm.checkpoints.weights import Fingerprint

    files = loaded.fingerprint.files if isinstance(loaded.fingerprint, Fingerprint) else []
    local = Path(name.partition("/")[2])
    if name.startswith("open_clip:") and local.is_file():
        files = [local]
    return sum(path.stat().st_size for path in files) if files else None


def _pixels(model: nn.Module) -> dict[str, list[float]] | None:
    """Gives mean and standard deviation of each channel of the pixels that a model expects."""
    from mm.models.vision import Normalize

    normalize = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    if normalize is None:
        return None
    values = {"mean": normalize.mean, "std": normalize.std}
    return {name: [round(number, 6) for number in value.flatten().tolist()] for name, value in values.items()}


def _in_words(described: Mapping[str, Any]) -> dict[str, str | None]:
    """Gives what ``describe`` gave as the rows of a table."""
    tokenizer, size, pixels = described["tokenizer"], described["image_size"], described["pixels"]
    width, disk = described["embedding_width"], described["bytes"]
    languages = f", writes {', '.join(tokenizer['languages'])}" if tokenizer["languages"] else ""
    preprocessing = described["preprocessing"]
    if pixels is not None:
        preprocessing += f", mean {_numbers(pixels['mean'])}, standard deviation {_numbers(pixels['std'])}"
    return {
        "family": described["family"],
        "capabilities": ", ".join(described["capabilities"]),
        "parameters": f"{described['parameters']:,}",
        **{f"  {part}": f"{number:,}" for part, number in described["parts"].items()},
        "bytes on disk": None if disk is None else f"{disk:,}",
        "image size": None if size is None else f"{size} x {size} pixels",
        "preprocessing": preprocessing,
        "shared space": None if width is None else f"{width} dimensions",
        "longest text": f"{described['max_tokens']:,} tokens",
        "tokenizer": f"{tokenizer['kind']} of {tokenizer['vocabulary']:,} tokens{languages}",
    }


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
