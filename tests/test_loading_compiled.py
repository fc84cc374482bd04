from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import public
import pytest
import talking
import tiny
import torch
from torch import Tensor

import mm
from mm.checkpoints import save_directory
from mm.cli import main
from mm.errors import OptionError
from mm.generation import GenerationConfig
from mm.models import build_language
from mm.models.vision_language import SpecialTokens

WORDS = tiny.tokenizer()
CONFIG = GenerationConfig(beams=3, max_tokens=12)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """The steps that would have been compiled, which takes long."""
    steps: list[Callable[..., Any]] = []

    def note(run: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        steps.append(run)
        return run

    monkeypatch.setattr(torch, "compile", note)
    return steps


def saved(folder: Path) -> Path:
    save_directory(folder, tiny.model(WORDS), WORDS, tiny.ARCHITECTURE, "")
    return folder


def test_a_model_captions_in_compiled_steps(tmp_path: Path, compiled: list[Callable[..., Any]]) -> None:
    saved(tmp_path / "model")
    photos = [tiny.picture(name) for name in tiny.COLOURS]
    plain, model = (mm.load(tmp_path / "model", "cpu", "float32", compile) for compile in (False, True))
    found, expected = (one.caption(photos, config=CONFIG, batch_size=3) for one in (model, plain))
    assert [caption.text for caption in found] == [caption.text for caption in expected]
    assert [caption.score for caption in found] == pytest.approx([caption.score for caption in expected], abs=1e-5)
    assert len(compiled) == 2  # batches of three and of two
    assert "".join(model.stream(photos[0], config=CONFIG)) == found[0].text
    assert len(compiled) == 3
    assert plain.steps is None and model.precision == "float32"


def test_a_model_translates_in_compiled_steps(tmp_path: Path, compiled: list[Callable[..., Any]]) -> None:
    torch.manual_seed(0)
    parts = talking.PARTS["translate"]
    net = build_language(parts, len(WORDS), SpecialTokens(**WORDS.special))
    save_directory(tmp_path, net, WORDS, parts, "")
    texts = ["a red wall", "all of it is blue"]
    plain, model = (mm.load(tmp_path, "cpu", "float32", compile) for compile in (False, True))
    found, expected = (one.translate(texts, to="zh", config=CONFIG) for one in (model, plain))
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert len(compiled) == 1


def test_what_can_not_be_compiled_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    with pytest.raises(OptionError, match="compile and precision 'int8' can't be combined on a cpu; choose float32"):
        mm.load(tmp_path / "model", "cpu", "int8", compile=True)
    (tmp_path / "bert").mkdir()
    public.bert(tmp_path / "bert")
    with pytest.raises(OptionError, match=r"compile is for models that write, and .*bert doesn't; leave it out"):
        mm.load(tmp_path / "bert", "cpu", compile=True)


def test_commands_compile(
    tmp_path: Path, compiled: list[Callable[..., Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    model, photo = saved(tmp_path / "model"), tmp_path / "red.png"
    tiny.picture("red").save(photo)
    lines = []
    for options in ([], ["--compile"]):
        assert main(["caption", str(photo), "--model", str(model), "--device", "cpu", *options]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] and lines[0].startswith(str(photo))
    assert compiled
    assert main(["caption", str(photo), "--model", str(model), "--compile", "--draft", str(model)]) == 2
    assert "--compile doesn't act with --draft; leave one of them out" in capsys.readouterr().err


def test_pixels_go_to_a_gpu_while_the_host_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mm.load(saved(tmp_path / "model"), "cpu", "float32")
    pinned, moved = [], []
    monkeypatch.setattr(Tensor, "pin_memory", lambda pixels: pinned.append(pixels.shape) or pixels)
    monkeypatch.setattr(Tensor, "to", lambda pixels, *place, **how: moved.append((place, how)) or pixels)
    model.device = torch.device("cuda")
    batches = [model.ready(tiny.picture(name)) for name in ("red", "green", "blue")]
    moved.clear()
    sizes = [len(pixels) for pixels in model._batches(batches, 2)]
    assert sizes == [2, 1] and [shape[0] for shape in pinned] == sizes
    assert moved == [((torch.device("cuda"),), {"non_blocking": True})] * 2
