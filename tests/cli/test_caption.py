import json
import os
import resource

import pytest
from PIL import Image

from mm.cli.lines import Lines
from mm.errors import MMError, OutputError


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
    assert (result["rejected"], result["rejections"]) == (0, [])
    assert len(result["captions"]) == 4


def test_decoding_is_that_of_python_unless_told_otherwise():
    from mm.cli import common, decoding
    from mm.pipeline import CAPTION

    parser = common.Parser(prog="mm caption")
    decoding.add_generation(parser, decoding.CAPTION)
    assert decoding.generation_config(parser.parse_args([]), decoding.CAPTION) == CAPTION


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
        (["{photos}", "--batch_size", "0"], "--batch_size must be at least 1, not 0"),
        (["{photos}", "--max_pixels", "-1"], "--max_pixels must be at least 1, not -1"),
        (["{photos}", "--beams", "3", "--strategy", "greedy"], "beams 3 doesn't act in strategy greedy"),
        (["{photos}", "--strategy", "sample", "--groups", "2"], "groups 2 doesn't act in strategy sample"),
        (["{photos}", "--required", "cat", "--forbidden", "cat"], "required and forbidden both have 'cat'"),
        (["{photos}", "--rank_by", "match"], "rank_by match acts with best_of alone"),
        (["{photos}", "--captions", "4"], "captions 4 are more than beams 3"),
        (["{photos}", "--draft", "{model}"], "draft doesn't act in strategy beam"),
        (["{photos}", "--draft_tokens", "3", "--strategy", "greedy"], "draft_tokens 3 acts with a draft alone"),
        (["{photos}", "--stop", "\ufffd"], "is never in the texts of this model"),
        (["{photos}", "--output", "{photos}"], "photos"),
        (["{empty}"], "empty"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(run, model, photos, tmp_path, arguments, culprit):
    (tmp_path / "empty").mkdir()
    filled = [a.format(photos=photos, empty=tmp_path / "empty", model=model) for a in arguments]
    if "--model" not in filled:
        filled += ["--model", model]
    if "--output" not in filled:
        filled += ["--output", str(tmp_path / "captions.jsonl")]
    status, out, err = run("caption", *filled)
    assert status == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos"]
    assert out == ""
    assert err.count("\n") == 1
    assert culprit in err


def test_unknown_model_lists_the_known_ones(run, photos):
    _, _, err = run("caption", photos, "--model", "mm-huge")
    assert "mm-tiny" in err and "open_clip:" in err


@pytest.mark.parametrize("options", [[], ["--model", "mm-huge"], ["--language", "fr"], ["--beams", "0"]])
def test_what_an_earlier_run_has_kept_is_not_touched(run, model, photos, tmp_path, options):
    part = tmp_path / "captions.jsonl.part"
    part.write_text('{"caption": "hours of work"}\n')
    arguments = [photos, "--output", tmp_path / "captions.jsonl", *options]
    status, out, err = run("caption", *arguments, *([] if "--model" in options else ["--model", model]))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert str(part) in err and ("rename" in err or "remove" in err)
    assert part.read_text() == '{"caption": "hours of work"}\n'
    assert not (tmp_path / "captions.jsonl").exists()


def test_an_interrupted_run_keeps_whole_lines(run, model, photos, tmp_path, monkeypatch):
    from mm.pipeline import VisionLanguagePipeline

    caption, calls = VisionLanguagePipeline.caption, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return caption(*arguments, **options)

    monkeypatch.setattr(VisionLanguagePipeline, "caption", interrupted)
    output = tmp_path / "captions.jsonl"
    arguments = ("caption", photos, "--model", model, "--output", output, "--batch_size", 1)
    assert run(*arguments)[0] == 130
    kept = (tmp_path / "captions.jsonl.part").read_bytes()
    assert [json.loads(line)["key"] for line in kept.splitlines()] == ["blue", "green"]
    assert run(*arguments)[0] == 2
    assert (tmp_path / "captions.jsonl.part").read_bytes() == kept


def test_rows_are_on_disk_when_write_returns(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def spy(descriptor):
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    lines = Lines(tmp_path / "x.jsonl")
    lines.write([{"a": 0}])
    monkeypatch.setattr(os, "fsync", spy)
    lines.write([{"a": 1}])
    assert synced == [18] and (tmp_path / "x.jsonl.part").read_text() == '{"a": 0}\n{"a": 1}\n'
    lines.finish()
    assert (tmp_path / "x.jsonl").read_text() == '{"a": 0}\n{"a": 1}\n'


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    link = tmp_path / "null"
    link.symlink_to(os.devnull)  # only the link would be replaced
    with pytest.raises(OutputError, match="isn't a regular file"):
        Lines(link)
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


def test_an_empty_part_is_used_and_one_being_written_is_not(tmp_path):
    part = tmp_path / "x.jsonl.part"
    part.touch()
    first, second = Lines(tmp_path / "x.jsonl"), Lines(tmp_path / "x.jsonl")
    first.write([{"a": 1}])
    with pytest.raises(MMError, match="another run"):
        second.write([{"a": 2}])
    first.finish()
    assert (tmp_path / "x.jsonl").read_text() == '{"a": 1}\n' and not part.exists()


def test_nothing_usable_leaves_no_captions_of_an_earlier_run(run, model, photos, tmp_path):
    for photo in photos.iterdir():
        photo.write_bytes(b"")
    output = tmp_path / "captions.jsonl"
    output.write_text('{"caption": "earlier"}\n')
    status, out, err = run("caption", photos, "--model", model, "--output", output)
    assert (status, out) == (1, "")
    assert "Rejected: 4 of 4" in err and "empty file" in err
    assert output.read_text() == "" and not list(tmp_path.glob("*.part"))


def test_images_are_captioned_together_as_told(run, model, photos, monkeypatch):
    from mm.pipeline import writing

    sizes, generate = [], writing.generate_all

    def spy(decoder, about, prompts, *arguments, **options):
        sizes.append(len(prompts))
        return generate(decoder, about, prompts, *arguments, **options)

    monkeypatch.setattr(writing, "generate_all", spy)
    for number in range(16):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(photos / f"{number}.png")
    options = ("--max_tokens", 2, "--beams", 1, "--retry", "false")
    assert run("caption", photos, "--model", model, "--batch_size", 20, *options)[0] == 0
    assert sizes == [20]


def test_no_space_left_keeps_the_finished_part(run, model, photos, tmp_path):
    """A file-size limit stands for a full disk: the finished lines stay in a file that the error names."""
    output, (soft, hard) = tmp_path / "out.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, hard))
    try:
        status, _, err = run("caption", photos, "--model", model, "--batch_size", 1, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1, err
    assert "out.jsonl.part" in err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl.part").read_text().splitlines()]
    assert 1 <= len(rows) < 4
    assert not output.exists()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_names_that_are_not_utf8_can_be_printed(run, model, shards, tmp_path, options):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shards.rename(folder)
    status, out, err = run("caption", folder, "--model", model, "--max_tokens", 3, *options)
    assert status == 0, err
    sources = [row["source"] for row in json.loads(out)["captions"]] if options else out.splitlines()
    assert len(sources) == 4 and all("caf" in source for source in sources)
    assert out.count(r"caf\udce9") == 4
