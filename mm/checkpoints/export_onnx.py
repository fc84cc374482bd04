"""Models that embed as ONNX: image and text each by a file of its own, for use without mm and PyTorch."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoints.directory import Loaded, write_files
from mm.checkpoints.onnx_card import onnx_card
from mm.checkpoints.weights import read_json
from mm.errors import CapabilityError, OutputError, UsageError, first_line
from mm.files import make_folder

KIND = "mm-onnx"
IMAGE, TEXT = "image.onnx", "text.onnx"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CLOSE = 1e-4
"""How far apart the vectors of a file and of the model may be, anywhere."""
WHOLE = 1 << 30
"""Bytes of weights up to which they are part of a file; more are kept in another beside it."""


class ImageTower(nn.Module):
    """Maps (B, 3, S, S) pixels in [0, 1] to (B, E) vectors of length 1.

    Args:
        model: one that embeds.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.image_embedding(self.model.image_tokens(pixels))


class TextTower(nn.Module):
    """Maps (B, T) int64 tokens and (B, T) bool, true at real tokens, to (B, E) vectors of length 1.

    Args:
        model: one that embeds.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        return self.model.text_embedding(tokens, padding)


def save_onnx(folder: str | Path, loaded: Loaded) -> dict[str, float]:
    """Writes ``image.onnx`` and ``text.onnx``, with ``tokenizer.json``, ``config.json``, and how they are used.

    Both take any number of images or texts, and texts of any length up to the longest. They are kept if onnxruntime
    gives the model's vectors on random input of other sizes than they were made with.

    Args:
        folder: where; made if missing.
        loaded: the model.

    Returns:
        For both files the largest difference to the model, anywhere in a vector.

    Raises:
        CapabilityError: the model doesn't embed.
        UsageError: a package that this needs isn't installed.
        OutputError: the folder can't be written or holds another model; or a file can't be made or gives other vectors.
    """
    folder = Path(folder)
    _check(folder, loaded)
    towers: dict[str, nn.Module] = {IMAGE: ImageTower(loaded.model), TEXT: TextTower(loaded.model)}
    make_folder(folder)
    with TemporaryDirectory(dir=folder, prefix=".onnx-") as temporary:
        differences = {}
        for name, tower in towers.items():
            path = Path(temporary) / name
            _export(tower.eval(), path, loaded)
            differences[name] = _difference(tower, path, loaded)
            if not differences[name] <= CLOSE:
                raise OutputError(
                    f"{folder / name}: gives vectors that are {differences[name]:.2g} apart from the model's"
                )
        for path in Path(temporary).iterdir():
            path.replace(folder / path.name)
    config = onnx_config(loaded)
    files = {
        "tokenizer.json": loaded.tokenizer.to_json().encode(),
        "README.md": onnx_card(folder.resolve().name, config).encode(),
        "config.json": json.dumps(config, indent=2).encode() + b"\n",
    }
    write_files(folder, files)
    return differences


def onnx_config(loaded: Loaded) -> dict[str, Any]:
    """Gives what ``config.json`` says: what it takes to make the files' input of images and texts."""
    tokenizer = loaded.tokenizer
    return {
        "model_type": KIND,
        "family": loaded.family,
        "embedding_width": loaded.model.embedding_width,
        "image": {"file": IMAGE, **asdict(loaded.transform)},
        "text": {
            "file": TEXT,
            "max_tokens": loaded.model.text_room,
            "padding": tokenizer.padding,
            "clean": "caption" if tokenizer.own else tokenizer.clean,
        },
    }


def _check(folder: Path, loaded: Loaded) -> None:
    """Makes sure before any work is done that a model can be written to a folder."""
    if "embed" not in loaded.model.capabilities:
        can = ", ".join(loaded.model.capabilities)
        raise CapabilityError(f"the model can't embed (it can {can}), and ONNX files embed images and texts")
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(f"ONNX files need {', '.join(missing)}; install what mm[onnx] names")
    config = folder / "config.json"
    if config.exists() and read_json(config).get("model_type") != KIND:
        raise OutputError(f"{config}: belongs to a model of another kind; choose another folder")


def _export(tower: nn.Module, path: Path, loaded: Loaded) -> None:
    """Writes a tower as ONNX."""
    longest = loaded.model.text_room
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", max=longest)
    example = _example(path.name, loaded, 2, min(3, longest))
    sizes = [{0: rows, 1: length} if path.name == TEXT else {0: rows} for _ in example]
    size = sum(value.nbytes for value in tower.parameters())
    try:
        with _quiet():
            torch.onnx.export(
                tower,
                tuple(example.values()),
                path,
                input_names=list(example),
                output_names=["vectors"],
                dynamic_shapes=tuple(sizes),
                dynamo=True,
                external_data=size > WHOLE,
                verbose=False,
            )
    except OSError as error:
        raise OutputError(f"{path.name}: can't be written ({error.strerror})") from error
    except Exception as error:  # the exporter raises many kinds
        raise OutputError(f"{path.name}: the model can't be written as ONNX ({first_line(error)})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from the reader what the exporter says about its own workings."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _difference(tower: nn.Module, path: Path, loaded: Loaded) -> float:
    """Gives the largest difference between what a file and the model make of random input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    longest = loaded.model.text_room
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for rows, length in ((1, 1), (5, longest), (3, max(1, longest // 2))):
            example = _example(path.name, loaded, rows, length)
            (vectors,) = session.run(None, {name: value.numpy() for name, value in example.items()})
            with torch.inference_mode():
                expected = tower(*example.values())
            if vectors.shape != expected.shape:
                return math.inf
            difference = float((torch.from_numpy(vectors) - expected).abs().max())
            largest = max(largest, math.inf if math.isnan(difference) else difference)
    except Exception as error:  # onnxruntime raises many kinds
        raise OutputError(f"{path.name}: onnxruntime can't run it ({first_line(error)})") from error
    return largest


def _example(name: str, loaded: Loaded, rows: int, length: int) -> Mapping[str, Tensor]:
    """Makes random input of a file: that many images, or texts of up to ``length`` tokens."""
    generator = torch.Generator().manual_seed(rows)
    if name == IMAGE:
        size = loaded.transform.size
        return {"pixels": torch.rand(rows, 3, size, size, generator=generator)}
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    tokens = torch.randint(len(loaded.tokenizer), (rows, length), generator=generator)
    padding = torch.arange(length) < lengths
    return {"tokens": tokens.masked_fill(~padding, loaded.tokenizer.padding), "padding": padding}
