import json
import os
import subprocess
import sys

import pytest
from PIL import Image


def test_captions_a_file_a_folder_and_a_shard(run, model, photos, shards):
    shard = next(shards.glob("*.tar"))
    status, out, err = run("caption", photos / "red.png", photos, shard, "--model", model)
    lines = out.splitlines()
    assert status == 0, err
    assert len(lines) == 4 + 4  # red.png is named twice, and captioned once
    assert all(len(line.split("\t")) == 2 for line in lines)
    assert lines[0].startswith(f"{photos / 'red.png'}\t")


def test_output_is_one_object_a_line(run, model, photos, tmp_path):
    path = tmp_path / "captions.jsonl"
    status, out, _ = run("caption", photos, "--model", model, "--output", path, "--language", "zh")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert status == 0
    assert [row["key"] for row in rows] == ["blue", "green", "red", "white"]
    assert [row["caption"] for row in rows] == [line.split("\t")[1] for line in out.splitlines()]
    assert all(row["language"] == "zh" and row["score"] <= 0 for row in rows)
    assert list(tmp_path.glob("*.part")) == []


def test_json_is_one_object(run_json, model, photos):
    status, result = run_json("caption", photos, "--model", model)
    assert status == 0
    assert result["used"] == 4
    assert result["rejected"] == []
    assert len(result["captions"]) == 4


def test_options_of_decoding_reach_it(run_json, model, photos):
    def tokens(*options):
        _, result = run_json("caption", photos / "red.png", "--model", model, *options)
        return result["captions"][0]["caption"]

    assert tokens("--max_tokens", 2) != tokens("--max_tokens", 12)
    assert tokens("--prompt", "a photo of").startswith("a photo of")
    assert tokens("--beams", 1, "--repetition_penalty", 1.0) != tokens("--beams", 1, "--repetition_penalty", 5.0)


def test_bad_files_among_good_ones(run, model, photos, tmp_path):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not an image")
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((200, 200), 90).convert("RGB").save(whole)
    (photos / "cut.jpg").write_bytes(whole.read_bytes()[:3000])
    Image.new("RGB", (300, 300)).save(photos / "big.png")
    output = tmp_path / "captions.jsonl"
    status, out, err = run("caption", photos, "--model", model, "--max_pixels", 50_000, "--output", output)
    assert status == 1
    assert len(out.splitlines()) == 4
    assert len(output.read_text().splitlines()) == 4
    assert "Rejected: 4 of 8" in err
    for reason in ("empty file", "not an image", "truncated", "too many pixels"):
        assert reason in err


def test_a_damaged_shard_gives_what_it_has(run, model, shards):
    shard = next(shards.glob("*.tar"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    status, out, err = run("caption", shard, "--model", model)
    assert status == 1
    assert 0 < len(out.splitlines()) < 4
    assert "Rejected" in err and shard.name in err


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["nowhere.jpg"], "nowhere.jpg"),
        (["{photos}", "--model", "mm-huge"], "mm-huge"),
        (["{photos}", "--language", "fr"], "fr"),
        (["{photos}", "--beams", "0"], "beams"),
        (["{photos}", "--beams", "many"], "beams"),
        (["{photos}", "--min_tokens", "9", "--max_tokens", "3"], "min_tokens"),
        (["{photos}", "--max_tokens", "500"], "max_tokens"),
        (["{photos}", "--output", "no/such/folder/x.jsonl"], "no/such/folder"),
        (["{photos}", "--model", "open_clip:NoSuchModel/tag"], "NoSuchModel"),
        (["{empty}"], "empty"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(run, model, photos, tmp_path, arguments, culprit):
    (tmp_path / "empty").mkdir()
    filled = [a.format(photos=photos, empty=tmp_path / "empty") for a in arguments]
    if "--model" not in filled:
        filled += ["--model", model]
    status, out, err = run("caption", *filled)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert culprit in err


def test_unknown_model_lists_the_known_ones(run, photos):
    _, _, err = run("caption", photos, "--model", "mm-huge")
    assert "mm-tiny" in err and "open_clip:" in err


def test_no_space_left_keeps_the_finished_part(model, photos):
    """A file-size limit stands for a full disk: the finished lines stay in a file that the error names."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from mm.cli import main; import mm; import mm.cli.caption; import mm.pipeline;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        f"sys.exit(main(['caption', {str(photos)!r}, '--model', {model!r}, '--batch_size=1', '--output=out.jsonl']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=photos.parent,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    part = photos.parent / "out.jsonl.part"
    assert done.returncode == 1, done.stderr
    assert "out.jsonl.part" in done.stderr
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    assert 1 <= len(rows) < 4
    assert not (photos.parent / "out.jsonl").exists()
