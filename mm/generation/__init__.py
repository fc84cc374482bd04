"""Decoding: from image tokens to captions."""

from mm.generation.config import GenerationConfig
from mm.generation.generate import Generated, generate, generate_all, stream

__all__ = ["Generated", "GenerationConfig", "generate", "generate_all", "stream"]
