"""Training checkpoints, and model directories: config.json, model.safetensors, tokenizer.json and README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoints.convert import unfilled
from mm.checkpoints.tensors import Pickled, can_be_mapped
from mm.checkpoints.weights import Fingerprint, Renamed, Weights, read_json
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import Preprocessing
from mm.errors import CheckpointError, MMError, OutputError, first_line
from mm.files import write_whole
from mm.models import (
    Architecture,
    DualEncoder,
    LanguageModel,
    OpenClip,
    Parts,
    SpecialTokens,
    TextParts,
    VisionLanguageModel,
    build,
    build_dual_encoder,
    build_language,
)
from mm.models.precision import PRECISIONS, Precision, Preparation

KIND, LANGUAGE_KIND, OPEN_CLIP_KIND = "mm-vision-language", "mm-language", "mm-open-clip"
KINDS = {TextParts: LANGUAGE_KIND, OpenClip: OPEN_CLIP_KIND}
Described = Architecture | Parts | TextParts | OpenClip
OWN = "mm"
# Weights are kept under these names by versions of mm before they were called otherwise.
FORMER_NAMES = {"text_decoder.head.bias": "text_decoder.head_bias"}


@dataclass(frozen=True)
class Loaded:
    """A model with what it needs to be used.

    Args:
        model: in evaluation mode: a ``VisionLanguageModel``, or a ``LanguageModel``.
        tokenizer: its tokenizer.
        architecture: how it was built.
        fingerprint: SHA-256 of its weights, as what ``str`` gives.
        preprocessing: how images become its pixels; None for the whole image, scaled.
        family: what such models are called: ``mm``, ``BLIP captioning``.
        precisions: those that it is known to be good in, beside float32.
        precision: what its weights were prepared for while they were read; None for not at all: they are in float32.
    """

    model: Any
    tokenizer: Tokenizer
    architecture: Any
    fingerprint: Fingerprint | str
    preprocessing: Preprocessing | None = None
    family: str = OWN
    precisions: tuple[str, ...] = ()
    precision: Precision | None = None

    @property
    def transform(self) -> Preprocessing:
        """How images become the pixels that a vision-language model takes."""
        return self.preprocessing or Preprocessing(self.architecture.image_size)


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Gives the ids of a tokenizer's special tokens."""
    return SpecialTokens(**tokenizer.special)


def describe_build(
    architecture: Described, tokenizer: Tokenizer, preprocessing: Preprocessing | None, family: str
) -> dict[str, Any]:
    """Gives as plain data what it takes, beside weights and tokenizer, to build a model again."""
    description: dict[str, Any] = {"architecture": asdict(architecture)}
    if family != OWN:
        description["family"] = family
    if not tokenizer.own:
        description["special"] = tokenizer.special
    if tokenizer.clean is not None:
        description["clean"] = tokenizer.clean
    if preprocessing is not None:
        description["preprocessing"] = asdict(preprocessing)
    return description


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: str, preparation: Preparation | None = None
) -> None:
    """Loads weights of which every one has its place, and every place its weight.

    Args:
        module: what gets the weights.
        state: the weights by name.
        source: where they came from, for messages.
        preparation: prepares the model on the way; None for not at all.

    Raises:
        CheckpointError: names every weight that is missing, left over or of another shape.
    """
    own = module.state_dict(keep_vars=True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} has shape {shapes[name]} instead of {tuple(own[name].shape)}"
        for name in own
        if name in shapes and shapes[name] != tuple(own[name].shape)
    ]
    if problems:
        raise CheckpointError(f"{source}: the weights don't fit the model: {'; '.join(problems)}")
    fill = Tensor.copy_ if preparation is None else preparation.fill
    left = list({id(value): (name, value) for name, value in own.items()}.values())
    own.clear()
    left.reverse()
    with torch.no_grad():
        while left:  # one at a time: a file of weights is never in memory as a whole
            name, target = left.pop()
            fill(target, state[name])


