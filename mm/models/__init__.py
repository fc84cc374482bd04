"""Models built from ``mm.layers``: vision encoders, text transformers and what they make together."""

from mm.models.architecture import Architecture, build
from mm.models.dual_encoder import DualEncoder
from mm.models.text import TextTransformer
from mm.models.vision import ConvStem, HybridViT, TimmViT
from mm.models.vision_language import SpecialTokens, VisionLanguageModel

__all__ = [
    "Architecture",
    "ConvStem",
    "DualEncoder",
    "HybridViT",
    "SpecialTokens",
    "TextTransformer",
    "TimmViT",
    "VisionLanguageModel",
    "build",
]
