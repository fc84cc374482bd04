"""Every preset by its name, which a description gives."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mm.models.presets.bart import bart
from mm.models.presets.bert import bert
from mm.models.presets.coca import coca_decoder, coca_encoder, open_clip_vision
from mm.models.presets.connectors import Pass, Projection, resampler
from mm.models.presets.falcon import falcon
from mm.models.presets.gpt2 import gpt2
from mm.models.presets.llama import llama
from mm.models.presets.own import own
from mm.models.presets.t5 import t5
from mm.models.presets.vision import vision_encoder, vit

VISION: dict[str, Callable[..., nn.Module]] = {"timm": vision_encoder, "vit": vit, "open_clip": open_clip_vision}
CONNECTORS: dict[str, Callable[..., nn.Module]] = {"none": Pass, "projection": Projection, "resampler": resampler}
TEXT: dict[str, Callable[..., nn.Module]] = {
    "mm": own,
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "falcon": falcon,
    "t5": t5,
    "bart": bart,
    "coca_encoder": coca_encoder,
    "coca_decoder": coca_decoder,
}
