"""From the name a user gives to the model that it names."""

from __future__ import annotations

from pathlib import Path

from mm.checkpoints.directory import Loaded, first_line, load_checkpoint, load_directory
from mm.errors import CapabilityError, UnknownModelError

ASSETS = Path(__file__).parent.parent / "assets"
BUILT_IN = ("mm-tiny",)


def unknown_model(name: str) -> UnknownModelError:
    """Makes the error for a name that names nothing."""
    return UnknownModelError(
        f"no model named {name!r}: known are {', '.join(BUILT_IN)}, a model directory, a training checkpoint (.ckpt), "
        "hf:owner/name, and open_clip:architecture/tag"
    )


def load_vision_language(name: str | Path) -> Loaded:
    """Loads a model that captions, embeds and matches.

    Args:
        name: ``mm-tiny``, a model directory, a training checkpoint of ``mm fit``, or ``hf:owner/name``.

    Raises:
        UnknownModelError: the name names nothing.
        CapabilityError: it names a model that only embeds.
        CheckpointError: what it names can't be read.
    """
    name = str(name)
    if name in BUILT_IN:
        return load_directory(ASSETS / name)
    if name.startswith("hf:"):
        return load_directory(_download(name))
    if name.startswith("open_clip:"):
        raise CapabilityError(f"{name} only embeds; models that also caption and match: {', '.join(BUILT_IN)}")
    path = Path(name)
    if path.is_dir():
        return load_directory(path)
    if path.is_file():
        return load_checkpoint(path)
    raise unknown_model(name)


def find_tokenizer(name: str) -> Path:
    """Finds a ``tokenizer.json`` by its path, or by the model it belongs to."""
    if name in BUILT_IN:
        return ASSETS / name / "tokenizer.json"
    path = Path(name)
    return path / "tokenizer.json" if path.is_dir() else path


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.removeprefix("hf:"), allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except Exception as error:  # hub, network and cache errors of several libraries
        raise UnknownModelError(
            f"{name}: can't be fetched from the hub ({first_line(error)}); check the name and the network"
        ) from error
