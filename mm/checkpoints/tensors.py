"""Single files of tensors, read one tensor at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.errors import CheckpointError, first_line

MAPPED_ANEW = 8  # times that a file is mapped while all of it is read


class SafeTensors:
    """The tensors of a safetensors file, of which little is in memory at a time.

    What was read of a mapped file stays in memory as long as it is mapped, so it is mapped anew from time to time.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is damaged, can't be read, or is another when it is mapped anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _opened(path)
        self._state = _state(path)
        self._limit = self._state[0] // MAPPED_ANEW
        self._read = 0

    def contents(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Gives name, shape and type of every tensor."""
        for name in self._file.keys():  # noqa: SIM118 - no mapping
            view = self._file.get_slice(name)
            yield name, tuple(view.get_shape()), view.get_dtype()

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        if self._read > self._limit:
            self._file, self._read = _opened(self._path), 0
            if _state(self._path) != self._state:
                raise CheckpointError(f"{self._path}: was changed while it was read; load it again")
        return tensor


class Pickled(Mapping[str, Tensor]):
    """The tensors of a pickle, of which little is in memory at a time.

    What was read of a mapped file stays in memory as long as it is mapped, so it is mapped anew from time to time. A
    file in an old layout can't be mapped: it is in memory as a whole, until its tensors are released.

    Args:
        path: the file.
        read: gives its tensors by name, mapped where the file allows it.
    """

    def __init__(self, path: Path, read: Callable[[], dict[str, Tensor]]) -> None:
        self._map = read if can_be_mapped(path) else None
        self._tensors = read()
        self._limit = path.stat().st_size // MAPPED_ANEW
        self._read = 0

    def __getitem__(self, name: str) -> Tensor:
        self._read += self._tensors[name].nbytes
        if self._map is not None and self._read > self._limit:
            self._tensors = self._map()
            self._read = self._tensors[name].nbytes
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # not by reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def release(self, name: str) -> None:
        """Lets go of a tensor that won't be asked for again."""
        if self._map is None:
            del self._tensors[name]


def can_be_mapped(path: Path) -> bool:
    """Says whether a pickle of torch is in the layout that can be mapped; old ones aren't."""
    return zipfile.is_zipfile(path)


def read_pickle(path: Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """Reads a pickle that holds tensors by name and nothing else.

    Args:
        path: the file.
        mmap: whether to leave the tensors on disk until they are used, where the file allows it: old ones don't.

    Raises:
        CheckpointError: it can't be read, or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and can_be_mapped(path))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # torch raises several kinds for damaged files and for code
        raise CheckpointError(f"{path}: can't be read as weights ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(map(_plain, state.values())):
        raise CheckpointError(f"{path}: isn't a file of weights alone, each with its name")
    return {str(name): value for name, value in state.items()}


def _plain(value: object) -> bool:
    """Says whether something is a tensor whose numbers are all there, each in its place."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_quantized)
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does, its size first."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or first_line(error)})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not safetensors ({first_line(error)})") from error
