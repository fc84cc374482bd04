"""From a public checkpoint to a model of mm: which of its tensors becomes which of ours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mm.checkpoints.weights import FLOATING, Weights, read_json
from mm.errors import CheckpointError
from mm.models import Parts, TextParts
from mm.models.precision import Preparation


@dataclass(frozen=True)
class Source:
    """Where a tensor comes from.

    Args:
        names: tensors of the checkpoint.
        make: makes ours of them; None for a single one as it is.
    """

    names: tuple[str, ...]
    make: Callable[..., Tensor] | None = None


Names = dict[str, Source]


def same(name: str) -> Source:
    """Gives a tensor of the checkpoint as it is."""
    return Source((name,))


def transposed(name: str) -> Source:
    """Gives a (a, b) tensor as (b, a), as for a linear map that is stored as a convolution."""
    return Source((name,), lambda value: value.T)


def joined(*names: str) -> Source:
    """Gives several tensors as one, joined along their first dimension."""
    return Source(names, lambda *values: torch.cat(values))


def part(name: str, number: int, of: int, *, flip: bool = False) -> Source:
    """Gives one of several equal parts of a tensor, along its first dimension; with ``flip`` of its transpose."""
    return Source((name,), lambda value: (value.T if flip else value).chunk(of)[number])


def layer(own: str, theirs: str, *, bias: bool = True, make: Callable[[str], Source] = same) -> Names:
    """Gives the weight and bias of a linear map or norm that are called so on both sides.

    Args:
        own: name of the module in mm.
        theirs: its name in the checkpoint.
        bias: whether it has a bias.
        make: what is done with the weight; the bias stays as it is.
    """
    names = {f"{own}.weight": make(f"{theirs}.weight")}
    return names | ({f"{own}.bias": same(f"{theirs}.bias")} if bias else {})


class Settings:
    """A checkpoint's configuration, or a part of it; its messages name the key.

    Args:
        values: the JSON object.
        source: the file, and the part, for messages.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def get(self, name: str, default: Any) -> Any:
        """Gives a value, or the default where there is none or null. It must be of the default's type.

        Raises:
            CheckpointError: it isn't.
        """
        value = self.values.get(name)
        if value is None:
            return default
        kind = type(default)
        if kind is float and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not kind:
            raise CheckpointError(f"{self.source}: {name} is {value!r}, not of type {kind.__name__}")
        if kind is float and not math.isfinite(value):
            raise CheckpointError(f"{self.source}: {name} is {value!r}, not a finite number")
        return value

    def part(self, name: str) -> Settings:
        """Gives a nested object, empty where there is none."""
        return Settings(self.get(name, {}), f"{self.source}, {name}")

    def one_of(self, name: str, default: Any, known: Iterable[Any]) -> Any:
        """Gives a value that mm knows, or the default where there is none or null.

        Raises:
            CheckpointError: it doesn't.
        """
        value = self.values.get(name)
        value = default if value is None else value
        if value not in (known := list(known)):
            raise CheckpointError(f"{self.source}: {name} is {value!r}; mm knows {', '.join(map(repr, known))}")
        return value

    def activation(self, name: str, default: str) -> str:
        """Gives mm's name of an activation."""
        value = self.one_of(name, default, ACTIVATION_NAMES)
        return ACTIVATION_NAMES[value]


ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class HubFolder:
    """A folder in the hub's layout: its configuration and its weights, which are opened when they are asked for.

    Args:
        folder: where it is.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = Settings(read_json(folder / "config.json"), str(folder / "config.json"))
        generation = folder / "generation_config.json"
        self.generation = Settings(read_json(generation) if generation.is_file() else {}, str(generation))

    @cached_property
    def weights(self) -> Weights:
        """Its weights.

        Raises:
            CheckpointError: as for ``Weights``.
        """
        return Weights(self.folder)

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The tokens that ``tokenizer.json`` names beside its vocabulary, special ones among them: id by text.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        added = read_json(self.folder / "tokenizer.json").get("added_tokens")
        known = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
        return {str(token.get("content")): token["id"] for token in known if type(token.get("id")) is int}

    def token(self, name: str, *parts: Settings) -> int:
        """Gives the id of a special token, such as ``eos_token_id``.

        It is looked for in ``generation_config.json``, in ``config.json`` and in parts of that. Of several ids, the
        first counts.

        Raises:
            CheckpointError: nowhere is one.
        """
        found = self.token_or_none(name, *parts)
        if found is None:
            raise CheckpointError(f"{self.config.source}: has no {name}, which decoding needs")
        return found

    def token_or_none(self, name: str, *parts: Settings) -> int | None:
        """Gives the id of a special token, or None."""
        for settings in (self.generation, self.config, *parts):
            value = settings.values.get(name)
            if isinstance(value, list) and value:
                value = value[0]
            if type(value) is int and value >= 0:
                return value
        return None


@dataclass(frozen=True)
class Converted:
    """What a converter says about a checkpoint.

    Args:
        family: what a user calls such a model: ``BLIP captioning``.
        architecture: what to build.
        names: for each tensor of the model its source.
        special: ids of special tokens, as ``SpecialTokens`` takes them.
        ignored: patterns of tensors in the checkpoint that mm has no use for.
        copies: tensors of the checkpoint that repeat another, and which; where they are there, they must be equal.
    """

    family: str
    architecture: Parts | TextParts
    names: Names
    special: dict[str, Any]
    ignored: tuple[str, ...] = ()
    copies: dict[str, str] = field(default_factory=dict)


def check_converted(module: nn.Module, converted: Converted, weights: Weights) -> None:
    """Makes sure that a checkpoint's weights fit a model, without reading them.

    Args:
        module: the model; its weights may be on the ``meta`` device.
        converted: what becomes of the checkpoint.
        weights: the checkpoint's.

    Raises:
        CheckpointError: names every tensor that is missing or left over, on either side, of another shape, or not of
            floating-point numbers.
    """
    own = dict(tensors(module))
    names, where = converted.names, weights.folder
    used = {name for source in names.values() for name in source.names}
    problems = [f"mm's {name} has no source" for name in own if name not in names]
    problems += [f"missing {name}" for name in sorted(used) if name not in weights]
    left = [name for name in weights if name not in used and name not in converted.copies]
    problems += [
        f"unexpected {name}" for name in left if not any(fnmatchcase(name, pattern) for pattern in converted.ignored)
    ]
    if problems:
        raise CheckpointError(f"{where}: the weights don't fit {converted.family}: {'; '.join(problems)}")
    problems += [
        f"{name} is of type {weights.type(name)}, not of floating-point numbers"
        for name in sorted(used)
        if weights.type(name) not in FLOATING
    ]
    problems += filter(None, (_misfit(name, target, names[name], weights) for name, target in own.items()))
    if problems:
        raise CheckpointError(f"{where}: the weights contradict config.json: {'; '.join(problems)}")


def _misfit(name: str, target: Tensor, source: Source, weights: Weights) -> str | None:
    """Says why a tensor can't be made of its source; None where it can."""
    blank = [torch.empty(weights.shape(theirs), device="meta") for theirs in source.names]
    shapes = ", ".join(f"{theirs} {weights.shape(theirs)}" for theirs in source.names)
    try:
        made = blank[0] if source.make is None else source.make(*blank)
    except (IndexError, RuntimeError, ValueError) as error:
        return f"{name} can't be made of {shapes} ({error})"
    if made.shape != target.shape:
        return f"{name} has shape {tuple(target.shape)} by config.json, but comes from {shapes}"
    return None


