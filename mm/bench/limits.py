"""What the machine's speed allows: the time that arithmetic and memory need at least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mm.bench.checkpoint import Shape
from mm.bench.peers import Case
from mm.models.precision import Precision

WEIGHT_BYTES: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
CACHE_BYTES: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 2}


@dataclass(frozen=True)
class Machine:
    """What was measured of a machine.

    Args:
        bandwidth: bytes per second that are read from memory.
        rates: operations per second of matrix multiplications, by precision.
    """

    bandwidth: float
    rates: Mapping[Precision, float]


def vision_flops(shape: Shape, images: int) -> int:
    """Counts the operations that are needed once for each image: the vision encoder, and the image keys and values.

    A multiplication and an addition are two; what isn't a matrix multiplication isn't counted.
    """
    tokens, width = shape.image_tokens, shape.width
    patches = 2 * (tokens - 1) * 3 * shape.patch**2 * width
    maps = 2 * tokens * (4 * width**2 + 2 * width * shape.hidden)
    attention = 2 * 2 * tokens**2 * width
    keys_values = 2 * tokens * 2 * width**2
    return images * (patches + shape.blocks * (maps + attention + keys_values))


def decoder_weights(shape: Shape) -> int:
    """Counts the weights that are read for each token: those of self-attention, of the queries and outputs of
    cross-attention, of the feed-forward layers, and of the map to logits."""
    width = shape.width
    block = (4 + 2) * width**2 + 2 * width * shape.hidden
    return shape.blocks * block + width**2 + width * shape.vocabulary


def cached_numbers(shape: Shape, case: Case) -> float:
    """Counts the keys and values that are read for each token, in the mean: image keys and values are those of every
    image, which its beams share, and the ones of tokens grow from one token to all."""
    pair = 2 * shape.blocks * shape.width
    return pair * case.images * (shape.image_tokens + case.beams * (case.tokens + 1) / 2)


def vision_limit(shape: Shape, images: int, precision: Precision, machine: Machine) -> float:
    """Gives the seconds that the machine needs at least for what is done once for each image."""
    return vision_flops(shape, images) / machine.rates[precision]


def decoding_limit(shape: Shape, case: Case, precision: Precision, machine: Machine) -> float:
    """Gives the seconds that the machine needs at least to read weights and caches for every token."""
    weights = decoder_weights(shape) * WEIGHT_BYTES[precision]
    caches = cached_numbers(shape, case) * CACHE_BYTES[precision]
    return case.tokens * (weights + caches) / machine.bandwidth


@dataclass(frozen=True)
class Line:
    """A straight line through measured times, by least squares.

    Args:
        constant: seconds at 0.
        slope: seconds for each more.
        residual: the largest distance from the line, relative to the time measured.
    """

    constant: float
    slope: float
    residual: float


def fit_line(counts: Sequence[int], seconds: Sequence[float]) -> Line:
    """Lays a line through times.

    Args:
        counts: how many images or tokens, at least two.
        seconds: the time for each.
    """
    slope, constant = np.polyfit(counts, seconds, 1)
    found = constant + slope * np.asarray(counts)
    return Line(float(constant), float(slope), float(np.max(np.abs(found - seconds) / np.asarray(seconds))))
