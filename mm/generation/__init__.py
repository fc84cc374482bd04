"""Decoding: from image tokens to captions."""

from mm.generation.config import GenerationConfig
from mm.generation.generate import Generated, generate

__all__ = ["Generated", "GenerationConfig", "generate"]