def load_converted(
    module: nn.Module, converted: Converted, weights: Weights, preparation: Preparation | None = None
) -> None:
    """Fills a model with a checkpoint's weights, one tensor at a time, each in the model's precision.

    Args:
        module: the model.
        converted: what becomes of the checkpoint.
        weights: the checkpoint's.
        preparation: prepares the model on the way; None for not at all.

    Raises:
        CheckpointError: they don't fit, as ``check_converted`` says; or what should repeat a tensor differs from it.
    """
    check_converted(module, converted, weights)
    differing = [
        f"{copy} differs from {whole}, which it should repeat"
        for copy, whole in converted.copies.items()
        if copy in weights and not torch.equal(weights[copy], weights[whole])
    ]
    if differing:
        raise CheckpointError(f"{weights.folder}: the weights contradict config.json: {'; '.join(differing)}")
    left = Counter(theirs for source in converted.names.values() for theirs in source.names)
    fill = Tensor.copy_ if preparation is None else preparation.fill
    own = dict(tensors(module))
    for name in list(own):
        source = converted.names[name]
        with torch.no_grad():
            values = [weights[theirs] for theirs in source.names]
            fill(own.pop(name), values[0] if source.make is None else source.make(*values))
        left.subtract(source.names)
        for theirs in {theirs for theirs in source.names if not left[theirs]}:
            weights.release(theirs)
    weights.close()


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Gives every tensor of a model once, by its first name."""
    seen: set[int] = set()
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING or (func in _SCALING and isinstance(args[0], nn.Parameter)):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_FILLING = {
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.erfinv_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
}
_SCALING = {Tensor.mul_, Tensor.add_, Tensor.clamp_}  # what is done to random numbers then; elsewhere it has a meaning


@contextmanager
def unfilled() -> Iterator[None]:
    """Leaves out the random numbers that new modules begin with: all of their weights are about to be read."""
    with _Unfilled():
        yield
