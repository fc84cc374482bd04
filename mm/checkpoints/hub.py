"""Public checkpoints: folders in the hub's layout, each architecture by its converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.checkpoints.convert import HubFolder, load_converted, unfilled
from mm.checkpoints.directory import Loaded, special_tokens
from mm.checkpoints.families import CONVERTERS
from mm.checkpoints.preprocessing import read_preprocessing
from mm.checkpoints.tokenizers import read_tokenizer
from mm.checkpoints.weights import Fingerprint
from mm.errors import CheckpointError, MMError
from mm.models import TextParts, build, build_language


def load_hub_folder(folder: Path) -> Loaded:
    """Loads a checkpoint whose ``config.json`` names an architecture that mm knows.

    Raises:
        CheckpointError: a file is missing or damaged, the architecture isn't supported, or the weights don't fit.
    """
    hub = HubFolder(folder)
    names = hub.config.values.get("architectures")
    known = [name for name in names if name in CONVERTERS] if isinstance(names, list) else []
    if not known:
        raise CheckpointError(
            f"{hub.config.source}: architectures is {names!r}, which mm doesn't support; it supports "
            f"{', '.join(sorted(CONVERTERS))}"
        )
    converted = CONVERTERS[known[0]](hub)
    tokenizer = read_tokenizer(folder, converted.special)
    build_model: Any = build_language if isinstance(converted.architecture, TextParts) else build
    try:
        with unfilled():
            model = build_model(converted.architecture, len(tokenizer), special_tokens(tokenizer))
    except MMError as error:
        raise CheckpointError(f"{hub.config.source}: {error}") from error
    load_converted(model, converted, hub.weights)
    _check_vocabulary(folder, model, len(tokenizer))
    preprocessing = None
    if not isinstance(converted.architecture, TextParts):
        preprocessing = read_preprocessing(folder, converted.architecture.image_size)[0]
    fingerprint = Fingerprint(hub.weights.files)
    return Loaded(model.eval(), tokenizer, converted.architecture, fingerprint, preprocessing, converted.family)


def _check_vocabulary(folder: Path, model: Any, tokens: int) -> None:
    """Refuses a tokenizer of another size than a token embedding, which may have a few rows more than are used."""
    for name, value in model.named_parameters():
        if name.endswith("embedding.weight"):
            rows = len(value)
            if tokens > rows or rows - tokens > max(256, rows // 50):
                raise CheckpointError(
                    f"{folder}: the tokenizer has {tokens} tokens, but the model's token embedding has {rows} rows"
                )