def save_directory(
    folder: str | Path,
    model: VisionLanguageModel | LanguageModel | DualEncoder,
    tokenizer: Tokenizer,
    architecture: Described,
    card: str,
    dtype: torch.dtype = torch.float32,
    *,
    preprocessing: Preprocessing | None = None,
    family: str = OWN,
    precisions: Sequence[str] = (),
) -> None:
    """Writes a model directory; each file appears whole or not at all.

    Args:
        folder: where; made if missing.
        model: the weights. Tensors that several parts share are written once.
        tokenizer: its tokenizer.
        architecture: how it was built.
        card: text of the model card.
        dtype: precision of the weights on disk.
        preprocessing: how images become its pixels; None for the whole image, scaled.
        family: what such models are called.
        precisions: those that it is known to be good in, beside float32.

    Raises:
        OutputError: the folder can't be written, or a weight is too large for the precision.
    """
    from safetensors.torch import save

    folder = Path(folder)
    kind = KINDS.get(type(architecture), KIND)
    config = {"model_type": kind, **describe_build(architecture, tokenizer, preprocessing, family)}
    config |= {"languages": list(tokenizer.languages), "capabilities": list(model.capabilities)}
    if precisions:
        config["precisions"] = list(precisions)
    state = in_precision(_once(model.state_dict()), dtype, folder)
    files = {
        "config.json": json.dumps(config, indent=2).encode() + b"\n",
        "tokenizer.json": tokenizer.to_json().encode(),
        "README.md": card.encode(),
        "model.safetensors": save(state, {"format": "pt"}),
    }
    write_files(folder, files)


def in_precision(state: Mapping[str, Tensor], dtype: torch.dtype, folder: Path) -> dict[str, Tensor]:
    """Gives weights in a precision, as they are written to a folder.

    Raises:
        OutputError: one is too large for it.
    """
    whole = {name: value.detach().cpu() for name, value in state.items()}
    written = {
        name: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in whole.items()
    }
    lost = [name for name, value in written.items() if not torch.equal(value.isfinite(), whole[name].isfinite())]
    if lost:
        raise OutputError(f"{folder}: too large for {dtype}: {', '.join(lost)}; choose a precision with more range")
    return written


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes the files of a model, each of them whole or not at all, in the order given; the folder may be new.

    Raises:
        OutputError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise OutputError(f"{folder}: the model can't be written there ({error.strerror})") from error


def load_directory(folder: str | Path, precision: str | None = None) -> Loaded:
    """Reads a model directory of mm.

    Args:
        folder: where it is.
        precision: what its weights are prepared for on the way, as for ``load_model``.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights don't fit; the message names it.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = Weights(folder, ["model.safetensors"])
    source = str(folder / "config.json")
    tokenizer = Tokenizer.read(folder / "tokenizer.json", _special(config, source), config.get("clean"))
    fingerprint = Fingerprint(weights.files)
    return _assemble(config, tokenizer, weights, fingerprint, source, str(weights.files[0]), precision)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the ``config.json`` of a model directory of mm.

    Raises:
        CheckpointError: it is missing or damaged, or another kind of model's.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("model_type") not in (KIND, *KINDS.values()):
        raise CheckpointError(f"{path}: model_type is {config.get('model_type')!r}; mm's own is {KIND!r}")
    return config


def _special(description: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """Gives the ids of special tokens that a description holds, checked; None where mm's tokenizer knows its own."""
    special = description.get("special")
    if special is None:
        return None
    if not isinstance(special, dict) or special.keys() != {field.name for field in fields(SpecialTokens)}:
        raise CheckpointError(f"{source}: 'special' doesn't name the special tokens")
    ids = [value for name, value in special.items() if name != "languages"]
    languages = special["languages"]
    if not isinstance(languages, dict) or any(type(i) is not int for i in [*languages.values(), *filter(None, ids)]):
        raise CheckpointError(f"{source}: 'special' doesn't hold token ids")
    return special


def load_checkpoint(path: str | Path, precision: str | None = None) -> Loaded:
    """Reads a training checkpoint of ``mm fit``; with weight averaging, the averaged weights.

    Args:
        path: the file.
        precision: what its weights are prepared for on the way, as for ``load_model``.

    Raises:
        CheckpointError: it can't be read, holds more than plain data and tensors, or isn't of mm.
    """
    path = Path(path)
    own = read_checkpoint(path, mmap=True)["mm"]
    tokenizer = checkpoint_tokenizer(own, str(path))
    state = Pickled(path, partial(_model_state, path))
    return _assemble(own, tokenizer, state, Fingerprint([path]), str(path), str(path), precision)


