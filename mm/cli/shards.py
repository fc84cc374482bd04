"""``mm shards``: makes WebDataset shards, checks them, and says what is in them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from mm.errors import UsageError

ACTIONS = ("make", "check", "stats")


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm shards make``, ``mm shards check`` or ``mm shards stats``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {program} make SOURCE OUT | {program} check SHARDS | {program} stats SHARDS\n\n"
            "make   write WebDataset shards and their manifest.json from images and captions, or from other shards\n"
            "check  read shards from start to end and say everything that is wrong with them\n"
            "stats  count what shards hold, and draw it\n\n"
            f"'{program} make --help' and so on explain each."
        )
        return 0 if arguments else 2
    action = arguments[0]
    if action not in ACTIONS:
        raise UsageError(f"no action {action!r}; actions are {', '.join(ACTIONS)}")
    return int(importlib.import_module(f"mm.cli.shards_{action}").run(arguments[1:], f"{program} {action}"))
