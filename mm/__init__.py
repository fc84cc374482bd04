"""mm: caption images, search them in words, and fine-tune both on WebDataset shards.

import mm

model = mm.load("mm-tiny")
model.caption(["photo.jpg"])
mm.Gallery.open("my.gallery").search("a dog", k=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm.models import VisionLanguageModel
    from mm.pipeline import Pipeline, load
    from mm.search import Gallery

__version__ = "0.1.0"
__all__ = ["Gallery", "Pipeline", "VisionLanguageModel", "__version__", "load"]

_HOMES = {
    "Gallery": "mm.search",
    "Pipeline": "mm.pipeline",
    "VisionLanguageModel": "mm.models",
    "load": "mm.pipeline",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: torch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
