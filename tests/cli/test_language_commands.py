import io
import json
import os
import sys
import threading

import pytest
import talking
import tiny
import torch

ROWS = [
    {"source": "a.jpg", "key": "a", "caption": "a red wall", "language": "en", "score": -0.5, "complete": True},
    {"source": "b.jpg", "key": "b", "caption": "all of it is blue", "language": "en"},
    {"source": "c.jpg", "key": "c", "caption": "绿色", "language": "zh", "mine": [1]},
]
SHORT = ("--max_tokens", 6, "--repetition_penalty", 2.0)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory):
    """Makes model directories of random language models by what they have learnt."""
    from mm.checkpoints.directory import save_directory
    from mm.models import build_language
    from mm.models.vision_language import SpecialTokens

    words, folder = tiny.tokenizer(), tmp_path_factory.mktemp("language")

    def make(learns):
        if not (folder / learns).exists():
            torch.manual_seed(0)
            parts = talking.PARTS[learns]
            model = build_language(parts, len(words), SpecialTokens(**words.special))
            with torch.no_grad():
                for value in model.parameters():
                    value.normal_(std=0.3)
            save_directory(folder / learns, model, words, parts, "# random\n")
        return folder / learns

    return make


@pytest.fixture
def translator(language_model):
    return language_model("translate")


@pytest.fixture
def scorer(language_model):
    return language_model("continue")


@pytest.fixture
def captions(tmp_path):
    """A file of captions as ``mm caption --output`` writes it."""
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    return path


