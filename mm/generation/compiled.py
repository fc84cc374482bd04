"""Decoding in steps that all have the same shapes, so that one is compiled once and then only run."""

from __future__ import annotations

import os
import shutil
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.errors import OptionError
from mm.generation.decoder import Decoder
from mm.layers import KeyValues, SlotCache
from mm.models.text import Conditioning, Context, Layout, TextTransformer

BUCKET = 32  # tokens: whatever differs in length from batch to batch is rounded up to a multiple of it


class State(NamedTuple):
    """What a step reads and writes: at every step the same tensors.

    ``B`` rows and ``K`` tokens of each; ``S`` slots for tokens.

    Args:
        tokens: (B, K) int64 that are read.
        parents: (B, K) int64, which of the rows so far each goes behind.
        slots: (K,) int64, where they are put.
        places: (B, K) int64, the place of each row's last token.
        keys: (B, S) int64, the places of the tokens in the slots.
        sees: (B, K, S) bool, which slots' tokens belong to each row.
        layers: keys and values of each block: those of a prefix, then those in the slots.
        context: what cross-attention sees; None for nothing.
        prefix: (1, P, 0), which stands for an image in front of the text, whose keys and values are there already; None
            for none.
    """

    tokens: Tensor
    parents: Tensor
    slots: Tensor
    places: Tensor
    keys: Tensor
    sees: Tensor
    layers: list[KeyValues]
    context: Context | None
    prefix: Tensor | None


class Shape(NamedTuple):
    """What steps of different shapes differ in.

    Args:
        rows: B.
        beams: K.
        capacity: S, slots for tokens.
        ahead: P, tokens of a prefix.
        context: sizes of one row of what cross-attention sees.
    """

    rows: int
    beams: int
    capacity: int
    ahead: int
    context: tuple[torch.Size | None, ...]


Run = Callable[[TextTransformer, State], tuple[Tensor, Tensor]]
Compile = Callable[[Run, torch.device], Run]


def advance(model: TextTransformer, state: State) -> tuple[Tensor, Tensor]:
    """Reads the tokens of a state, each behind its parent, and leaves the state ready for the next ones.

    Args:
        model: the text decoder.
        state: is changed in place.

    Returns:
        (B, K, V) float32 logits of the tokens that follow; (B, K, D) hidden states of those that were read.
    """
    ahead = 0 if state.prefix is None else state.prefix.shape[1]
    capacity = state.keys.shape[1]
    new = state.slots[:, None] == torch.arange(capacity, device=state.slots.device)
    sees = state.sees.gather(1, state.parents[..., None].expand(-1, -1, capacity)) | new
    places = (state.places.gather(1, state.parents) + 1).clamp_max(model.max_tokens - 1)
    state.sees.copy_(sees)
    state.places.copy_(places)
    state.keys.index_copy_(1, state.slots, places)
    hidden = model(
        state.tokens,
        context=state.context,
        prefix=state.prefix,
        cache=SlotCache(state.layers, state.slots + ahead),
        layout=Layout(places, sees, state.keys),
    )
    state.slots.add_(len(state.slots))
    return model.logits(hidden).float(), hidden


def check_compiler(device: torch.device) -> None:
    """Makes sure that steps can be compiled for a device.

    Raises:
        OptionError: a compiler is missing.
    """
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise OptionError(f"compile needs a C++ compiler, and there is no {compiler}; install it, or leave it out")
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        raise OptionError(f"compile needs triton for a {device.type}; install it, or leave compile out")


def compile_step(run: Run, device: torch.device) -> Run:
    """Compiles a step; on a GPU it becomes a CUDA graph, which is started as a whole."""
    mode = "reduce-overhead" if device.type == "cuda" else None
    return cast(Run, torch.compile(run, fullgraph=True, dynamic=False, mode=mode))


class Steps:
    """The compiled steps of a text decoder, one for each combination of shapes.

    Shapes are rounded up, so that few are compiled: images to a power of two, tokens to multiples of 32. What a step
    reads and writes is kept for later decoders of the same shapes.

    Args:
        model: the text decoder, in evaluation mode.
        compiler: compiles a step for a device.
    """

    def __init__(self, model: TextTransformer, compiler: Compile = compile_step) -> None:
        self._model = model
        self._compiler = compiler
        self._runs: dict[Shape, Run] = {}
        self._free: defaultdict[Shape, list[State]] = defaultdict(list)

    def begin(self, user: object, reader: Decoder, images: int, beams: int, capacity: int) -> tuple[Run, State]:
        """Gives a step that goes on from where a decoder is.

        Args:
            user: whoever takes the steps: the state is free for others once it is gone.
            reader: has read the prompts of B texts, and caches.
            images: how many texts it began with, some of which may have been left out.
            beams: K, tokens of each that are read at a time.
            capacity: the most tokens that are read of each, those of the prompt included.

        Returns:
            The step and its state, in which the first B rows are the texts.
        """
        about = _rounded(reader.about)
        rows, capacity = 1 << (images - 1).bit_length(), capacity + -capacity % BUCKET
        shape = Shape(
            rows, beams, capacity, 0 if about.prefix is None else about.prefix.shape[1], _sizes(about.context)
        )
        if shape not in self._runs:
            self._runs[shape] = self._compiler(_own_step(), self._model.embedding.weight.device)
        free = self._free[shape]
        state = free.pop() if free else _room(shape, reader, about.context)
        weakref.finalize(user, free.append, state)
        _fill(state, reader, about.context)
        return self._runs[shape], state


