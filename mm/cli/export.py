"""``mm export`` and ``mm models export``: write a model as a model directory, or in another layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from mm.cli import common
from mm.errors import OptionError

if TYPE_CHECKING:
    import torch

    from mm.checkpoints import Loaded

CARD = """# {name}

A model of mm that {abilities}.

    import mm
    model = mm.load("{folder}")
"""
ABILITIES = {
    "caption": "captions images in {languages}",
    "embed": "embeds images and texts",
    "match": "tells texts that match an image from others",
    "ask": "answers questions about images",
    "fill": "can fill masked words in",
    "score": "says how likely texts are",
    "translate": "translates captions into {languages}",
}
PRECISIONS = ("float16", "bfloat16", "float32")
TARGETS = {"mm": "float16", "hf": "float32", "onnx": "float32"}
"""The layouts that a model can be written in, each with the precision that it has unless told otherwise."""


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm export``."""
    parser = common.Parser(prog=program, description="Turn a training checkpoint into a model directory.")
    parser.add_argument("model", help="a training checkpoint of 'mm fit', or another model directory")
    parser.add_argument("folder", type=Path, help="the model directory to write")
    parser.add_argument("--precision", default="float16", help="of the weights on disk: float16, bfloat16 or float32")
    common.add_json(parser)
    options = common.parse(parser, arguments)
    _check_precision(options.precision)

    from mm.checkpoints.resolve import load_model

    return _to_mm(options.folder, load_model(options.model), options.precision, as_json=options.json)


def run_to(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm models export``."""
    options = _parse_to(arguments, program)

    from mm.checkpoints.resolve import load_model

    folder, loaded = options.folder, load_model(options.model)
    if options.to == "mm":
        return _to_mm(folder, loaded, options.precision, as_json=options.json)
    differences: dict[str, float] = {}
    if options.to == "onnx":
        from mm.checkpoints.export_onnx import save_onnx

        differences = save_onnx(folder, loaded)
    else:
        from mm.checkpoints.export_blip import save_blip

        save_blip(folder, loaded, _dtype(options.precision), language=options.language)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    if options.json:
        common.print_json({"folder": str(folder), "to": options.to, "files": sizes, "differences": differences})
    else:
        rows = [(name, f"{size:,}", differences.get(name)) for name, size in sizes.items()]
        common.print_table(f"Files in {folder}", ("file", "bytes", "largest difference to the model"), rows)
    return 0


def _parse_to(arguments: Sequence[str], program: str) -> Namespace:
    """Parses the arguments of ``mm models export``; without a precision, the layout's own is filled in.

    Raises:
        OptionError: an option is out of range, or not one of the layout's.
    """
    parser = common.Parser(prog=program, description="Write a model in another layout.")
    parser.add_argument("model", help="a name that 'mm models' explains")
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument(
        "--to",
        required=True,
        help="hf: a model of BLIP's shape, as transformers loads it; onnx: a file that embeds images and one that "
        "embeds texts; mm: a model directory",
    )
    parser.add_argument(
        "--precision",
        type=str | None,
        default=None,
        help="of the weights on disk: float16 (for mm, if not given), bfloat16 or float32 (for hf; always for onnx)",
    )
    parser.add_argument(
        "--language", type=str | None, default=None, help="for hf: which of its languages the model is to write"
    )
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.to not in TARGETS:
        raise OptionError(f"--to {options.to!r} is not one of {', '.join(TARGETS)}")
    if options.precision is None:
        options.precision = TARGETS[options.to]
    _check_precision(options.precision)
    if options.to == "onnx" and options.precision != "float32":
        raise OptionError(f"--precision {options.precision} is not for --to onnx, whose files compute in float32")
    if options.language is not None and options.to != "hf":
        raise OptionError(f"--language is for --to hf, not for --to {options.to}")
    return options


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise OptionError(f"--precision {precision!r} is not one of {', '.join(PRECISIONS)}")


def _dtype(precision: str) -> torch.dtype:
    import torch

    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


def _to_mm(folder: Path, loaded: Loaded, precision: str, *, as_json: bool) -> int:
    """Writes a model directory and prints what ``mm models`` says about it. A model card that is there stays."""
    from mm.checkpoints import save_directory
    from mm.cli.models import describe, print_models

    card = folder / "README.md"
    save_directory(
        folder,
        loaded.model,
        loaded.tokenizer,
        loaded.architecture,
        card.read_text(encoding="utf-8") if card.exists() else _card(folder, loaded),
        _dtype(precision),
        preprocessing=loaded.preprocessing,
        family=loaded.family,
        precisions=loaded.precisions,
    )
    description = {"model": str(folder), **describe(folder)}
    if as_json:
        common.print_json(description)
    else:
        print_models("Exported", [description])
    return 0


def _card(folder: Path, loaded: Loaded) -> str:
    """Gives the text of a model card."""
    languages = " and ".join(loaded.tokenizer.languages)
    abilities = ", ".join(ABILITIES[name] for name in loaded.model.capabilities if name in ABILITIES)
    return CARD.format(name=folder.name, folder=folder, abilities=abilities.format(languages=languages))
