"""The ``mm`` command: one module for each subcommand, imported when it is called."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "caption and search the sample photos, and write a contact sheet",
    "caption": "caption photos, folders and shards",
    "ask": "ask questions about photos",
    "classify": "say which of some labels fits photos best",
    "translate": "translate captions",
    "score": "say how likely a language model finds texts",
    "index": "put photos, folders and shards into a gallery",
    "search": "search a gallery in words or by image",
    "shards": "make WebDataset shards, check them, or count what they hold",
    "tokenizer": "learn a tokenizer from the captions of shards",
    "fit": "train or fine-tune a model",
    "validate": "measure a model in training on its validation split",
    "test": "measure a model in training on its test split",
    "eval": "measure captioning or retrieval on shards",
    "bench": "time captioning beside other libraries; check what reduced precision costs",
    "export": "turn a training checkpoint into a model directory",
    "models": "list what can be loaded; show a model, or export it to another layout",
}
MODULES = {"eval": "evaluate", "validate": "fit", "test": "fit"}


def usage() -> str:
    """Gives the text of ``mm --help``."""
    rows = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return (
        "usage: mm COMMAND [options]\n\n"
        "Caption images, search them in words, and fine-tune both on WebDataset shards.\n\n"
        f"commands:\n{rows}\n\n"
        "'mm COMMAND --help' explains a command; 'mm --version' prints the version."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: what follows ``mm``; None for those of the process.

    Returns:
        The exit status: 0, 1 when something was rejected or failed, 2 for wrong use.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold bytes that aren't UTF-8
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        import mm

        print(f"mm {mm.__version__}")
        return 0
    if name not in COMMANDS:
        print(f"mm: no command {name!r}; commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    from mm.errors import MMError

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        module = importlib.import_module(f"mm.cli.{MODULES.get(name, name)}")
        status = module.run(arguments, f"mm {name}")
        sys.stdout.flush()
        return int(status or 0)
    except MMError as error:
        print(f"mm {name}: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"mm {name}: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mm {name}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def one_line(error: Exception) -> str:
    """Gives an error's message in one line, without the traceback before one from a process that loads data."""
    message = str(error)
    if "\nOriginal Traceback" in message:
        kind = f"\n{type(error).__module__}.{type(error).__qualname__}: "
        message = message.rpartition(kind)[2]
    return " ".join(message.split())
