"""The precision that a model computes in, and its weights prepared for that once."""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import cache, partial
from typing import Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mm.errors import OptionError
from mm.layers import Attention, Block, Rotary
from mm.layers.inference import Int8Linear, PackedLinear
from mm.models.text import Head, TextTransformer

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
AUTO = "auto"
_PROBE_CALLS = {1: 10, 3: 10, 256: 1}  # how often so many rows pass a linear map: steps of decoding, and an image
_PROBE_SECONDS = 0.1  # for each of them
_LARGEST_PROBE = 3072, 1024


def available(device: torch.device) -> tuple[Precision, ...]:
    """Gives the precisions that a device computes in at speed, the most exact first."""
    if device.type != "cpu":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return ("float32", "bfloat16") if bfloat16 else ("float32",)
    if not _packs():
        return ("float32",)
    able: list[Precision] = ["float32"]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        able.append("bfloat16")
    if torch.cpu._is_vnni_supported():  # without, sums of products overflow
        able.append("int8")
    return tuple(able)


def check_precision(precision: str, device: torch.device) -> None:
    """Makes sure that a device computes in a precision, or that it is ``auto``.

    Raises:
        OptionError: it doesn't.
    """
    if precision not in (AUTO, *PRECISIONS):
        raise OptionError(f"precision {precision!r} is not one of {', '.join((AUTO, *PRECISIONS))}")
    able = available(device)
    if precision != AUTO and precision not in able:
        raise OptionError(f"precision {precision!r} can't be used on this {device.type}; choose {' or '.join(able)}")


def choose(precision: str, passed: Sequence[str], model: nn.Module, device: torch.device) -> Precision:
    """Gives the precision that is meant.

    Args:
        precision: one of them; or ``auto`` for the one that the device is quickest in, of those the model passed with.
        passed: precisions that the model is known to be good in; float32 needn't be among them.
        model: not prepared yet.
        device: where it is to run.

    Raises:
        OptionError: the device doesn't compute in the precision.
    """
    check_precision(precision, device)
    able = [one for one in available(device) if precision in (one, AUTO)]
    if precision == AUTO:
        able = [one for one in able if one == "float32" or one in passed]
    return fastest(able, _typical_shape(model), device)


def _typical_shape(model: nn.Module) -> tuple[int, int]:
    """Gives outputs and inputs of the linear maps that have the most weights together."""
    weights: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        if type(module) is nn.Linear:
            weights[module.out_features, module.in_features] += module.weight.numel()
    return max(weights, key=weights.__getitem__, default=(1, 1))


def prepare(model: nn.Module, precision: Precision, pack: bool = True) -> None:
    """Prepares the weights of a model for inference where it is, once and for all: it can't be trained or saved then.

    Projections of the same input become one. On a CPU all linear maps get weights in oneDNN's layout; everything
    between them stays in float32. On a GPU in bfloat16 all but the logits is.

    Args:
        model: the model, on its device.
        precision: of its linear maps.
        pack: whether they get weights in oneDNN's layout, which can't be compiled; else float32 is float32 as it was.

    Raises:
        OptionError: its device doesn't compute in this precision.
    """
    device = next(model.parameters()).device
    check_precision(precision, device)
    for step in _steps(model, precision if pack and device.type == "cpu" and _packs() else None):
        step.take()
    if device.type != "cpu" and precision == "bfloat16":
        halve(model)
    _give_back()


