import json
import shutil
from pathlib import Path

import open_clip
import public
import pytest
import torch
import transformers

from mm.cli.models import UNREADABLE


def test_lists_what_is_built_in_and_what_is_found(run, run_json, model):
    status, result = run_json("models", Path(model).parent)
    assert status == 0
    by_name = {entry["model"]: entry for entry in result["models"]}
    assert by_name["mm-tiny"]["capabilities"] == ["caption", "embed", "match"]
    assert by_name["mm-tiny"]["languages"] == ["en", "zh"]
    assert by_name["mm-tiny"]["family"] == "mm"
    assert by_name[model]["parameters"] > 100_000
    assert by_name[model]["bytes"] == (Path(model) / "model.safetensors").stat().st_size
    assert result["rejections"] == []
    assert any(form["name"].startswith("open_clip:") for form in result["forms"])
    assert {"BertForMaskedLM", "BlipForConditionalGeneration"} <= set(result["architectures"])
    status, out, _ = run("models")
    assert status == 0
    assert "mm-tiny" in out and "hf:OWNER/NAME" in out
    assert all(name in out for name in result["architectures"])


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


def numbers_of_bert(model) -> int:
    """How many parameters mm has for a BERT: those of its token types are within those of its positions."""
    return sum(value.numel() for name, value in model.named_parameters() if "token_type" not in name)


def test_public_checkpoints_are_listed_however_their_weights_are_stored(run_json, tmp_path):
    public.blip(tmp_path / "blip")
    model = public.bert(tmp_path / "bert")
    shutil.copytree(tmp_path / "bert", tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled/pytorch_model.bin")
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    shutil.copy(tmp_path / "bert/tokenizer.json", tmp_path / "parts")
    entries = {Path(entry["model"]).name: entry for entry in run_json("models", tmp_path)[1]["models"]}
    assert entries["blip"]["family"] == "BLIP retrieval" and entries["blip"]["capabilities"] == ["embed", "match"]
    for name in ("bert", "pickled", "parts"):
        assert (entries[name]["family"], entries[name]["capabilities"]) == ("BERT", ["fill"])
        assert entries[name]["parameters"] == numbers_of_bert(model)
        weights = [*(tmp_path / name).glob("*.safetensors"), *(tmp_path / name).glob("*.bin")]
        assert entries[name]["bytes"] == sum(path.stat().st_size for path in weights)


def test_a_public_checkpoint_that_contradicts_itself_is_listed_as_such(run_json, tmp_path):
    public.bert(tmp_path / "bert")
    config = json.loads((tmp_path / "bert/config.json").read_text())
    (tmp_path / "bert/config.json").write_text(json.dumps(config | {"vocab_size": 61}))
    (rejection,) = run_json("models", tmp_path)[1]["rejections"]
    assert rejection["reason"] == UNREADABLE and "encoder.embedding.weight has shape (61, 32)" in rejection["detail"]


@pytest.mark.parametrize("name", ["show", "export"])
def test_a_folder_called_like_an_action(run_json, model, tmp_path, monkeypatch, name):
    shutil.copytree(model, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    status, result = run_json("models", f"./{name}")
    assert status == 0
    assert [entry["model"] for entry in result["models"]] == ["mm-tiny", name]


def test_show_says_everything_about_a_model(run, run_json, model):
    status, result = run_json("models", "show", model)
    assert status == 0
    assert result["family"] == "mm" and result["capabilities"] == ["caption", "embed", "match"]
    assert result["parts"].keys() == {"vision", "text encoder", "text decoder", "heads"}
    listed = run_json("models", model)[1]["models"][-1]
    assert result["parameters"] == sum(result["parts"].values()) == listed["parameters"]
    assert result["bytes"] == listed["bytes"]
    assert (result["image_size"], result["embedding_width"], result["max_tokens"]) == (32, 16, 48)
    assert result["tokenizer"] == {"kind": "byte-level BPE", "vocabulary": 5000, "languages": ["en", "zh"]}
    assert result["preprocessing"] == "whole image scaled to 32x32, bicubic"
    assert result["pixels"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    status, out, _ = run("models", "show", model)
    assert status == 0
    for words in ("32 x 32 pixels", f"{result['parameters']:,}", "byte-level BPE of 5,000 tokens, writes en, zh"):
        assert words in out
    assert "whole image scaled to 32x32, bicubic, mean 0.5 0.5 0.5, standard deviation 0.5 0.5 0.5" in out


def test_show_a_built_in_model(run_json):
    status, result = run_json("models", "show", "mm-tiny")
    assert status == 0
    assert result["model"] == "mm-tiny" and result["tokenizer"]["languages"] == ["en", "zh"]


def test_show_a_language_model(run, run_json, tmp_path):
    model = public.bert(tmp_path)
    status, result = run_json("models", "show", tmp_path)
    assert status == 0
    assert (result["family"], result["capabilities"]) == ("BERT", ["fill"])
    assert result["parts"] == {"text encoder": numbers_of_bert(model)}
    assert result["tokenizer"] == {"kind": "WordLevel", "vocabulary": 60, "languages": []}
    assert result["max_tokens"] == 24
    assert all(result[name] is None for name in ("image_size", "preprocessing", "pixels", "embedding_width"))
    status, out, _ = run("models", "show", tmp_path)
    assert status == 0
    assert "BERT" in out and "WordLevel of 60 tokens" in out


def test_show_a_public_checkpoint_that_sees(run_json, tmp_path):
    model = public.blip(tmp_path, transformers.BlipForQuestionAnswering)
    _, result = run_json("models", "show", tmp_path)
    assert result["capabilities"] == ["ask"] and result["parts"].keys() == {"vision", "text encoder", "text decoder"}
    assert result["parts"]["vision"] == sum(value.numel() for value in model.vision_model.parameters())
    assert result["image_size"] == 32 and result["tokenizer"]["kind"] == "WordPiece"
    assert result["pixels"]["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073], abs=1e-6)


def test_show_a_model_of_open_clip(run_json, tmp_path):
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "mm-shown-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("mm-shown-clip")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    status, result = run_json("models", "show", f"open_clip:mm-shown-clip/{tmp_path / 'weights.pt'}")
    assert status == 0
    assert result["capabilities"] == ["embed"] and result["embedding_width"] == 24 and result["image_size"] == 32
    assert result["bytes"] == (tmp_path / "weights.pt").stat().st_size
    assert result["parts"]["vision"] == sum(value.numel() for value in model.visual.parameters())
    assert result["parameters"] == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(("arguments", "culprit"), [(("nowhere",), "'nowhere'"), ((), "model"), (("a", "b"), "b")])
def test_show_of_what_is_not_there(run, arguments, culprit):
    status, _, err = run("models", "show", *arguments)
    assert status == 2
    assert culprit in err and err.count("\n") == 1


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
    "bert": (foreign, UNREADABLE, "has no 'architectures'"),
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
