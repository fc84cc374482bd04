import json
import shutil
from pathlib import Path

import pytest
import torch

from mm.cli.models import UNREADABLE


def test_lists_what_is_built_in_and_what_is_found(run, run_json, model):
    status, result = run_json("models", Path(model).parent)
    assert status == 0
    by_name = {entry["model"]: entry for entry in result["models"]}
    assert by_name["mm-tiny"]["capabilities"] == ["caption", "embed", "match"]
    assert by_name["mm-tiny"]["languages"] == ["en", "zh"]
    assert by_name[model]["parameters"] > 100_000
    assert by_name[model]["bytes"] == (Path(model) / "model.safetensors").stat().st_size
    assert result["rejections"] == []
    assert any(form["name"].startswith("open_clip:") for form in result["forms"])
    status, out, _ = run("models")
    assert status == 0
    assert "mm-tiny" in out and "hf:OWNER/NAME" in out


def test_keys_are_the_columns(run, run_json, model):
    _, result = run_json("models", model)
    _, out, _ = run("models", model)
    assert all(name in heading(out) for name in result["models"][-1])
    assert f"{result['models'][-1]['parameters']:,}" in out


def heading(table: str) -> list[str]:
    """The names of a table's columns."""
    return next(line for line in table.splitlines() if line.startswith("┃")).replace("┃", " ").split()


def test_a_model_directory_itself(run_json, model):
    assert model in [entry["model"] for entry in run_json("models", model)[1]["models"]]


@pytest.fixture
def checkpoint(model, tmp_path):
    """A training checkpoint of the model."""
    from mm.checkpoints import load_directory

    loaded = load_directory(model)
    path = tmp_path / "found" / "last.ckpt"
    path.parent.mkdir()
    content = {
        "mm": {"architecture": vars(loaded.architecture), "tokenizer": loaded.tokenizer.to_json()},
        "state_dict": {f"model.{name}": value for name, value in loaded.model.state_dict().items()},
        "optimizer_states": [{"momentum": torch.zeros(1000)}],
    }
    torch.save(content, path)
    return path


def test_a_checkpoint_says_as_much_as_its_directory(run_json, model, checkpoint):
    entries = {entry["model"]: entry for entry in run_json("models", model, checkpoint.parent)[1]["models"]}
    own, directory = entries[str(checkpoint)], entries[model]
    assert own["languages"] == directory["languages"]
    assert own["parameters"] == directory["parameters"]
    assert own["bytes"] == checkpoint.stat().st_size


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


DAMAGES = {
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged", "model.safetensors"),
    "noise": (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "damaged", "model.safetensors"),
    "cut": (cut, "damaged", "model.safetensors"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), UNREADABLE, "config.json"),
    "no-tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "missing file", "tokenizer.json"),
    "no-json": (
        lambda folder: (folder / "config.json").write_text("{"),
        UNREADABLE,
        "config.json",
    ),
    "bert": (foreign, UNREADABLE, "'bert'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_and_foreign_directories_are_listed_as_such(run, run_json, model, tmp_path, name):
    damage, reason, detail = DAMAGES[name]
    folder = tmp_path / "found" / name
    shutil.copytree(model, folder)
    damage(folder)
    status, result = run_json("models", tmp_path / "found")
    assert status == 0
    assert [entry["model"] for entry in result["models"]] == ["mm-tiny"]
    (rejection,) = result["rejections"]
    assert (rejection["source"], rejection["reason"]) == (str(folder), reason)
    assert detail in rejection["detail"]
    status, out, _ = run("models", tmp_path / "found")
    assert status == 0
    assert "Can't be loaded" in out and str(folder) in out and reason in out


def test_damaged_and_foreign_checkpoints_are_listed_as_such(run_json, checkpoint):
    folder = checkpoint.parent
    (folder / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    (folder / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {"model.weight": torch.zeros(3)}, "epoch": 3}, folder / "foreign.ckpt")
    torch.save([1, 2, 3], folder / "list.ckpt")
    (folder / "sharded.ckpt").mkdir()
    status, result = run_json("models", folder)
    assert status == 0
    assert [entry["model"] for entry in result["models"]] == ["mm-tiny", str(checkpoint)]
    assert {Path(entry["source"]).name: entry["reason"] for entry in result["rejections"]} == {
        "cut.ckpt": UNREADABLE,
        "empty.ckpt": UNREADABLE,
        "foreign.ckpt": UNREADABLE,
        "list.ckpt": UNREADABLE,
    }


def test_a_folder_that_is_none(run, tmp_path):
    status, _, err = run("models", tmp_path / "nowhere")
    assert status == 2
    assert "nowhere" in err


def test_export_halves_the_size_and_keeps_the_captions(run, run_json, model, photos, tmp_path):
    folder = tmp_path / "exported"
    status, out, err = run("export", model, folder)
    assert status == 0, err
    half, whole = (folder / "model.safetensors").stat().st_size, (Path(model) / "model.safetensors").stat().st_size
    assert half < 0.55 * whole
    assert str(folder) in out and f"{half:,}" in out
    first = run_json("caption", photos, "--model", model, "--beams", 1, "--max_tokens", 3)[1]["captions"]
    second = run_json("caption", photos, "--model", folder, "--beams", 1, "--max_tokens", 3)[1]["captions"]
    assert [row["caption"] for row in first] == [row["caption"] for row in second]


def test_export_says_what_models_says(run_json, model, tmp_path):
    status, result = run_json("export", model, tmp_path / "exported")
    assert status == 0
    assert result == run_json("models", tmp_path / "exported")[1]["models"][-1]


def test_export_refuses_what_it_can_not_do(run, model, tmp_path):
    for arguments, culprit in [
        ((model, tmp_path / "x", "--precision", "int1"), "int1"),
        (("nowhere.ckpt", tmp_path / "x"), "nowhere.ckpt"),
    ]:
        status, _, err = run("export", *arguments)
        assert status == 2
        assert culprit in err and err.count("\n") == 1