def checkpoint_tokenizer(own: Mapping[str, Any], source: str) -> Tokenizer:
    """Gives the tokenizer in what a training checkpoint holds as ``mm``.

    Raises:
        CheckpointError: it is damaged.
    """
    return Tokenizer.from_json(own["tokenizer"], source, _special(own, source), own.get("clean"))


def _model_state(path: Path) -> dict[str, Tensor]:
    """Gives the weights in a training checkpoint by the model's names, mapped."""
    state = read_checkpoint(path, mmap=True)["state_dict"]
    model = {str(name).removeprefix("model."): v for name, v in state.items() if str(name).startswith("model.")}
    if others := [name for name, value in model.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: holds something other than tensors: {', '.join(others)}")
    return model


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
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and can_be_mapped(path))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # torch raises several kinds for damaged files
        raise CheckpointError(f"{path}: not a training checkpoint of mm ({first_line(error)})") from error
    own = checkpoint.get("mm") if isinstance(checkpoint, dict) else None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict) or not isinstance(own.get("tokenizer"), str) or not isinstance(weights, dict):
        raise CheckpointError(f"{path}: not a training checkpoint of mm; 'mm fit' writes those")
    return checkpoint


def _assemble(
    description: Mapping[str, Any],
    tokenizer: Tokenizer,
    state: Mapping[str, Tensor],
    fingerprint: Fingerprint,
    source: str,
    weights: str,
    precision: str | None,
) -> Loaded:
    numbers = description.get("architecture")
    if not isinstance(numbers, dict):
        raise CheckpointError(f"{source}: has no 'architecture' object, which says how the model is built")
    kind: Any = Parts if isinstance(numbers.get("vision"), dict) else Architecture
    if description.get("model_type") == LANGUAGE_KIND or ("vision" not in numbers and "decoder" in numbers):
        kind = TextParts
    if "config" in numbers:
        kind = OpenClip
    known = {field.name for field in fields(kind)}
    if extra := sorted(str(name) for name in numbers if name not in known):
        raise CheckpointError(
            f"{source}: unknown keys in 'architecture': {', '.join(extra)}; known are {', '.join(sorted(known))}"
        )
    model: nn.Module
    try:
        architecture = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()})
        special = special_tokens(tokenizer)
        make: Any = build_language if kind is TextParts else build
        with unfilled():
            if isinstance(architecture, OpenClip):
                model = build_dual_encoder(architecture, special)
            else:
                model = make(architecture, len(tokenizer), special)
    except (MMError, ArithmeticError, AttributeError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: 'architecture' can't be built ({first_line(error)})") from error
    try:
        scaling = description.get("preprocessing")
        preprocessing = None if scaling is None else Preprocessing(**scaling)
    except (MMError, TypeError) as error:
        raise CheckpointError(f"{source}: 'preprocessing' isn't known ({first_line(error)})") from error
    former = {new: old for new, old in FORMER_NAMES.items() if new not in state and old in state}
    other_names = former | {
        name: first for name, first in _tied(model.state_dict()).items() if name not in state and first in state
    }
    family = str(description.get("family", OWN))
    precisions = _precisions(description, source)
    preparation = Preparation.chosen(precision, precisions, model)
    load_strictly(model, Renamed(state, other_names, former.values()), weights, preparation)
    prepared = None if preparation is None else preparation.precision
    return Loaded(model.eval(), tokenizer, architecture, fingerprint, preprocessing, family, precisions, prepared)


def _precisions(description: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Gives the precisions that a description says a model is good in, checked; none where it says nothing."""
    precisions = description.get("precisions", [])
    if not isinstance(precisions, list) or any(one not in PRECISIONS for one in precisions):
        raise CheckpointError(f"{source}: 'precisions' must be a list of some of {', '.join(PRECISIONS)}")
    return tuple(precisions)


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
