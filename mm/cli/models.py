"""``mm models``: lists what can be loaded, with capabilities and sizes; shows or exports a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm.cli import common
from mm.data.samples import Rejection, Tally, printable
from mm.errors import CheckpointError, DataError, UsageError, first_line

OF_THE_HUB = "caption, shots, embed, match, ask, fill, score, translate"
FORMS = (
    ("DIRECTORY", "a model directory, such as 'mm export' writes, or a checkpoint as on the hub", OF_THE_HUB),
    ("FILE.ckpt", "a training checkpoint of 'mm fit'", OF_THE_HUB),
    ("hf:OWNER/NAME", "a model on the Hugging Face hub: mm's own, or of an architecture below", OF_THE_HUB),
    ("open_clip:ARCHITECTURE/TAG", "a model of open_clip by tag; 'mm models --open_clip' lists them", "caption, embed"),
    ("open_clip:ARCHITECTURE/FILE", "a model of open_clip from a local file of weights", "caption, embed"),
)
DAMAGED = "damaged"
MISSING = "missing file"
UNREADABLE = "not a model of mm, or damaged"
EARLIER = ("caption", "embed", "match")
"""What a model can do that was saved by a version of mm that didn't write it down."""


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm models``, or what its first argument names: ``mm models show`` or ``mm models export``."""
    if arguments and arguments[0] == "show":
        from mm.cli import models_show

        return models_show.run(arguments[1:], f"{program} show")
    if arguments and arguments[0] == "export":
        from mm.cli import export

        return export.run_to(arguments[1:], f"{program} export")
    return _list(arguments, program)


def _list(arguments: Sequence[str], program: str) -> int:
    parser = common.Parser(
        prog=program,
        description="List what can be loaded, with capabilities and sizes. 'mm models show MODEL' says everything "
        "about a model, 'mm models export MODEL FOLDER --to hf|onnx|mm' writes it in another layout.",
    )
    parser.add_argument(
        "folders", nargs="*", default=[], help="also look for models and checkpoints here (./show for one called so)"
    )
    parser.add_argument("--open_clip", action="store_true", help="list every pretrained model of open_clip")
    common.add_json(parser)
    options = common.parse(parser, arguments)
    for folder in map(Path, options.folders):
        if not folder.is_dir():
            raise UsageError(f"{folder}: isn't a folder; give folders to look for models in")

    from mm.checkpoints.families import CONVERTERS
    from mm.checkpoints.resolve import ASSETS, BUILT_IN

    candidates = {name: ASSETS / name for name in BUILT_IN}
    candidates |= {printable(str(path)): path for folder in options.folders for path in _find(Path(folder))}
    models: list[dict[str, Any]] = []
    tally = Tally()
    for name, path in candidates.items():
        try:
            models.append({"model": name, **describe(path)})
        except DataError as error:
            tally.reject(Rejection.of(error, name))
    if options.open_clip:
        models += _of_open_clip()
    if options.json:
        result: dict[str, Any] = {"models": models, "rejections": common.rejections_json(tally)}
        result["forms"] = [{"name": name, "what": what, "capabilities": can.split(", ")} for name, what, can in FORMS]
        common.print_json(result | {"architectures": sorted(CONVERTERS)})
        return 0
    print_models("Models", models)
    if not tally.ok:
        refused = [(rejection.source, rejection.reason, rejection.detail) for rejection in tally.rejections]
        common.print_table("Can't be loaded", ("source", "reason", "detail"), refused)
    common.print_table("Other names that can be loaded", ("name", "what", "capabilities"), FORMS)
    known = [(name,) for name in sorted(CONVERTERS)]
    common.print_table("Checkpoints in the layout of the hub that can be loaded", ("architectures",), known)
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Describes a model directory, a public checkpoint or a training checkpoint without reading its weights.

    Returns:
        Its ``family``, its ``capabilities``, the codes of its ``languages``, its number of ``parameters``, and the size
        of its files of weights in ``bytes``.

    Raises:
        DataError: it is damaged, or isn't a model that can be loaded.
    """
    from mm.checkpoints.resolve import is_own

    try:
        if path.is_file():
            return _describe_checkpoint(path)
        return _describe_directory(path) if is_own(path) else _describe_public(path)
    except CheckpointError as error:
        raise DataError(str(error), UNREADABLE) from error


