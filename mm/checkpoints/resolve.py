"""From the name a user gives to the model that it names."""

from __future__ import annotations

from pathlib import Path

from mm.checkpoints.directory import Loaded, load_checkpoint, load_directory
from mm.checkpoints.weights import read_json
from mm.errors import CapabilityError, CheckpointError, UnknownModelError, first_line
from mm.models import LanguageModel

ASSETS = Path(__file__).parent.parent / "assets"
BUILT_IN = ("mm-tiny",)
DESCRIBING = ("*.json", "*.md", "vocab.txt", "merges.txt", "*.model")


def unknown_model(name: str) -> UnknownModelError:
    """Makes the error for a name that names nothing."""
    return UnknownModelError(
        f"no model named {name!r}: known are {', '.join(BUILT_IN)}, a model directory, a training checkpoint (.ckpt), "
        "hf:owner/name, and open_clip:architecture/tag"
    )


def load_vision_language(name: str | Path) -> Loaded:
    """Loads a model that sees.

    Args:
        name: as for ``load_model``.

    Raises:
        UnknownModelError: the name names nothing.
        CapabilityError: it names a language model.
        CheckpointError: what it names can't be read.
    """
    loaded = load_model(name)
    if isinstance(loaded.model, LanguageModel):
        raise CapabilityError(f"{name} is a language model, which sees no images; one that does: {BUILT_IN[0]}")
    return loaded


def load_model(name: str | Path, precision: str | None = None) -> Loaded:
    """Loads a vision-language model, a dual encoder or a language model.

    Args:
        name: ``mm-tiny``, a model directory, a folder in a layout of the hub, a training checkpoint of ``mm fit``,
            ``hf:owner/name``, or ``open_clip:architecture/tag`` where the tag may be a local file.
        precision: what weights are prepared for on the way, for inference on the CPU, so that they are never in memory
            as a whole; as for ``choose``. None for not at all, which those of open_clip never are.

    Raises:
        UnknownModelError: the name names nothing.
        CheckpointError: what it names can't be read.
        OptionError: the processor doesn't compute in the precision.
    """
    name = str(name)
    if name in BUILT_IN:
        return load_directory(ASSETS / name, precision)
    if name.startswith("hf:"):
        return load_folder(download(name), precision)
    if name.startswith("open_clip:"):
        from mm.checkpoints.open_clip import load_open_clip

        return load_open_clip(name)
    path = Path(name)
    if path.is_dir():
        return load_folder(path, precision)
    if path.is_file():
        return load_checkpoint(path, precision)
    raise unknown_model(name)


def load_folder(folder: Path, precision: str | None = None) -> Loaded:
    """Loads a model directory of mm, or a checkpoint in a public layout.

    Args:
        folder: where it is.
        precision: what its weights are prepared for on the way, as for ``load_model``.

    Raises:
        CheckpointError: a file is missing or damaged, the architecture isn't supported, or the weights don't fit.
    """
    if is_own(folder):
        return load_directory(folder, precision)
    from mm.checkpoints.hub import load_hub_folder

    return load_hub_folder(folder, precision)


def is_own(folder: Path) -> bool:
    """Says whether a folder is in the layout of mm's own model directories, rather than a public one.

    Raises:
        CheckpointError: its ``config.json`` is missing or damaged.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{config}: can't be read (No such file or directory); a model directory has one")
    return str(read_json(config).get("model_type", "")).startswith("mm-")


def find_tokenizer(name: str) -> Path:
    """Finds a ``tokenizer.json`` by its path, or by the model it belongs to."""
    if name in BUILT_IN:
        return ASSETS / name / "tokenizer.json"
    path = Path(name)
    return path / "tokenizer.json" if path.is_dir() else path


def download(name: str) -> Path:
    """Fetches ``hf:owner/name`` from the hub; what was fetched before is taken from the hub's cache.

    A pickle of weights is fetched only where there are no safetensors.

    Raises:
        UnknownModelError: it can't be fetched.
    """
    from huggingface_hub import snapshot_download

    repository = name.removeprefix("hf:")
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*DESCRIBING, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*DESCRIBING, "pytorch_model*.bin"]))
        return folder
    except Exception as error:  # hub, network and cache errors of several libraries
        raise UnknownModelError(
            f"{name}: can't be fetched from the hub ({first_line(error)}); check the name and the network"
        ) from error
