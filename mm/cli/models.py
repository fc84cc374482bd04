"""``mm models``: lists what can be loaded, with capabilities and sizes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm.cli import common

FORMS = (
    ("DIRECTORY", "a model directory, such as 'mm export' writes", "caption, embed, match"),
    ("FILE.ckpt", "a training checkpoint of 'mm fit'", "caption, embed, match"),
    ("hf:OWNER/NAME", "a model directory of mm on the Hugging Face hub", "caption, embed, match"),
    ("open_clip:ARCHITECTURE/TAG", "a CLIP model of open_clip by tag; 'mm models --open_clip' lists them", "embed"),
    ("open_clip:ARCHITECTURE/FILE", "a CLIP model of open_clip from a local file of weights", "embed"),
)


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm models``."""
    parser = common.Parser(prog=program, description="List what can be loaded, with capabilities and sizes.")
    parser.add_argument("folders", nargs="*", default=[], help="also look for model directories and checkpoints here")
    parser.add_argument("--open_clip", action="store_true", help="list every pretrained model of open_clip")
    common.add_json(parser)
    options = common.parse(parser, arguments)

    from mm.checkpoints.resolve import ASSETS, BUILT_IN

    found = [path for folder in options.folders for path in _find(Path(folder))]
    models = [_describe(name, ASSETS / name) for name in BUILT_IN]
    models += [_describe(str(path), path) for path in found]
    if options.open_clip:
        import open_clip

        models += [
            {"name": f"open_clip:{name}/{tag}", "capabilities": ["embed"]} for name, tag in open_clip.list_pretrained()
        ]
    if options.json:
        forms = [{"name": name, "what": what, "capabilities": can.split(", ")} for name, what, can in FORMS]
        common.print_json({"models": models, "forms": forms})
        return 0
    rows = [
        (
            model["name"],
            ", ".join(model["capabilities"]),
            ", ".join(model.get("languages", [])) or "-",
            f"{model['parameters'] / 1e6:.1f} M" if "parameters" in model else "-",
            f"{model['bytes'] / 1e6:.1f} MB" if "bytes" in model else "-",
        )
        for model in models
    ]
    common.print_table("Models", ("model", "capabilities", "languages", "parameters", "size"), rows)
    common.print_table("Other names that can be loaded", ("name", "what", "capabilities"), FORMS)
    return 0


def _find(folder: Path) -> Iterator[Path]:
    from mm.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder}: isn't a folder; give folders to look for models in")
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".ckpt" or (path.is_dir() and (path / "model.safetensors").is_file()):
            yield path


def _describe(name: str, path: Path) -> dict[str, Any]:
    """Describes a model from its headers, without loading it."""
    description: dict[str, Any] = {"name": name, "capabilities": ["caption", "embed", "match"]}
    if path.is_file():
        return description | {"bytes": path.stat().st_size}
    weights = path / "model.safetensors"
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    count = sum(math.prod(value["shape"]) for key, value in header.items() if key != "__metadata__")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return description | {
        "languages": config.get("languages", []),
        "parameters": count,
        "bytes": weights.stat().st_size,
    }
