"""Models of open_clip, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor

from mm.checkpoints.directory import first_line
from mm.errors import CheckpointError, UnknownModelError
from mm.models import DualEncoder


def load_open_clip(name: str) -> tuple[DualEncoder, Callable[[Image.Image], Tensor], str]:
    """Loads a CLIP model.

    Args:
        name: ``open_clip:architecture/tag``, the tag one of open_clip's pretrained tags or a local file of weights.

    Returns:
        The model in evaluation mode, the transform from an RGB image to (3, H, W) normalized pixels, and SHA-256 of the
        weights.

    Raises:
        UnknownModelError: open_clip has no such architecture or tag, or the weights can't be fetched.
        CheckpointError: a local file can't be read or doesn't fit.
    """
    import open_clip

    architecture, _, tag = name.removeprefix("open_clip:").partition("/")
    if architecture not in open_clip.list_models():
        known = ", ".join(open_clip.list_models()[:12])
        raise UnknownModelError(f"{name}: open_clip has no architecture {architecture!r}; some it has: {known}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    local = Path(tag).is_file()
    if not local and tag.lower() not in map(str.lower, tags):
        raise UnknownModelError(f"{name}: {tag!r} is no file and no tag of {architecture}; tags: {', '.join(tags)}")
    try:
        model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=tag, weights_only=True)
    except Exception as error:  # open_clip, hub and torch raise several kinds
        reason = first_line(error)
        if local:
            raise CheckpointError(f"{name}: the weights can't be used ({reason})") from error
        raise UnknownModelError(f"{name}: can't be fetched ({reason}); give a local file instead of the tag") from error
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    width = int(open_clip.get_model_config(architecture)["embed_dim"])
    encoder = DualEncoder(model, open_clip.get_tokenizer(architecture), width)
    return encoder.eval(), transform, digest.hexdigest()
