"""``mm export``: turns a training checkpoint into a model directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm.cli import common

CARD = """# {name}

A vision-language model of mm: it captions in {languages}, embeds images and texts, and matches them.

    import mm
    model = mm.load("{folder}")
"""


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm export``."""
    parser = common.Parser(prog=program, description="Turn a training checkpoint into a model directory.")
    parser.add_argument("model", help="a training checkpoint of 'mm fit', or another model directory")
    parser.add_argument("folder", type=Path, help="the model directory to write")
    parser.add_argument("--precision", default="float16", help="of the weights on disk: float16, bfloat16 or float32")
    common.add_json(parser)
    options = common.parse(parser, arguments)

    import torch

    from mm.checkpoints import save_directory
    from mm.checkpoints.resolve import load_vision_language
    from mm.cli.models import describe, print_models
    from mm.errors import OptionError

    precisions = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if options.precision not in precisions:
        raise OptionError(f"--precision {options.precision!r} is not one of {', '.join(precisions)}")
    loaded = load_vision_language(options.model)
    card = options.folder / "README.md"
    text = CARD.format(name=options.folder.name, folder=options.folder, languages=", ".join(loaded.tokenizer.languages))
    if card.exists():
        text = card.read_text(encoding="utf-8")
    save_directory(
        options.folder,
        loaded.model,
        loaded.tokenizer,
        loaded.architecture,
        text,
        precisions[options.precision],
        preprocessing=loaded.preprocessing,
        family=loaded.family,
    )
    description = {"model": str(options.folder), **describe(options.folder)}
    if options.json:
        common.print_json(description)
    else:
        print_models("Exported", [description])
    return 0
