"""``mm export`` and ``mm models export``."""

import json
from pathlib import Path

import numpy as np
import public
import pytest
import transformers
from PIL import Image

import mm
from mm.checkpoints.export_onnx import IMAGE, TEXT


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


def test_export_to_mm_is_what_export_does(run_json, model, tmp_path):
    _, first = run_json("export", model, tmp_path / "first", "--precision", "bfloat16")
    status, second = run_json("models", "export", model, tmp_path / "second", "--to", "mm", "--precision", "bfloat16")
    assert status == 0
    assert {**first, "model": None} == {**second, "model": None}
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("first", "second")]
    assert files[0] == files[1]
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()


def test_a_public_checkpoint_becomes_a_model_directory(run, run_json, tmp_path):
    public.blip(tmp_path / "blip")
    status, result = run_json("models", "export", tmp_path / "blip", tmp_path / "out", "--to", "mm")
    assert status == 0
    assert (result["family"], result["capabilities"]) == ("BLIP retrieval", ["embed", "match"])
    assert "embeds images and texts, tells texts that match an image" in (tmp_path / "out/README.md").read_text()
    shown = {name: run_json("models", "show", tmp_path / name)[1] for name in ("blip", "out")}
    for one in shown.values():
        one.pop("model"), one.pop("bytes")
    assert shown["blip"] == shown["out"]


def test_a_model_card_that_is_there_stays(run, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("# Mine\n")
    assert run("export", model, tmp_path / "out")[0] == 0
    assert (tmp_path / "out/README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("precision", [(), ("--precision", "float16")])
def test_export_to_hf(run, run_json, tmp_path, precision):
    kind = transformers.BlipForConditionalGeneration
    reference = public.blip(tmp_path / "blip", kind).state_dict()
    assert run("export", tmp_path / "blip", tmp_path / "mm", "--precision", "float32")[0] == 0
    status, result = run_json("models", "export", tmp_path / "mm", tmp_path / "hf", "--to", "hf", *precision)
    assert status == 0
    assert result["to"] == "hf" and {"model.safetensors", "config.json", "tokenizer.json"} <= result["files"].keys()
    state, limit = kind.from_pretrained(tmp_path / "hf").float().state_dict(), 1e-3 if precision else 0.0
    assert state.keys() == reference.keys()
    assert all((state[name] - value).abs().max() <= limit for name, value in reference.items())


def test_a_model_that_is_not_of_blips_shape(run, model, tmp_path):
    status, _, err = run("models", "export", model, tmp_path / "hf", "--to", "hf")
    assert status == 2
    assert "can't be written as BLIP" in err and err.count("\n") == 1
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
def test_export_to_onnx(run, run_json, model, tmp_path):
    import onnxruntime

    folder = tmp_path / "onnx"
    status, result = run_json("models", "export", model, folder, "--to", "onnx")
    assert status == 0
    assert result["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert result["differences"].keys() == {IMAGE, TEXT} and max(result["differences"].values()) < 1e-4
    size = json.loads((folder / "config.json").read_text())["image"]["size"]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))
    pixels = np.asarray(picture).transpose(2, 0, 1)[None].astype(np.float32) / 255
    (vectors,) = onnxruntime.InferenceSession(folder / IMAGE).run(None, {"pixels": pixels})
    np.testing.assert_allclose(vectors, mm.load(model, "cpu").embed_images(picture), atol=1e-4)
    status, out, err = run("models", "export", model, folder, "--to", "onnx")  # once more, over what is there
    assert status == 0, err
    assert IMAGE in out and TEXT in out


def test_a_model_that_does_not_embed_has_no_onnx(run, tmp_path):
    public.bert(tmp_path / "bert")
    status, _, err = run("models", "export", tmp_path / "bert", tmp_path / "onnx", "--to", "onnx")
    assert status == 2
    assert "can't embed (it can fill)" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (("--to", "gguf"), "'gguf' is not one of mm, hf, onnx"),
        (("--to", "onnx", "--precision", "float16"), "float16 is not for --to onnx"),
        (("--to", "hf", "--precision", "int8"), "'int8' is not one of float16, bfloat16, float32"),
        (("--to", "mm", "--language", "en"), "--language is for --to hf"),
        ((), "to"),
    ],
)
def test_what_can_not_be_written_is_said_before_any_work(run, tmp_path, options, culprit):
    status, _, err = run("models", "export", "nowhere", tmp_path / "out", *options)
    assert status == 2
    assert culprit in err and "nowhere" not in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_export_of_a_model_that_is_not_there(run, tmp_path):
    status, _, err = run("models", "export", "nowhere", tmp_path / "out", "--to", "mm")
    assert status == 2
    assert "'nowhere'" in err
    assert not (tmp_path / "out").exists()
