"""A small random model, photos and shards for the tests of commands."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from PIL import Image

from mm.cli import main

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "white": (240, 240, 240)}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory with random weights."""
    from mm.checkpoints.directory import save_directory
    from mm.checkpoints.resolve import find_tokenizer
    from mm.data.tokenizer import Tokenizer

    words = Tokenizer.read(find_tokenizer("mm-tiny"))
    architecture = replace(tiny.ARCHITECTURE, max_tokens=48)
    folder = tmp_path_factory.mktemp("models") / "random"
    save_directory(folder, tiny.model(words, architecture), words, architecture, "# random\n")
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with one photo of each colour."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (48, 40), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with a shard of captioned photos."""
    from mm.data.samples import Sample
    from mm.data.shards.writing import write_shards

    samples = []
    for name, colour in COLOURS.items():
        buffer = io.BytesIO()
        Image.new("RGB", (48, 40), colour).save(buffer, "PNG")
        captions = {"en": [f"a {name} wall", f"{name} paint"], "zh": ["一面墙"]}
        samples.append(Sample(name, name, buffer.getvalue(), captions))
    out = tmp_path / "shards"
    write_shards(samples, out)
    return out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def run_json(run: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, dict]]:
    """Runs a command with ``--json``: exit status and the object printed."""

    def call(*arguments: object) -> tuple[int, dict]:
        status, out, err = run(*arguments, "--json")
        assert out.count("\n") == 1, (out, err)
        return status, json.loads(out)

    return call
