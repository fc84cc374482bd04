"""Presets: plain functions from plain numbers to built parts, one for each family.

A *description* of a part is its preset's name and numbers, ``{"preset": "gpt2", "width": 768, ...}``, as it stands in a
config file and in a model's ``config.json``. To add a family, write a preset and enter it in ``tables.py``.
"""

from mm.models.presets.blocks import block
from mm.models.presets.describe import build_part, complete
from mm.models.presets.tables import CONNECTORS, TEXT, VISION
from mm.models.presets.vision import vision_encoder

__all__ = ["CONNECTORS", "TEXT", "VISION", "block", "build_part", "complete", "vision_encoder"]
