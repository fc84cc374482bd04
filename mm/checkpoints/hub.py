"""Public checkpoints: folders in the hub's layout, each architecture by its converter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mm.checkpoints.convert import Converted, HubFolder, Settings, check_converted, load_converted, unfilled
from mm.checkpoints.directory import Loaded, special_tokens
from mm.checkpoints.families import CONVERTERS
from mm.checkpoints.preprocessing import read_preprocessing
from mm.checkpoints.tokenizers import read_tokenizer
from mm.checkpoints.weights import Fingerprint
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import Preprocessing
from mm.errors import CheckpointError, MMError, first_line
from mm.models import LanguageModel, TextParts, VisionLanguageModel, build, build_language
from mm.models.precision import Preparation

IMPOSSIBLE = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What numbers that don't go together raise while a model is built."""


@dataclass(frozen=True)
class Plan:
    """A checkpoint of which everything was read and checked but its weights.

    Args:
        hub: the folder.
        converted: what becomes of it.
        tokenizer: its tokenizer.
        preprocessing: how images become its pixels; None for a language model.
        model: as it will be built, on the ``meta`` device, without weights.
    """

    hub: HubFolder
    converted: Converted
    tokenizer: Tokenizer
    preprocessing: Preprocessing | None
    model: VisionLanguageModel | LanguageModel


def load_hub_folder(folder: Path, precision: str | None = None) -> Loaded:
    """Loads a checkpoint whose ``config.json`` names an architecture that mm knows.

    Args:
        folder: where it is.
        precision: what its weights are prepared for on the way, as for ``load_model``.

    Raises:
        CheckpointError: a file is missing or damaged, the architecture isn't supported, or the weights don't fit.
    """
    plan = plan_hub_folder(folder)
    model = _build(plan.hub, plan.converted, plan.tokenizer)
    converted = plan.converted
    preparation = Preparation.chosen(precision, (), model)
    load_converted(model, converted, plan.hub.weights, preparation)
    return Loaded(
        model.eval(),
        plan.tokenizer,
        converted.architecture,
        Fingerprint(plan.hub.weights.files),
        plan.preprocessing,
        converted.family,
        precision=None if preparation is None else preparation.precision,
    )


def plan_hub_folder(folder: Path) -> Plan:
    """Checks a checkpoint without reading its weights or making room for them.

    Raises:
        CheckpointError: as for ``load_hub_folder``.
    """
    hub = HubFolder(folder)
    convert = CONVERTERS[_architecture(hub.config)]
    _check_numbers(hub)
    try:
        converted = convert(hub)
    except IMPOSSIBLE as error:
        raise CheckpointError(f"{hub.config.source}: its numbers can't be used ({first_line(error)})") from error
    tokenizer = read_tokenizer(folder, converted.special)
    preprocessing = None
    if not isinstance(converted.architecture, TextParts):
        preprocessing = read_preprocessing(folder, converted.architecture.image_size)[0]
    with torch.device("meta"):
        model = _build(hub, converted, tokenizer)
    check_converted(model, converted, hub.weights)
    _check_vocabulary(folder, model, tokenizer)
    return Plan(hub, converted, tokenizer, preprocessing, model)


def _architecture(config: Settings) -> str:
    """Gives the first of a checkpoint's architectures that mm knows."""
    names = config.values.get("architectures")
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name in CONVERTERS:
            return name
    known = ", ".join(sorted(CONVERTERS))
    if names is None:
        raise CheckpointError(
            f"{config.source}: has no 'architectures', which names the model's kind; mm knows {known}"
        )
    raise CheckpointError(f"{config.source}: architectures is {names!r}, which mm doesn't support; it supports {known}")


def _build(hub: HubFolder, converted: Converted, tokenizer: Tokenizer) -> VisionLanguageModel | LanguageModel:
    """Builds the model of a checkpoint; its weights aren't filled in."""
    make: Any = build_language if isinstance(converted.architecture, TextParts) else build
    try:
        with unfilled():
            return make(converted.architecture, len(tokenizer), special_tokens(tokenizer))
    except (MMError, *IMPOSSIBLE) as error:
        raise CheckpointError(f"{hub.config.source}: {first_line(error)}") from error


def _check_numbers(hub: HubFolder) -> None:
    """Refuses numbers in a configuration that no model with the checkpoint's weights can have.

    It is done before anything is built of them: a million layers would take hours to build and fill the memory.
    """
    tensors, numbers = len(hub.weights), hub.weights.numbers
    limits = {
        r"(layers?|depth)$": (0, tensors),
        r"(size|dim|d_model|d_ff|d_kv|n_embd|n_inner|latents|width)$": (0, numbers),
        r"(heads?|positions|position_embeddings|buckets|distance)$": (1, max(numbers, 1 << 32)),
        r"eps(ilon)?$": (0, 1),
    }
    for name, value in _numbers(hub.config.values):
        for pattern, (lowest, highest) in limits.items():
            if re.search(pattern, name) and not lowest <= value <= highest:
                raise CheckpointError(
                    f"{hub.config.source}: {name} is {value}, which contradicts the weights: {tensors} tensors "
                    f"with {numbers} numbers in all"
                )


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Gives every number of a configuration and its parts with its name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif type(value) in (int, float):
            yield name, value


def _check_vocabulary(folder: Path, model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer of another size than a token embedding, which may have a few rows more than are used."""
    tokens = len(tokenizer)
    for name, value in model.named_parameters():
        if name.endswith("embedding.weight"):
            rows = len(value)
            if tokens > rows or rows - tokens > max(256, rows // 50):
                raise CheckpointError(
                    f"{folder}: the tokenizer has {tokens} tokens, but the model's token embedding has {rows} rows"
                )
            _check_special(folder, tokenizer, rows)


def _check_special(folder: Path, tokenizer: Tokenizer, rows: int) -> None:
    """Refuses special tokens that have no row in a token embedding."""
    for name, value in tokenizer.special.items():
        ids = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else [value]
        for number in ids:
            if number is not None and not 0 <= number < rows:
                raise CheckpointError(
                    f"{folder}: the {name} token is {number}, but the model's token embedding has {rows} rows"
                )