def _give_back() -> None:
    """Gives memory that is free back to the system, where the C library keeps it, as glibc does."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Preparation:
    """Prepares a model for inference on the CPU while its weights are read, as ``prepare`` does it afterwards.

    Weights that are replaced take memory from when they are read until all that are replaced together are there.

    Args:
        model: built, but not filled.
        precision: of its linear maps.

    Raises:
        OptionError: the processor doesn't compute in this precision.
    """

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        check_precision(precision, torch.device("cpu"))
        self.precision: Precision = precision
        self._waiting: dict[int, list[tuple[set[int], Callable[[], None]]]] = {}
        for step in _steps(model, precision if _packs() else None):
            weights = {id(weight): weight for weight in step.weights}
            missing = set(weights)
            for number, weight in weights.items():
                self._waiting.setdefault(number, []).append((missing, step.take))
                if weight.untyped_storage().nbytes() == weight.nbytes:
                    weight.untyped_storage().resize_(0)

    @classmethod
    def chosen(cls, precision: str | None, passed: Sequence[str], model: nn.Module) -> Preparation | None:
        """Gives that for the precision which ``choose`` gives, or none for none.

        Raises:
            OptionError: the processor doesn't compute in the precision.
        """
        return None if precision is None else cls(model, choose(precision, passed, model, torch.device("cpu")))

    @torch.no_grad()
    def fill(self, target: Tensor, value: Tensor) -> None:
        """Copies a weight to its place, and replaces what has all of its weights then.

        Args:
            target: a tensor of the model, each of them once.
            value: of the same shape.
        """
        storage = target.untyped_storage()
        if storage.nbytes() < target.nbytes:
            storage.resize_(target.nbytes)
        target.copy_(value)
        for missing, take in self._waiting.pop(id(target), ()):
            missing.remove(id(target))
            if not missing:
                take()
                _give_back()


def fastest(candidates: Sequence[Precision], shape: tuple[int, int], device: torch.device) -> Precision:
    """Finds in less than a second the precision that a device is quickest in.

    Args:
        candidates: what to choose from, at least one, the most exact first.
        shape: outputs and inputs of a linear map, which is timed with as many rows as decoding and vision have. On a
            GPU, where the least exact is the quickest, nothing is timed.
        device: where.
    """
    if len(candidates) == 1 or device.type != "cpu":
        return candidates[-1]
    outputs, inputs = map(min, shape, _LARGEST_PROBE)
    return _probe(tuple(candidates), outputs, inputs)


@cache
def _probe(candidates: tuple[Precision, ...], outputs: int, inputs: int) -> Precision:
    weight = torch.ones(outputs, inputs)
    maps = {precision: _linear(weight, None, precision) for precision in candidates}
    totals = dict.fromkeys(candidates, 0.0)
    with torch.inference_mode():
        for rows, calls in _PROBE_CALLS.items():
            x = torch.ones(rows, inputs)
            least = {precision: _seconds(probed, x) for precision, probed in maps.items()}
            start = time.perf_counter()
            while time.perf_counter() - start < _PROBE_SECONDS:  # in turn, so that what slows the machine slows all
                for precision, probed in maps.items():
                    least[precision] = min(least[precision], _seconds(probed, x))
            for precision in candidates:
                totals[precision] += calls * least[precision]
    return min(candidates, key=totals.__getitem__)


def _seconds(layer: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    layer(x)
    return time.perf_counter() - start


def _packs() -> bool:
    """Says whether this processor and this torch have the kernels of ``mm.layers.inference``."""
    kernels = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and kernels and torch.backends.mkldnn.is_available()


class _Step(NamedTuple):
    """What is done to a part of a model when it is prepared.

    Args:
        weights: what it takes.
        take: does it; the weights aren't the model's then, unless something else has them too.
    """

    weights: list[Tensor]
    take: Callable[[], None]


def _steps(model: nn.Module, precision: Precision | None) -> Iterator[_Step]:
    """Yields the steps of preparing a model, each when the one before may have been taken.

    Args:
        model: not prepared yet.
        precision: that linear maps are packed in; None for only joining projections of the same input.
    """
    within = {module.attention for module in model.modules() if isinstance(module, Block)}
    packed: MutableMapping[nn.Module, nn.Module] = WeakKeyDictionary()  # a map may be a part of several modules
    for module in [module for module in model.modules() if type(module) is not nn.Linear]:
        maps = _maps(module)
        if isinstance(module, Attention) and module.joint is None:
            take = partial(_fuse, module, module in within, precision, packed)
        elif maps and precision is not None:
            take = partial(_pack, module, precision, packed)
        else:
            continue
        yield _Step([weight for linear in maps.values() for weight in linear.parameters()], take)
    if precision is not None:
        for head, weight in _heads(model):
            weights = [weight] if head.bias is None else [weight, head.bias]
            yield _Step(weights, partial(_pack_head, head, weight, precision))


def _maps(module: nn.Module) -> dict[str, nn.Linear]:
    """Gives the linear maps that are a module's own, by name, but for those that nothing may replace."""
    children = module._modules.items()
    return {name: child for name, child in children if type(child) is nn.Linear and not _read_as_weights(module, name)}


def _fuse(
    attention: Attention, queries: bool, precision: Precision | None, packed: MutableMapping[nn.Module, nn.Module]
) -> None:
    """Makes one of the projections of what self-attention sees, and of what other attention does, and packs it."""
    attention.fuse(queries=queries)
    if precision is not None:
        attention.kept_in = torch.float32 if precision == "float32" else torch.bfloat16
        _pack(attention, precision, packed)


def _pack(module: nn.Module, precision: Precision, packed: MutableMapping[nn.Module, nn.Module]) -> None:
    """Replaces the linear maps that are a module's own, or gives it what replaces them elsewhere already."""
    for name, linear in _maps(module).items():
        if linear not in packed:
            packed[linear] = _linear(linear.weight, linear.bias, precision)
        setattr(module, name, packed[linear])


def _read_as_weights(parent: nn.Module, name: str) -> bool:
    """Says whether a part of timm's multiplies with the weights of a linear map itself: they have biases beside it."""
    return name == "qkv" and getattr(parent, "q_bias", None) is not None


def _linear(weight: Tensor, bias: Tensor | None, precision: Precision) -> nn.Module:
    if precision == "int8":
        return Int8Linear(weight, bias)
    return PackedLinear(weight, bias, torch.bfloat16 if precision == "bfloat16" else torch.float32)


def _heads(model: nn.Module) -> Iterator[tuple[Head, Tensor]]:
    """Yields the language-model heads and the (V, D) weight of each: its own, or the token embedding."""
    for module in model.modules():
        if isinstance(module, TextTransformer) and module.head is not None and module.head.prepared is None:
            own = module.head.weight
            yield module.head, module.embedding.weight if own is None else own


def _pack_head(head: Head, weight: Tensor, precision: Precision) -> None:
    """Gives a head a packed map. A token embedding stays as it is: tokens are looked up in it."""
    head.prepared = _linear(weight, head.bias, precision)
    head.weight = head.bias = None


class _Float32Linear(nn.Module):
    """A linear map in float32 within a model that isn't; it takes any precision."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.float(), self.weight, self.bias)


def halve(model: nn.Module) -> None:
    """Makes a model compute in bfloat16, but for single numbers, the angles of rotary positions, and its logits."""
    for head, weight in _heads(model):
        head.prepared = _Float32Linear(weight, head.bias)
        head.weight = head.bias = None
    for module in model.modules():
        if not isinstance(module, Rotary):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point() and tensor.ndim:
                    tensor.data = tensor.data.to(torch.bfloat16)
