from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from running import made_data, tokenizer_file

from mm.checkpoints import load_checkpoint, save_directory
from mm.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "text")
IDS = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]


def command(path: Path) -> list[str]:
    """The arguments of the ``mm fit`` that a config's own comment tells to run."""
    (line,) = re.findall(r"^#\s+mm fit (--config .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert line.split()[-1] == str(path.relative_to(ROOT))
    return ["fit", *line.split()]


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_every_config_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command(path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert not ended.value.code

    def check(written: Any, found: Any, where: str) -> None:
        if isinstance(written, dict):
            for key, value in written.items():
                check(value, found[key], f"{where}.{key}")
        elif not isinstance(written, list):
            assert found == written, where

    check(yaml.safe_load(path.read_text(encoding="utf-8")), printed, path.name)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_every_config_runs_two_steps(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_data(tmp_path)
    words = tiny.tokenizer()
    frozen = tiny.Architecture(**{**vars(tiny.ARCHITECTURE), "vision": "test_efficientnet", "frozen_stages": -1})
    save_directory(tmp_path / "model", tiny.model(words, frozen), words, frozen, "")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    small: dict[str, Any] = {
        "data.train": tmp_path / "train",
        "data.val": tmp_path / "val",
        "data.batch_size": 4,
        "data.max_tokens": 20,
        "model.architecture.vision": "test_efficientnet",
        "model.architecture.image_size": 32,
        "model.architecture.width": 32,
        "model.architecture.heads": 2,
        "model.architecture.embedding_width": 16,
        "model.tokenizer": tokenizer_file(tmp_path),
        "model.vision_weights": "null",
        "model.validation.caption_images": 2,
        "model.validation.generation.max_tokens": 6,
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": tmp_path / "run",
    }
    if given := document.get("parts"):
        numbers = {"width": 32, "heads": 2, "blocks": 2, "max_tokens": 40}
        numbers |= {name: 2 for name in ("hidden", "key_value_heads") if name in given["text_decoder"]}
        whole = json.dumps({"checkpoint": str(tmp_path / "model")})
        pretrained = "checkpoint" in given["text_decoder"]
        small["model.parts.vision"] = whole
        small["model.parts.text_decoder"] = whole if pretrained else json.dumps(given["text_decoder"] | numbers)
        if "text_encoder" in given:
            small["model.parts.text_encoder"] = whole
    if document.get("init"):
        small["model.init"] = tmp_path / "model"
        del small["model.tokenizer"]
    if document.get("features"):
        small["model.features"] = tmp_path / "features"
    arguments = [f"--{name}={value}" for name, value in small.items()]
    assert main([*command(path), *arguments]) == 0
    folder = tmp_path / "run/checkpoints"
    for name in ("last.ckpt", "best.ckpt"):
        assert torch.load(folder / name, weights_only=True)["global_step"] == 2
    assert len(load_checkpoint(folder / "last.ckpt").tokenizer) == len(words)
    assert (tmp_path / "run/csv/version_0/metrics.csv").is_file()
    assert (tmp_path / "features").is_dir() == bool(document.get("features"))
    if path.stem == "tiny":
        assert main([*command(path), *arguments, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
        capsys.readouterr()
        validate = ["validate", *command(path)[1:], *arguments, f"--ckpt_path={folder / 'last.ckpt'}", "--json"]
        assert main(validate) == 0
        figures = json.loads(capsys.readouterr().out)
        assert {"val/CIDEr", "val/BLEU-4", "val/text_to_image_R@10"} <= figures.keys()
        best = ["validate", *command(path)[1:], *arguments, "--ckpt_path=best", "--json"]
        assert main(best) == 0
        other = ["fit", *command(path)[1:], *arguments, "--ckpt_path=last", "--model.architecture.width=64"]
        capsys.readouterr()
        assert main(other) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "is of another model than the configuration: width 32 instead of 64" in said
