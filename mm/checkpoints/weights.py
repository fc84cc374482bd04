"""Files of weights in the hub's layouts, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mm.checkpoints.tensors import Pickled, SafeTensors, read_pickle
from mm.errors import CheckpointError, first_line

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
FLOATING = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}


class Fingerprint:
    """SHA-256 of files, computed when it is first asked for, as what ``str`` gives.

    Args:
        files: which.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]

    def __str__(self) -> str:
        return self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint | str) and str(other) == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    @cached_property
    def value(self) -> str:
        """The hexadecimal digest.

        Raises:
            CheckpointError: a file was changed since, or can't be read.
        """
        digest = hashlib.sha256()
        for path, stamp in zip(self.files, self._stamps, strict=True):
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
                now = (path.stat().st_size, path.stat().st_mtime_ns)
            except OSError as error:
                raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
            if now != stamp:
                raise CheckpointError(f"{path}: was changed while the model was in use; load it again")
        return digest.hexdigest()


class Renamed(Mapping[str, Tensor]):
    """Weights of which some are read under other names.

    Args:
        state: the weights.
        other_names: names that aren't in ``state``, and what they are called there.
        gone: names in ``state`` that aren't names any longer.
    """

    def __init__(self, state: Mapping[str, Tensor], other_names: Mapping[str, str], gone: Collection[str] = ()) -> None:
        self.state = state
        self.other_names = other_names
        self._names = dict.fromkeys([*(name for name in state if name not in gone), *other_names])

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.other_names.get(name, name)]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def modern(name: str) -> str:
    """Gives the present name of a tensor; old checkpoints of BERT call the numbers of norms gamma and beta."""
    for former, present in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(former):
            return name.removesuffix(former) + present
    return name


class Weights(Mapping[str, Tensor]):
    """The weights of a folder: ``model.safetensors`` or ``pytorch_model.bin``, whole or in several files with an index.

    A tensor is read when it is asked for, so that little of a file is in memory at a time. Nothing but tensors is ever
    taken from a pickle.

    Args:
        folder: where the files are.
        kinds: names of the files to look for, the best first.

    Raises:
        CheckpointError: there are none, one is missing or damaged, or a pickle holds more than tensors.
    """

    def __init__(self, folder: Path, kinds: Sequence[str] = (SAFETENSORS, PICKLE)) -> None:
        self.folder = folder
        self.files, expected = self._find(kinds)
        self._home: dict[str, Path] = {}
        self._called: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._opened: dict[Path, SafeTensors | Pickled] = {}
        for path in self.files:
            for called, shape, kind in self._contents(path):
                name = modern(called)
                if name in self._home:
                    raise CheckpointError(f"{path}: holds {name}, which {self._home[name].name} holds too")
                self._home[name], self._shapes[name], self._types[name] = path, shape, kind
                self._called[name] = called
        wrong = sorted(f"{name} in {file}" for name, file in expected.items() if self._file(modern(name)) != file)
        if wrong:
            raise CheckpointError(f"{folder}: the index of the parts names what isn't there: {', '.join(wrong)}")

    def _find(self, kinds: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
        """Gives the files, and where there is an index what it says is in which."""
        for name in kinds:
            index = self.folder / f"{name}.index.json"
            if (self.folder / name).is_file():
                return [self.folder / name], {}
            if index.is_file():
                return _indexed(index)
        missing = " or ".join(str(self.folder / name) for name in kinds)
        raise CheckpointError(f"{missing}: can't be read (No such file or directory), nor an index of parts beside it")

    def _file(self, name: str) -> str | None:
        return self._home[name].name if name in self._home else None

    def _contents(self, path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Gives name, shape and type of every tensor in a file."""
        if path.suffix == ".safetensors":
            self._opened[path] = safe = SafeTensors(path)
            yield from safe.contents()
        else:
            self._opened[path] = pickled = Pickled(path, partial(read_pickle, path, mmap=True))
            for name, value in pickled.items():
                yield name, tuple(value.shape), str(value.dtype).removeprefix("torch.")

    def shape(self, name: str) -> tuple[int, ...]:
        """Gives a tensor's shape without reading it."""
        return self._shapes[name]

    def type(self, name: str) -> str:
        """Gives the type of a tensor's numbers without reading it, as its file calls it; see ``FLOATING``."""
        return self._types[name]

    @property
    def numbers(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(map(math.prod, self._shapes.values()))

    def __getitem__(self, name: str) -> Tensor:
        return self._opened[self._home[name]][self._called[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._home  # not by reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def release(self, name: str) -> None:
        """Lets go of a tensor that won't be asked for again."""
        opened = self._opened[self._home[name]]
        if isinstance(opened, Pickled):
            opened.release(self._called[name])

    def close(self) -> None:
        """Lets go of the files: no tensor is asked for again."""
        self._opened.clear()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        CheckpointError: it is missing or damaged, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: isn't a JSON object")
    return values


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    """Reads an index of parts: their files, and which tensor is in which."""
    homes = read_json(index).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise CheckpointError(f"{index}: has no weight_map, which says which file holds which weight")
    expected = {str(name): str(file) for name, file in homes.items()}
    names = sorted(set(expected.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"{index}: names {name!r}, which isn't a file beside it")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: names {name}, which is missing")
    return [index.parent / name for name in names], expected
