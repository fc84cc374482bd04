"""The exceptions that mm raises on purpose.

Every message is one line for the person who reads it: what was wrong, where, and what to do about it.
The command line prints that line and exits with ``exit_code``; a traceback means a bug in mm.
"""

from __future__ import annotations


class MMError(Exception):
    """Base of every error that mm raises on purpose."""

    exit_code = 1


class UsageError(MMError):
    """A request that can't be carried out as it stands: found before any work began."""

    exit_code = 2


class UnknownModelError(UsageError):
    """A model name that names nothing that can be loaded."""


class CapabilityError(UsageError):
    """A model was asked for something it can't do (``caption``, ``embed``, ``match``, ``ask``)."""


class OptionError(UsageError):
    """An option that doesn't exist, is out of range, or contradicts another."""


class OutputError(UsageError):
    """An output that can't be written."""


class CheckpointError(UsageError):
    """Weights or a model directory that can't be read, or that don't fit the model: found before any work began."""


class DataError(MMError):
    """A sample, shard or manifest that can't be used.

    Args:
        message: the whole line for the reader.
        reason: a few words that are the same for all failures of this kind, to count them by.
        offset: where in the shard it is, in bytes, if that is known.
    """

    def __init__(self, message: str, reason: str = "unusable", offset: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.offset = offset


class ImageError(DataError):
    """Bytes that can't be decoded as an image within the limits."""


class ShardError(DataError):
    """A tar shard that is damaged, cut short, or at odds with its manifest."""


class TrainingError(MMError):
    """Training that went wrong: a loss, gradients or weights that nothing good can follow from."""


class GalleryError(MMError):
    """A gallery that can't be opened, or that another model built."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Gives the first line of an error's message, or its kind where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
