"""Training checkpoints, and model directories: config.json, model.safetensors, tokenizer.json and README.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm.data.tokenizer import Tokenizer
from mm.errors import CheckpointError, MMError, OutputError
from mm.files import write_whole
from mm.models import Architecture, SpecialTokens, VisionLanguageModel, build

KIND = "mm-vision-language"


@dataclass(frozen=True)
class Loaded:
    """A model with what it needs to be used.

    Args:
        model: in float32, in evaluation mode.
        tokenizer: its tokenizer.
        architecture: how it was built.
        fingerprint: SHA-256 of the file of weights.
    """

    model: VisionLanguageModel
    tokenizer: Tokenizer
    architecture: Architecture
    fingerprint: str


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Gives the ids of a tokenizer's special tokens."""
    return SpecialTokens(
        padding=tokenizer.padding,
        end=tokenizer.end,
        embed=tokenizer.embed,
        match=tokenizer.match,
        languages=dict(tokenizer.languages),
    )


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads weights of which every one has its place, and every place its weight.

    Args:
        module: what gets the weights.
        state: the weights by name.
        source: where they came from, for messages.

    Raises:
        CheckpointError: names every weight that is missing, left over or of another shape.
    """
    own = module.state_dict()
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{source}: holds something other than tensors: {', '.join(map(str, others))}")
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        raise CheckpointError(f"{source}: the weights don't fit the model: {'; '.join(problems)}")
    module.load_state_dict(dict(state))


def save_directory(
    folder: str | Path,
    model: VisionLanguageModel,
    tokenizer: Tokenizer,
    architecture: Architecture,
    card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a model directory; each file appears whole or not at all.

    Args:
        folder: where; made if missing.
        model: the weights. Tensors that several parts share are written once.
        tokenizer: its tokenizer.
        architecture: how it was built.
        card: text of the model card.
        dtype: precision of the weights on disk.

    Raises:
        OutputError: the folder can't be written, or a weight is too large for the precision.
    """
    from safetensors.torch import save

    folder = Path(folder)
    config = {"model_type": KIND, "architecture": asdict(architecture), "languages": list(tokenizer.languages)}
    whole = {name: value.detach().cpu() for name, value in _once(model.state_dict()).items()}
    state = {
        name: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in whole.items()
    }
    lost = [name for name, value in state.items() if not torch.equal(value.isfinite(), whole[name].isfinite())]
    if lost:
        raise OutputError(f"{folder}: too large for {dtype}: {', '.join(lost)}; choose a precision with more range")
    files = {
        "config.json": json.dumps(config, indent=2).encode() + b"\n",
        "tokenizer.json": tokenizer.to_json().encode(),
        "README.md": card.encode(),
        "model.safetensors": save(state, {"format": "pt"}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise OutputError(f"{folder}: the model can't be written there ({error.strerror})") from error


def load_directory(folder: str | Path) -> Loaded:
    """Reads a model directory.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights don't fit; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    config = read_config(folder)
    weights = folder / "model.safetensors"
    try:
        content = weights.read_bytes()
        state = load(content)
    except OSError as error:
        raise CheckpointError(f"{weights}: can't be read ({error.strerror})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: damaged or not safetensors ({first_line(error)})") from error
    tokenizer = Tokenizer.read(folder / "tokenizer.json")
    source = str(folder / "config.json")
    fingerprint = hashlib.sha256(content).hexdigest()
    return _assemble(config.get("architecture"), tokenizer, state, fingerprint, source, str(weights))


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the ``config.json`` of a model directory of mm.

    Raises:
        CheckpointError: it is missing or damaged, or another kind of model's.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}); a model directory has one") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(config, dict) or config.get("model_type") != KIND:
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{path}: model_type is {kind!r}; only {KIND!r} can be loaded")
    return config


def load_checkpoint(path: str | Path) -> Loaded:
    """Reads a training checkpoint of ``mm fit``; with weight averaging, the averaged weights.

    Raises:
        CheckpointError: it can't be read, holds more than plain data and tensors, or isn't of mm.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    own = checkpoint["mm"]
    tokenizer = Tokenizer.from_json(own["tokenizer"], str(path))
    state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if str(k).startswith("model.")}
    return _assemble(own.get("architecture"), tokenizer, state, fingerprint, str(path), str(path))


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Reads a training checkpoint of ``mm fit`` as it is.

    Args:
        path: the file.
        mmap: whether to leave the weights on disk until they are used.

    Returns:
        What Lightning saved; ``mm`` holds the architecture's numbers and the tokenizer, ``state_dict`` the weights.

    Raises:
        CheckpointError: it can't be read, holds more than plain data and tensors, or isn't of mm.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # torch raises several kinds for damaged files
        raise CheckpointError(f"{path}: not a training checkpoint of mm ({first_line(error)})") from error
    own = checkpoint.get("mm") if isinstance(checkpoint, dict) else None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict) or not isinstance(own.get("tokenizer"), str) or not isinstance(weights, dict):
        raise CheckpointError(f"{path}: not a training checkpoint of mm; 'mm fit' writes those")
    return checkpoint


def first_line(error: BaseException) -> str:
    """Gives the first line of an error's message, or its kind where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _assemble(
    description: Any, tokenizer: Tokenizer, state: dict[str, Tensor], fingerprint: str, source: str, weights: str
) -> Loaded:
    known = {field.name for field in fields(Architecture)}
    if not isinstance(description, dict):
        raise CheckpointError(f"{source}: has no 'architecture' object, which says how the model is built")
    if extra := sorted(str(name) for name in description if name not in known):
        raise CheckpointError(
            f"{source}: unknown keys in 'architecture': {', '.join(extra)}; known are {', '.join(sorted(known))}"
        )
    try:
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in description.items()}
        architecture = Architecture(**values)
        model = build(architecture, len(tokenizer), special_tokens(tokenizer))
    except (MMError, ArithmeticError, AttributeError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: 'architecture' can't be built ({first_line(error)})") from error
    for name, first in _tied(model.state_dict()).items():
        if first in state:
            state.setdefault(name, state[first])
    load_strictly(model, state, weights)
    return Loaded(model.eval(), tokenizer, architecture, fingerprint)


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Maps the name of each tensor that shares its memory with an earlier one to that one's name."""
    first: dict[int, str] = {}
    return {
        name: first[value.data_ptr()]
        for name, value in state.items()
        if first.setdefault(value.data_ptr(), name) != name and value.numel()
    }


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tied = _tied(state)
    return {name: value for name, value in state.items() if name not in tied}