@pytest.fixture
def typed(monkeypatch):
    """Puts bytes on standard input."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_captions_are_translated_and_keep_what_else_their_lines_hold(run, translator, captions, tmp_path):
    output = tmp_path / "zh.jsonl"
    arguments = ("translate", captions, "--to", "zh", "--model", translator, "--output", output, *SHORT)
    status, out, err = run(*arguments)
    assert status == 0 and f"{output}: 3 translations" in err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["original"] for row in rows] == [row["caption"] for row in ROWS]
    assert out.splitlines() == [f"{row['original']}\t{row['caption']}" for row in rows]
    assert all(row["language"] == "zh" and row["score"] < 0 and row["whole"] for row in rows)
    assert [row["source"] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"] and rows[2]["mine"] == [1]
    assert rows[0]["caption"] != ROWS[0]["caption"] and list(tmp_path.glob("*.part")) == []


def test_translations_are_those_of_python_whatever_the_batch(run_json, translator, captions):
    import mm
    from mm.generation import GenerationConfig

    config = GenerationConfig(beams=3, max_tokens=6, repetition_penalty=2.0)
    expected = mm.load(translator, "cpu").translate([row["caption"] for row in ROWS], to="zh", config=config)
    for size in (1, 2, 16):
        options = ("--to", "zh", "--model", translator, "--batch_size", size, *SHORT)
        status, result = run_json("translate", captions, *options)
        assert (status, result["used"], result["rejected"], result["rejections"]) == (0, 3, 0, [])
        assert [row["caption"] for row in result["translations"]] == [one.text for one in expected]


def test_decoding_is_that_of_python_unless_told_otherwise(run, translator, captions, monkeypatch):
    from mm.pipeline import TRANSLATION, LanguagePipeline

    seen = []
    monkeypatch.setattr(LanguagePipeline, "translate", lambda *_, config, **__: seen.append(config) or [])
    with pytest.raises(ValueError, match="zip"):  # no translation for three texts
        run("translate", captions, "--to", "zh", "--model", translator)
    assert seen == [TRANSLATION]


def test_the_language_that_a_line_names_is_that_of_the_text(run_json, translator, captions, monkeypatch):
    from mm.pipeline import LanguagePipeline

    seen, translate = [], LanguagePipeline.translate

    def spy(self, texts, **options):
        seen.append(options["source"])
        return translate(self, texts, **options)

    monkeypatch.setattr(LanguagePipeline, "translate", spy)
    captions.write_text(
        captions.read_text() + '{"caption": "rouge", "language": "fr"}\n{"caption": "a", "language": 3}\n'
    )
    run_json("translate", captions, "--to", "zh", "--model", translator, *SHORT)
    run_json("translate", captions, "--to", "zh", "--source", "en", "--model", translator, *SHORT)
    assert seen == [["en", "en", "zh", None, None], ["en"] * 5]


def test_plain_text_from_a_file_and_from_standard_input(run_json, translator, tmp_path, typed):
    path = tmp_path / "texts.txt"
    content = "\ufeffa red wall\r\n  绿色 \nall of it".encode()
    path.write_bytes(content)
    options = ("--to", "zh", "--model", translator, *SHORT)
    _, result = run_json("translate", path, *options)
    rows = result["translations"]
    assert [row["original"] for row in rows] == ["a red wall", "绿色", "all of it"]
    assert [row["source"] for row in rows] == [f"{path}, line {number}" for number in (1, 2, 3)]
    assert [row["key"] for row in rows] == ["1", "2", "3"]
    typed(content)
    _, again = run_json("translate", "-", *options)
    assert [row["caption"] for row in again["translations"]] == [row["caption"] for row in rows]
    assert again["translations"][2]["source"] == "standard input, line 3"
    typed(b'{"caption": "a red wall"}\n')
    _, objects = run_json("translate", "-", *options)
    assert [row["caption"] for row in objects["translations"]] == [rows[0]["caption"]]
    typed(b"")
    assert run_json("translate", "-", *options) == (
        0,
        {"translations": [], "used": 0, "rejected": 0, "rejections": []},
    )


def test_texts_may_come_from_a_pipe(run_json, translator, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a red wall\n",))
    writer.start()
    _, result = run_json("translate", pipe, "--to", "zh", "--model", translator, *SHORT)
    writer.join()
    assert [row["original"] for row in result["translations"]] == ["a red wall"]


BROKEN = [
    (b"{not json", "not JSON", "isn't valid JSON"),
    (b"[1, 2]", "not a JSON object", "holds a list"),
    (b'{"text": "a dog"}', "no text", "'caption' is None, not a text; the line has text"),
    (b'{"caption": 7}', "no text", "'caption' is 7"),
    (b'{"caption": "  "}', "no text", "'caption' is '  '"),
    (b'{"caption": "caf\xe9"}', "not UTF-8", "byte 16"),
    (b"", "not JSON", "isn't valid JSON"),
    (b"[" * 100_000, "not JSON", "isn't valid JSON"),
]


@pytest.mark.parametrize(("line", "reason", "detail"), BROKEN)
@pytest.mark.parametrize("command", ["translate", "score"])
def test_a_broken_line_is_rejected_by_number_and_the_others_are_done(
    run, run_json, language_model, captions, command, line, reason, detail
):
    content = captions.read_bytes().splitlines()
    captions.write_bytes(b"\n".join([content[0], line, *content[1:], line]) + b"\n")
    options = ["--to", "zh", *SHORT] if command == "translate" else ["--language", "en"]
    options += ["--model", language_model("translate" if command == "translate" else "continue")]
    status, result = run_json(command, captions, *options)
    assert status == 1 and result["rejected"] == 2
    assert len(result["translations" if command == "translate" else "scores"]) == 3
    places = [(one["source"], one["key"], one["reason"]) for one in result["rejections"]]
    assert places == [(f"{captions}, line {number}", str(number), reason) for number in (2, 5)]
    assert all(detail in one["detail"] and len(one["detail"]) < 200 for one in result["rejections"])
    status, _, err = run(command, captions, *options)
    assert status == 1 and "Rejected: 2 of 5" in err and f"{captions}, line 2" in err


def test_empty_lines_of_plain_text_are_rejected(run_json, translator, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"a dog\n\n \t\na \xff cat\nblue\n")
    status, result = run_json("translate", path, "--to", "zh", "--model", translator, *SHORT)
    assert status == 1 and [row["key"] for row in result["translations"]] == ["1", "5"]
    assert [(one["key"], one["reason"]) for one in result["rejections"]] == [
        ("2", "no text"),
        ("3", "no text"),
        ("4", "not UTF-8"),
    ]


def test_another_key_may_hold_the_text(run_json, translator, captions):
    captions.write_text('{"caption": "x", "title": "a red wall"}\n')
    _, result = run_json("translate", captions, "--field", "title", "--to", "zh", "--model", translator, *SHORT)
    (row,) = result["translations"]
    assert row["original"] == "a red wall" and row["caption"] == "x" and row["title"] != "a red wall"


def test_numbers_that_json_does_not_have_are_not_written(run, translator, captions, tmp_path):
    captions.write_text('{"caption": "a dog", "score": NaN, "other": 1e999}\n')
    output = tmp_path / "out.jsonl"
    run("translate", captions, "--to", "zh", "--model", translator, "--output", output, *SHORT)
    row = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert row["other"] is None


def test_texts_that_were_cut_are_counted(run, translator, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a red wall\n" + "red wall " * 100 + "\n")
    status, out, err = run("translate", path, "--to", "zh", "--model", translator, *SHORT)
    assert status == 0 and len(out.splitlines()) == 2
    assert "1 of 2 texts were longer than the model reads, and were cut" in err


def test_an_interrupted_translation_keeps_whole_lines(run, translator, captions, tmp_path, monkeypatch):
    from mm.pipeline import LanguagePipeline

    translate, calls = LanguagePipeline.translate, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return translate(*arguments, **options)

    monkeypatch.setattr(LanguagePipeline, "translate", interrupted)
    output = tmp_path / "zh.jsonl"
    arguments = ("translate", captions, "--to", "zh", "--model", translator, "--output", output, "--batch_size", 1)
    assert run(*arguments, *SHORT)[0] == 130
    kept = (tmp_path / "zh.jsonl.part").read_bytes()
    assert [json.loads(line)["key"] for line in kept.splitlines()] == ["a", "b"]
    assert run(*arguments, *SHORT)[0] == 2
    assert (tmp_path / "zh.jsonl.part").read_bytes() == kept


def test_scores_are_those_of_python_of_each_text_and_in_all(run, run_json, scorer, captions):
    import math

    import mm

    expected = mm.load(scorer, "cpu").score([row["caption"] for row in ROWS], language="en")
    status, result = run_json("score", captions, "--language", "en", "--model", scorer, "--batch_size", 2)
    assert status == 0 and [row["text"] for row in result["scores"]] == [row["caption"] for row in ROWS]
    for row, score in zip(result["scores"], expected, strict=True):
        assert row["log_probability"] == pytest.approx(score.log_probability, abs=1e-3)
        assert row["perplexity"] == pytest.approx(score.perplexity, rel=1e-3)
        assert (row["tokens"], row["whole"]) == (score.tokens, True)
    total, tokens = sum(one.log_probability for one in expected), sum(one.tokens for one in expected)
    assert (result["texts"], result["tokens"], result["cut"]) == (3, tokens, 0)
    assert result["log_probability"] == pytest.approx(total, abs=1e-2)
    assert result["perplexity"] == pytest.approx(math.exp(-total / tokens), rel=1e-3)
    status, out, _ = run("score", captions, "--language", "en", "--model", scorer)
    first = out.splitlines()[0].split("\t")
    assert first[2] == "a red wall" and float(first[0]) == pytest.approx(expected[0].log_probability, abs=1e-2)
    assert status == 0 and "in all" in out and "perplexity" in out


def test_scores_of_plain_text_of_which_one_is_cut(run_json, scorer, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a red wall\n" + "red wall " * 100 + "\n")
    status, result = run_json("score", path, "--language", "zh", "--model", scorer)
    assert status == 0 and [row["whole"] for row in result["scores"]] == [True, False] and result["cut"] == 1


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["translate", "{captions}", "--to", "zh"], "a T5, BART or mBART checkpoint"),
        (["score", "{captions}"], "a GPT-2, LLaMA or Falcon checkpoint"),
        (["translate", "{captions}", "--to", "fr", "--model", "{translate}"], "'fr'; languages: en, zh"),
        (["translate", "{captions}", "--model", "{translate}"], "choose one of en, zh"),
        (["translate", "{captions}", "--to", "zh", "--source", "fr", "--model", "{translate}"], "'fr'"),
        (["translate", "{captions}", "--to", "zh", "--model", "{continue}"], "can't translate (it can score)"),
        (["translate", "{captions}", "--to", "zh", "--model", "{fill}"], "can't translate (it can fill)"),
        (["score", "{captions}", "--language", "en", "--model", "{translate}"], "can't score (it can translate)"),
        (["score", "{captions}", "--language", "fr", "--model", "{continue}"], "score texts in 'fr'"),
        (["score", "{captions}", "--model", "{continue}"], "choose one of en, zh"),
        (["translate", "{captions}", "--model", "{seeing}"], "can't translate (it can caption"),
        (["translate", "nowhere.txt", "--model", "{translate}"], "nowhere.txt: can't be read (No such file"),
        (["translate", "{folder}", "--model", "{translate}"], "can't be read (Is a directory)"),
        (["score", "{empty}", "--model", "{continue}"], "empty.txt: is empty"),
        (["translate", "{captions}", "--to", "zh", "--model", "{translate}", "--max_tokens", "500"], "max_tokens"),
        (["translate", "{captions}", "--to", "zh", "--model", "{translate}", "--output", "no/x.jsonl"], "no/x.jsonl"),
        (["score", "{captions}", "--model", "{continue}", "--batch_size", "0"], "--batch_size must be at least 1"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(run, language_model, model, captions, tmp_path, arguments, culprit):
    (tmp_path / "empty.txt").touch()
    names = {learns: language_model(learns) for learns in talking.PARTS}
    names |= {"captions": captions, "folder": tmp_path, "empty": tmp_path / "empty.txt", "seeing": model}
    status, out, err = run(*(argument.format(**names) for argument in arguments))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert culprit in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "empty.txt"]


@pytest.mark.parametrize("learns", talking.PARTS)
def test_a_language_model_does_nothing_with_photos(run, language_model, photos, tmp_path, learns):
    folder = language_model(learns)
    for arguments in (["caption", photos], ["index", photos, "--gallery", tmp_path / "gallery"]):
        status, out, err = run(*arguments, "--model", folder)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "can't" in err and "it can" in err
    assert not (tmp_path / "gallery").exists()