def _own_step() -> Run:
    """Gives a step whose code is its own: torch compiles the same code for a few shapes only."""
    return cast(Run, FunctionType(advance.__code__.replace(), advance.__globals__))


def _rounded(about: Conditioning) -> Conditioning:
    """Pads what cross-attention sees under a mask, such as texts: those of about the same length get one shape."""
    context = about.context
    if context is None or context.mask is None:
        return about
    tokens, seen = context.mask.shape[2:]
    mask = F.pad(context.mask, (0, -seen % BUCKET), value=False)
    if tokens > 1:
        mask = torch.cat([mask, mask[:, :, -1:].expand(-1, -1, -tokens % BUCKET, -1)], 2)
    pad = (0, 0, 0, -seen % BUCKET)
    layers = [None if kv is None else KeyValues(F.pad(kv.keys, pad), F.pad(kv.values, pad)) for kv in context.layers]
    return about._replace(context=Context(layers, mask))


def _sizes(context: Context | None) -> tuple[torch.Size | None, ...]:
    """Gives the sizes of one row of what cross-attention sees."""
    if context is None:
        return ()
    layers = [None if kv is None else kv.keys.shape[1:] for kv in context.layers]
    return (*layers, None if context.mask is None else context.mask.shape[1:])


def _room(shape: Shape, reader: Decoder, context: Context | None) -> State:
    """Makes room for what steps read and write, in places that a CUDA graph may rely on."""
    assert reader.cache is not None
    device, slots = reader.prompts.device, shape.ahead + shape.capacity
    several = torch.zeros(shape.rows, shape.beams, dtype=torch.int64, device=device)
    seen = [reader.cache.seen(layer) for layer in range(reader.cache.layers)]
    state = State(
        tokens=several,
        parents=several.clone(),
        slots=several[0].clone(),
        places=several.clone(),
        keys=several.new_zeros(shape.rows, shape.capacity),
        sees=several.new_zeros(shape.rows, shape.beams, shape.capacity, dtype=torch.bool),
        layers=[
            KeyValues(*(part.new_zeros(shape.rows, part.shape[1], slots, part.shape[3]) for part in one))
            for one in seen
        ],
        context=None if context is None else _context_room(context, shape.rows),
        prefix=several.new_empty(1, shape.ahead, 0) if shape.ahead else None,
    )
    for tensor in _tensors(state):
        torch._dynamo.mark_static_address(tensor)
    return state


def _context_room(context: Context, rows: int) -> Context:
    def room(tensor: Tensor) -> Tensor:
        return tensor.new_ones(rows, *tensor.shape[1:])

    layers = [None if kv is None else KeyValues(room(kv.keys), room(kv.values)) for kv in context.layers]
    return Context(layers, None if context.mask is None else room(context.mask))


def _tensors(part: object) -> Iterator[Tensor]:
    """Yields all tensors of a state or of a part of it."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for one in part:
            yield from _tensors(one)


def _fill(state: State, reader: Decoder, context: Context | None) -> None:
    """Puts into the first rows of a state what a decoder has read."""
    assert reader.cache is not None
    tree = reader.tree
    rows, length = tree.keys.shape
    state.slots.copy_(torch.arange(length, length + len(state.slots), device=state.slots.device))
    state.places[:rows] = tree.places
    state.keys[:rows, :length] = tree.keys
    state.sees.fill_(False)
    state.sees[:rows, :, :length] = True if tree.sees is None else tree.sees
    for layer, whole in enumerate(state.layers):
        for part, seen in zip(whole, reader.cache.seen(layer), strict=True):
            part[:rows, :, : seen.shape[2]] = seen
    for part, given in zip(_tensors(state.context), _tensors(context), strict=True):
        part[:rows] = given


class CompiledDecoder:
    """A text decoder in the middle of decoding, like ``Decoder``, that reads all but the prompts in compiled steps.

    A step has the same shapes whatever was read before, and whichever images are finished: they leave what is decoded,
    not what is computed.

    Args:
        steps: the compiled steps of the text decoder.
        reader: reads the prompts; it caches.
        capacity: the most tokens that are read for an image, those of its prompt included.
    """

    def __init__(self, steps: Steps, reader: Decoder, capacity: int) -> None:
        self.model, self.prompts, self.padding = reader.model, reader.prompts, reader.padding
        self.hidden: Tensor  # (B, T, D) hidden states of what was read last
        self._steps, self._reader, self._capacity = steps, reader, capacity
        self._step: tuple[Run, State] | None = None
        self._at = torch.arange(len(self.prompts), device=self.prompts.device)  # (B,) rows of the images in the state

    def begin(self, rows: int = 1) -> Tensor:
        """Reads the prompts; see ``Decoder.begin``."""
        logits = self._reader.begin(rows)
        self.hidden = self._reader.hidden
        return logits

    def extend(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        """Puts one token behind each of some rows; see ``Decoder.extend``. Their number is the same in all calls."""
        if self._step is None:
            self._step = self._steps.begin(self, self._reader, len(self.prompts), tokens.shape[1], self._capacity)
            self._at = torch.arange(len(tokens), device=tokens.device)
        run, state = self._step
        if parents is None:
            parents = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        state.tokens.index_copy_(0, self._at, tokens)
        state.parents.index_copy_(0, self._at, parents)
        logits, hidden = run(self.model, state)
        self.hidden = hidden[self._at]  # copies: what a CUDA graph gives is overwritten by the next step
        return logits[self._at]

    def keep(self, images: Tensor) -> None:
        """Goes on with some images (R,) only, in that order: those that aren't finished."""
        if self._step is None:
            self._reader.keep(images)
        self._at = self._at[images]
