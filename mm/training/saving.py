"""How checkpoints are written, and where a run keeps them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mm.errors import OutputError
from mm.files import whole_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, syncs it and renames it: there is a good one at every moment.

    Lightning's own writer begins in the system's temporary folder, from where a rename is no single step if that is
    on another device.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint to a local path.

        Raises:
            OutputError: it can't be written, for want of space or another reason; the old one is as it was.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None:
                raise
            raise OutputError(_unsaved(checkpoint, path, reason)) from error


class _Counted:
    """A file that keeps nothing but the number of bytes written to it."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, content: bytes) -> int:
        """Counts."""
        self.bytes += len(content)
        return len(content)

    def flush(self) -> None:
        """Does nothing."""


def _system_error(error: BaseException | None) -> OSError | None:
    """Finds the system's error behind one of torch's, which says little where a file can't be written to."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _unsaved(checkpoint: dict[str, Any], path: Path, reason: OSError) -> str:
    """Says why a checkpoint couldn't be saved, and how to go on."""
    size = _Counted()
    torch.save(checkpoint, cast(BinaryIO, size))
    line = f"{path}: can't be saved ({reason.strerror}); the checkpoint takes {size.bytes:,} bytes"
    if path.parent.is_dir():
        line += f", and {shutil.disk_usage(path.parent).free:,} are free in {path.parent}"
    if path.exists():
        return f"{line}; the last good one is intact: make room, then go on with --ckpt_path last"
    return f"{line}; there is none yet: make room, then start again"


def checkpoint_folder(root: str | Path) -> Path:
    """Where a run under ``default_root_dir`` keeps its checkpoints."""
    return Path(root).absolute() / "checkpoints"


def checkpoint_file(root: str | Path, name: str) -> Path:
    """Where a run under ``default_root_dir`` keeps its checkpoint of a name, ``last`` or ``best``."""
    return checkpoint_folder(root) / f"{name}.ckpt"
