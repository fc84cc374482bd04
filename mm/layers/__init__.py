"""The parts every transformer of mm is made of.

Shapes use one legend throughout the project: ``B`` batch, ``C`` channels, ``H W`` image height and width, ``P``
patches (image tokens), ``T`` text tokens, ``D`` model width, ``N`` heads, ``K`` beams, ``V`` vocabulary, ``E`` shared
embedding.
"""

from mm.layers.attention import Attention, KeyValues
from mm.layers.block import Block, Crossing
from mm.layers.cache import Cache, SelfAttentionCache, SlotCache
from mm.layers.feedforward import ACTIVATIONS, FeedForward
from mm.layers.masks import attention_mask
from mm.layers.positions import RelativeBias, Rotary, Rotation
from mm.layers.resampler import Resampler, ResamplerBlock

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "Block",
    "Cache",
    "Crossing",
    "FeedForward",
    "KeyValues",
    "RelativeBias",
    "Resampler",
    "ResamplerBlock",
    "Rotary",
    "Rotation",
    "SelfAttentionCache",
    "SlotCache",
    "attention_mask",
]
