"""Models built from ``mm.layers``: vision encoders, text transformers and what they make together."""

from mm.models.architecture import Architecture, Parts, TextParts, build, build_language
from mm.models.dual_encoder import DualEncoder, OpenClip, build_dual_encoder
from mm.models.language import LanguageModel
from mm.models.text import Conditioning, Context, Head, Layout, TextTransformer
from mm.models.vision import ConvStem, HybridViT, TimmViT
from mm.models.vision_language import SpecialTokens, VisionLanguageModel

__all__ = [
    "Architecture",
    "Conditioning",
    "Context",
    "ConvStem",
    "DualEncoder",
    "Head",
    "HybridViT",
    "LanguageModel",
    "Layout",
    "OpenClip",
    "Parts",
    "SpecialTokens",
    "TextParts",
    "TextTransformer",
    "TimmViT",
    "VisionLanguageModel",
    "build",
    "build_dual_encoder",
    "build_language",
]
