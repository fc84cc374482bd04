import re
from pathlib import Path

import pytest

from mm.data.tokenizer import Tokenizer


def test_learns_from_captions(run, shards, tmp_path):
    output = tmp_path / "new" / "tokenizer.json"
    status, out, err = run("tokenizer", shards, "--output", output, "--vocabulary", 300)
    assert (status, err) == (0, "")
    assert str(output) in out and re.search(r"captions\W+12\b", out)
    tokenizer = Tokenizer.read(output)
    assert list(tokenizer.languages) == ["en", "zh"]
    assert tokenizer.decode(tokenizer.encode(["a red wall"])) == ["a red wall"]


def test_only_the_languages_asked_for(run_json, shards, tmp_path):
    output = tmp_path / "t.json"
    status, made = run_json("tokenizer", shards, "--vocabulary", 300, "--languages", "zh", "--output", output)
    assert (status, made["captions"], made["tokens"]) == (0, 4, len(Tokenizer.read(output)))
    assert list(Tokenizer.read(tmp_path / "t.json").languages) == ["zh"]


def test_what_can_not_be_read_is_listed(run, photos, tmp_path):
    (photos / "red.txt").write_text("a red wall")
    run("shards", "make", photos, tmp_path / "out")
    shard = tmp_path / "out" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:7000])
    status, out, err = run("tokenizer", tmp_path / "out", "--output", tmp_path / "t.json", "--vocabulary", 300)
    assert status == 1
    assert re.search(r"captions\W+1\b", out) and (tmp_path / "t.json").exists()
    assert "Rejected: 3 of 4" in err and "missing caption" in err and shard.name in err


def test_nothing_to_learn_from(run, photos, tmp_path):
    run("shards", "make", photos, tmp_path / "out")
    status, out, err = run("tokenizer", tmp_path / "out", "--output", tmp_path / "t.json")
    assert status == 1 and re.search(r"tokens\W+0\b", out)
    assert "no captions in en or zh to learn from" in err and "Rejected: 4 of 4" in err
    assert not (tmp_path / "t.json").exists()


def test_an_output_that_can_not_be_written_at_the_end(run, shards, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm.cli.tokenizer.write_whole", full)
    status, out, err = run("tokenizer", shards, "--output", tmp_path / "t.json", "--vocabulary", 300)
    assert status == 1 and re.search(r"tokens\W+0\b", out)
    assert "t.json" in err and "No space left" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["nowhere"], "nowhere"),
        (["no-*.tar"], "no-*.tar"),
        (["{shards}", "--output", "{shards}"], "shards"),
        (["{shards}", "--output", "{shards}/manifest.json/t.json"], "manifest.json"),
        (["{shards}", "--vocabulary", "10"], "vocabulary of 10"),
        (["{shards}", "--languages", "English"], "English"),
    ],
)
def test_wrong_use_ends_before_captions_are_read(run, shards, tmp_path, monkeypatch, arguments, culprit):
    def never(path, expected=None):
        raise AssertionError("read before everything was checked")

    monkeypatch.setattr("mm.cli.common.read_shard", never)
    filled = [argument.format(shards=shards) for argument in arguments]
    if "--output" not in filled:
        filled += ["--output", str(tmp_path / "t.json")]
    status, out, err = run("tokenizer", *filled)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert culprit in err
    assert not (tmp_path / "t.json").exists()
