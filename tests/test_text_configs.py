from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import tokenizer_file
from talking import text_data
from test_configs import ROOT, command

from mm.checkpoints import load_checkpoint
from mm.checkpoints.resolve import load_model
from mm.cli import main

CONFIGS = sorted((ROOT / "configs/text").glob("*.yaml"))
IDS = [path.stem for path in CONFIGS]


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_every_text_config_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command(path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert not ended.value.code and printed["task"] == "text"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    for part in ("model", "data", "trainer"):
        for name, value in written[part].items():
            found = printed[part][name]
            if isinstance(value, dict):
                assert {key: found[key] for key in value} == value, name
            elif not isinstance(value, list):
                assert found == value, name


def small(path: Path, folder: Path) -> list[str]:
    """Options that make a config small enough for a test."""
    text_data(folder)
    architecture = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["architecture"]
    options: dict[str, Any] = {
        "model.init": "null",
        "model.tokenizer": tokenizer_file(folder),
        "model.validation.generation.max_tokens": 6,
        "data.train": folder / "train",
        "data.val": folder / "val",
        "data.batch_size": 4,
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 2,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": folder / "run",
    }
    for part in ("encoder", "decoder"):
        if part in architecture:
            options[f"model.architecture.{part}"] = json.dumps(architecture[part] | {"width": 32, "heads": 2})
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_every_text_config_trains_resumes_validates_and_exports(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = small(path, tmp_path)
    assert main([*command(path), *arguments]) == 0
    folder = tmp_path / "run/checkpoints"
    for name in ("last.ckpt", "best.ckpt"):
        assert torch.load(folder / name, weights_only=True)["global_step"] == 2
    assert list((tmp_path / "run").rglob("examples/val-000002.txt"))
    assert main([*command(path), *arguments, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    capsys.readouterr()
    assert main(["validate", *command(path)[1:], *arguments, "--ckpt_path=best", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"val/loss", "val/perplexity", "val/accuracy"} <= figures.keys()
    assert ("val/CIDEr" in figures) == (path.stem == "translate")
    assert main(["export", str(folder / "best.ckpt"), str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["capabilities"] == list(
        load_model(tmp_path / "model").model.capabilities
    )
    assert load_checkpoint(folder / "last.ckpt").tokenizer.languages == {"en": 4, "zh": 5}
    assert main([*command(path), *arguments, "--ckpt_path=last", "--model.architecture.encoder.width=64"]) == 2
    assert "encoder.width 32 instead of 64" in capsys.readouterr().err.splitlines()[-1]


def test_a_language_checkpoint_is_not_taken_for_another_model(tmp_path: Path, capsys: Any) -> None:
    path = ROOT / "configs/text/masked_lm.yaml"
    arguments = [*small(path, tmp_path), "--trainer.limit_val_batches=0"]
    assert main([*command(path), *arguments]) == 0
    images = ["fit", "--config", "configs/vision_language/tiny.yaml", "--trainer.accelerator=cpu"]
    given = [f"--ckpt_path={tmp_path / 'run/checkpoints/last.ckpt'}", f"--trainer.default_root_dir={tmp_path}"]
    capsys.readouterr()
    assert main([*images, *given]) == 2
    assert "is of another model than the configuration" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "music"], "task 'music' is unknown; there are images and text"),
        (["--config", "{music}"], "task 'music' is unknown; there are images and text"),
        (["--task", "text"], "nothing to train: set model.init to a model, or model.architecture"),
        (["--config", "{translate}", "--model.target", "fr"], "model.target: language 'fr' is unknown"),
        (["--config", "{translate}", "--data.masked", "2"], "data.masked must be above 0"),
        (["--config", "{translate}", "--data.views", "2"], "data.views"),
        (["--config", "{translate}", "--task", "images"], "data.captions"),
        (["--config", "{masked_lm}", "--model.init", "null"], "has no mask token"),
        (["--config", "{masked_lm}", "--model.init", "nowhere"], "no model named 'nowhere'"),
        (["--config", "{masked_lm}", "--data.masked", "few"], "masked"),
    ],
)
def test_wrong_use_of_text_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "music.yaml").write_text("task: music\n")
    places: dict[str, Any] = {"music": tmp_path / "music.yaml"} | {path.stem: path for path in CONFIGS}
    given = [argument.format(**places) for argument in arguments]
    run: Callable[[list[str]], int] = main
    try:
        status = run(["fit", *given, "--trainer.default_root_dir", str(tmp_path / "run")])
    except SystemExit as stop:
        status = int(stop.code or 0)
    err = capsys.readouterr().err.splitlines()
    assert status == 2 and err[-1].startswith("mm fit: ") and message in err[-1]
