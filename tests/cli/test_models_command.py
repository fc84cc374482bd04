from pathlib import Path


def test_lists_what_is_built_in_and_what_is_found(run, run_json, model):
    status, result = run_json("models", Path(model).parent)
    assert status == 0
    by_name = {entry["name"]: entry for entry in result["models"]}
    assert by_name["mm-tiny"]["capabilities"] == ["caption", "embed", "match"]
    assert by_name["mm-tiny"]["languages"] == ["en", "zh"]
    assert by_name[model]["parameters"] > 1_000_000
    assert any(form["name"].startswith("open_clip:") for form in result["forms"])
    status, out, _ = run("models")
    assert status == 0
    assert "mm-tiny" in out and "hf:OWNER/NAME" in out


def test_a_folder_that_is_none(run, tmp_path):
    status, _, err = run("models", tmp_path / "nowhere")
    assert status == 2
    assert "nowhere" in err


def test_export_halves_the_size_and_keeps_the_captions(run, run_json, model, photos, tmp_path):
    folder = tmp_path / "exported"
    status, out, err = run("export", model, folder)
    assert status == 0, err
    assert "MB" in out
    half, whole = (folder / "model.safetensors").stat().st_size, (Path(model) / "model.safetensors").stat().st_size
    assert half < 0.55 * whole
    first = run_json("caption", photos, "--model", model, "--beams", 1, "--max_tokens", 3)[1]["captions"]
    second = run_json("caption", photos, "--model", folder, "--beams", 1, "--max_tokens", 3)[1]["captions"]
    assert [row["caption"] for row in first] == [row["caption"] for row in second]


def test_export_refuses_what_it_can_not_do(run, model, tmp_path):
    for arguments, culprit in [
        ((model, tmp_path / "x", "--precision", "int1"), "int1"),
        (("nowhere.ckpt", tmp_path / "x"), "nowhere.ckpt"),
    ]:
        status, _, err = run("export", *arguments)
        assert status == 2
        assert culprit in err and err.count("\n") == 1