def print_models(title: str, models: Sequence[dict[str, Any]]) -> None:
    """Prints models with what ``describe`` says about them, as a table."""
    rows = [
        (
            model["model"],
            model["family"],
            ", ".join(model["capabilities"]),
            ", ".join(model.get("languages", [])) or "-",
            *(f"{model[name]:,}" if name in model else "-" for name in ("parameters", "bytes")),
        )
        for model in models
    ]
    columns = ("model", "family", "capabilities", "languages", "parameters", "bytes")
    common.print_table(title, columns, rows)


def _find(folder: Path) -> Iterator[Path]:
    for path in (folder, *sorted(folder.rglob("*"))):
        with contextlib.suppress(PermissionError):  # a folder that can't be looked into holds nothing to load
            if (path.suffix == ".ckpt" and path.is_file()) or _holds_weights(path):
                yield path


def _holds_weights(folder: Path) -> bool:
    """Says whether a folder may be a model: of mm, or in a layout of the hub."""
    from mm.checkpoints.weights import PICKLE, SAFETENSORS

    if (folder / SAFETENSORS).is_file():
        return True
    others = (PICKLE, *(f"{name}.index.json" for name in (SAFETENSORS, PICKLE)))
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in others)


def _of_open_clip() -> list[dict[str, Any]]:
    import open_clip

    from mm.checkpoints.open_clip import CAPTIONING_FAMILY, FAMILY, can_caption

    models = []
    for name, tag in open_clip.list_pretrained():
        captions = can_caption(open_clip.get_model_config(name))
        family, able = (CAPTIONING_FAMILY, ["caption", "embed"]) if captions else (FAMILY, ["embed"])
        models.append({"model": f"open_clip:{name}/{tag}", "family": family, "capabilities": able})
    return models


def _describe_directory(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    from mm.checkpoints.directory import read_config

    config = read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise DataError("tokenizer.json is missing; a model directory has one", MISSING)
    weights = folder / "model.safetensors"
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    except Exception as error:  # safetensors raises several kinds
        raise DataError(f"model.safetensors can't be read ({first_line(error)})", DAMAGED) from error
    size = {"parameters": sum(map(math.prod, shapes)), "bytes": weights.stat().st_size}
    return _what(config) | {"languages": _codes(config, "languages", ())} | size


def _describe_public(folder: Path) -> dict[str, Any]:
    from mm.checkpoints.convert import tensors
    from mm.checkpoints.hub import plan_hub_folder

    plan = plan_hub_folder(folder)
    return {
        "family": plan.converted.family,
        "capabilities": list(plan.model.capabilities),
        "languages": list(plan.tokenizer.languages),
        "parameters": sum(value.numel() for _, value in tensors(plan.model)),
        "bytes": sum(path.stat().st_size for path in plan.hub.weights.files),
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    import torch

    from mm.checkpoints.directory import checkpoint_tokenizer, read_checkpoint

    checkpoint = read_checkpoint(path, mmap=True)
    own = checkpoint["mm"]
    languages = list(checkpoint_tokenizer(own, "its tokenizer").languages)
    model = [
        value
        for name, value in checkpoint["state_dict"].items()
        if str(name).startswith("model.") and torch.is_tensor(value)
    ]
    shared = {value.data_ptr(): value.numel() for value in model}  # several parts share one tensor
    size = {"parameters": sum(shared.values()), "bytes": path.stat().st_size}
    return _what(own) | {"languages": languages} | size


def _what(description: dict[str, Any]) -> dict[str, Any]:
    """Gives family and capabilities that a model directory or training checkpoint of mm says it has."""
    from mm.checkpoints.directory import OWN

    family = str(description.get("family", OWN))
    return {"family": family, "capabilities": _codes(description, "capabilities", EARLIER)}


def _codes(description: dict[str, Any], name: str, default: Sequence[str]) -> list[str]:
    values = description.get(name)
    return [str(value) for value in values] if isinstance(values, list) else list(default)
