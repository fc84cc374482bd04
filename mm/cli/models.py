"""``mm models``: lists what can be loaded, with capabilities and sizes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm.cli import common
from mm.data.samples import Rejection, Tally, printable
from mm.errors import CheckpointError, DataError, UsageError

FORMS = (
    ("DIRECTORY", "a model directory, such as 'mm export' writes", "caption, embed, match"),
    ("FILE.ckpt", "a training checkpoint of 'mm fit'", "caption, embed, match"),
    ("hf:OWNER/NAME", "a model directory of mm on the Hugging Face hub", "caption, embed, match"),
    ("open_clip:ARCHITECTURE/TAG", "a CLIP model of open_clip by tag; 'mm models --open_clip' lists them", "embed"),
    ("open_clip:ARCHITECTURE/FILE", "a CLIP model of open_clip from a local file of weights", "embed"),
)
DAMAGED = "damaged"
MISSING = "missing file"
UNREADABLE = "not a model of mm, or damaged"


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm models``."""
    parser = common.Parser(prog=program, description="List what can be loaded, with capabilities and sizes.")
    parser.add_argument("folders", nargs="*", default=[], help="also look for model directories and checkpoints here")
    parser.add_argument("--open_clip", action="store_true", help="list every pretrained model of open_clip")
    common.add_json(parser)
    options = common.parse(parser, arguments)
    for folder in map(Path, options.folders):
        if not folder.is_dir():
            raise UsageError(f"{folder}: isn't a folder; give folders to look for models in")

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
        import open_clip

        models += [
            {"model": f"open_clip:{name}/{tag}", "capabilities": ["embed"]} for name, tag in open_clip.list_pretrained()
        ]
    if options.json:
        forms = [{"name": name, "what": what, "capabilities": can.split(", ")} for name, what, can in FORMS]
        common.print_json({"models": models, "rejections": common.rejections_json(tally), "forms": forms})
        return 0
    print_models("Models", models)
    if not tally.ok:
        refused = [(rejection.source, rejection.reason, rejection.detail) for rejection in tally.rejections]
        common.print_table("Can't be loaded", ("source", "reason", "detail"), refused)
    common.print_table("Other names that can be loaded", ("name", "what", "capabilities"), FORMS)
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Describes a model directory or training checkpoint without reading its weights.

    Returns:
        Its ``capabilities``, the codes of its ``languages``, its number of ``parameters``, and the size of the file of
        weights in ``bytes``.

    Raises:
        DataError: it is damaged, or isn't a model of mm.
    """
    own = _describe_checkpoint(path) if path.is_file() else _describe_directory(path)
    return {"capabilities": ["caption", "embed", "match"], **own}


def print_models(title: str, models: Sequence[dict[str, Any]]) -> None:
    """Prints models with what ``describe`` says about them, as a table."""
    rows = [
        (
            model["model"],
            ", ".join(model["capabilities"]),
            ", ".join(model.get("languages", [])) or "-",
            *(f"{model[name]:,}" if name in model else "-" for name in ("parameters", "bytes")),
        )
        for model in models
    ]
    common.print_table(title, ("model", "capabilities", "languages", "parameters", "bytes"), rows)


def _find(folder: Path) -> Iterator[Path]:
    for path in (folder, *sorted(folder.rglob("*"))):
        with contextlib.suppress(PermissionError):  # a folder that can't be looked into holds nothing to load
            if (path / "model.safetensors").is_file() or (path.suffix == ".ckpt" and path.is_file()):
                yield path


def _describe_directory(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    from mm.checkpoints.directory import first_line, read_config

    try:
        config = read_config(folder)
    except CheckpointError as error:
        raise DataError(str(error), UNREADABLE) from error
    if not (folder / "tokenizer.json").is_file():
        raise DataError("tokenizer.json is missing; a model directory has one", MISSING)
    weights = folder / "model.safetensors"
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    except Exception as error:  # safetensors raises several kinds
        raise DataError(f"model.safetensors can't be read ({first_line(error)})", DAMAGED) from error
    languages = config.get("languages")
    return {
        "languages": [str(code) for code in languages] if isinstance(languages, list) else [],
        "parameters": sum(map(math.prod, shapes)),
        "bytes": weights.stat().st_size,
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    import torch

    from mm.checkpoints.directory import read_checkpoint
    from mm.data.tokenizer import Tokenizer

    try:
        checkpoint = read_checkpoint(path, mmap=True)
        languages = list(Tokenizer.from_json(checkpoint["mm"]["tokenizer"], "its tokenizer").languages)
    except CheckpointError as error:
        raise DataError(str(error), UNREADABLE) from error
    model = [
        value
        for name, value in checkpoint["state_dict"].items()
        if str(name).startswith("model.") and torch.is_tensor(value)
    ]
    shared = {value.data_ptr(): value.numel() for value in model}  # several parts share one tensor
    return {"languages": languages, "parameters": sum(shared.values()), "bytes": path.stat().st_size}
