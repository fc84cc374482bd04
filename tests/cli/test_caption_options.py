"""What ``mm caption`` shows and writes beside captions, and how it goes on where something is wrong."""

from __future__ import annotations

import io
import json
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

import mm
from mm.checkpoints import save_directory
from mm.checkpoints.resolve import find_tokenizer
from mm.cli import caption as command
from mm.data.tokenizer import Tokenizer
from mm.generation import GenerationConfig
from mm.generation.degenerate import CUT, REPEATS

Run = Callable[..., tuple[int, str, str]]
LOOPING = ("--strategy", "greedy", "--repetition_penalty", 1.0, "--max_tokens", 12)


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory: greedy search says "dog" again and again, other searches end."""
    words = Tokenizer.read(find_tokenizer("mm-tiny"))
    architecture = replace(tiny.ARCHITECTURE, max_tokens=48)
    net = tiny.model(words, architecture)
    with torch.no_grad():
        assert net.decoder.norm is not None
        net.decoder.norm.weight.zero_()  # it writes the same about every image
        net.decoder.head.bias.fill_(-20)
        for bias, text in ((2.0, "dog"), (1.5, "cat"), (1.2, "snow")):
            net.decoder.head.bias[words.encode([text])[0]] = bias
        net.decoder.head.bias[words.end] = 1.9
    folder = tmp_path_factory.mktemp("looping") / "model"
    save_directory(folder, net, words, architecture, "")
    return str(folder)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_say_how_a_caption_was_found(run: Run, model: str, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    options = ("--retry", "false", "--max_tokens", 9, "--batch_size", 3)
    status, out, err = run("caption", photos, "--model", model, "--output", output, *options)
    loaded = mm.load(model, "cpu")
    config = GenerationConfig(beams=3, repetition_penalty=1.2, max_tokens=9)
    names = ["blue", "green", "red", "white"]
    expected = loaded.caption([photos / f"{name}.png" for name in names], config=config)
    rows = rows_of(output)
    assert status == 0 and [row["key"] for row in rows] == names
    for row, caption in zip(rows, expected, strict=True):
        problem = {} if caption.problem is None else {"problem": caption.problem}
        assert row == problem | {
            "source": str(photos / f"{row['key']}.png"),
            "key": row["key"],
            "caption": caption.text,
            "language": "en",
            "score": pytest.approx(caption.score, abs=1e-3),
            "log_probability": pytest.approx(caption.log_probability, abs=1e-3),
            "complete": caption.complete,
            "strategy": "beam max_tokens=9 repetition_penalty=1.2 beams=3",
            "model": loaded.fingerprint,
            "precision": "float32",
        }
    assert [line.split("\t")[1] for line in out.splitlines()] == [row["caption"] for row in rows]
    assert f"{output}: 4 captions, " in err and " images/s\n" in err


def test_degenerate_captions_are_retried_and_reported(run: Run, looping: str, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    arguments = ("caption", photos, "--model", looping, "--output", output, *LOOPING)
    status, out, err = run(*arguments, "--retry", "false")
    assert status == 0 and "degenerate captions: 4 of 4 (4 repeats itself)" in err
    for row in rows_of(output):
        assert row["caption"].split() == ["dog"] * 12 and row["problem"] == REPEATS and "retried" not in row
        assert row["strategy"] == "greedy max_tokens=12"
    status, out, err = run(*arguments)
    assert status == 0 and "degenerate captions" not in err
    for row in rows_of(output):
        assert row["retried"] == REPEATS and "problem" not in row and row["complete"]
        assert row["caption"] in out and not row["strategy"].startswith("greedy")


def test_what_is_degenerate_in_every_way_is_kept(run: Run, looping: str, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    options = ("--min_tokens", 5, "--max_tokens", 5, "--no_repeat_ngram", 1, "--forbidden", "snow", "--beams", 2)
    status, out, err = run("caption", photos, "--model", looping, "--output", output, *options)
    assert status == 0 and len(out.splitlines()) == 4
    assert "degenerate captions: 4 of 4 (4 was cut at the length limit)" in err
    assert all(row["problem"] == CUT and "retried" not in row for row in rows_of(output))


def test_tokens_are_written_where_asked_for(run: Run, model: str, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    arguments = ("caption", photos / "red.png", "--model", model, "--max_tokens", 6)
    assert run(*arguments, "--output", output, "--tokens")[0] == 0
    (row,) = rows_of(output)
    product = math.prod(probability for _, probability in row["tokens"])
    assert 0 < len(row["tokens"]) <= 6 and product == pytest.approx(math.exp(row["log_probability"]), abs=1e-3)
    assert [text for text, _ in row["tokens"] if text != "<end>"]
    assert run(*arguments, "--output", output)[0] == 0 and "tokens" not in rows_of(output)[0]
    status, out, err = run(*arguments, "--tokens")
    assert (status, out, err.count("\n")) == (2, "", 1) and "--tokens acts with --output or --json alone" in err


def test_several_captions_are_printed_and_written(run: Run, model: str, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    options = ("--captions", 2, "--beams", 4, "--retry", "false")
    status, out, _ = run("caption", photos, "--model", model, "--output", output, *options)
    printed = [line.split("\t") for line in out.splitlines()]
    rows = rows_of(output)
    assert status == 0 and len(printed) == 8
    for row, first, second in zip(rows, printed[::2], printed[1::2], strict=True):
        assert [first, second] == [
            [row["source"], row["caption"]],
            [row["source"], row["alternatives"][0]["caption"]],
        ]
        assert len(row["alternatives"]) == 1 and row["alternatives"][0]["score"] <= row["score"]


def test_a_draft_changes_no_caption(run: Run, model: str, looping: str, photos: Path) -> None:
    arguments = ("caption", photos, "--model", model, "--strategy", "greedy", "--retry", "false")
    plain, drafted = run(*arguments), run(*arguments, "--draft", looping)
    assert plain[0] == drafted[0] == 0 and plain[1] == drafted[1]


class Terminal(io.StringIO):
    """Stands for a terminal; keeps what is flushed to it, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.shown.append(self.getvalue())


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes standard output and standard error one terminal."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def written_live(shown: list[str], start: str) -> list[str]:
    """What a terminal showed of a caption after each piece."""
    return [text.removeprefix(start) for text in dict.fromkeys(shown) if text.startswith(start)]


def test_one_caption_is_shown_as_it_is_written(
    run: Run, model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal(monkeypatch)
    photo, live, apart = photos / "red.png", tmp_path / "live.jsonl", tmp_path / "apart.jsonl"
    arguments = ("caption", photo, "--model", model, "--prompt", "a photo", "--retry", "false")
    assert run(*arguments, "--output", live)[0] == 0
    (row,) = rows_of(live)
    states = written_live(terminal.shown, f"{photo}\t")
    assert states[:2] == ["", "a photo"] and len(states) > 4
    assert any(row["caption"] == state for state in states)
    assert all(row["caption"].startswith(state) for state in states if len(state) <= len(row["caption"]))
    assert terminal.getvalue().count(row["caption"]) == 1
    assert "Captions" not in terminal.getvalue()  # no bar among the pieces
    monkeypatch.setattr(Terminal, "isatty", lambda terminal: False)
    assert run(*arguments, "--output", apart)[0] == 0
    assert rows_of(apart) == [row]


def test_another_try_follows_a_degenerate_caption_that_was_shown(
    run: Run, looping: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal(monkeypatch)
    photo, output = photos / "red.png", tmp_path / "captions.jsonl"
    assert run("caption", photo, "--model", looping, "--output", output, *LOOPING)[0] == 0
    (row,) = rows_of(output)
    loop = " ".join(["dog"] * 12)
    assert terminal.getvalue().startswith(f"{photo}\t{loop}\nthat {REPEATS}; another try:\n{photo}\t{row['caption']}\n")
    assert row["retried"] == REPEATS


@pytest.mark.parametrize(
    "options", [("--captions", 2), ("--strategy", "sample", "--best_of", 3), ("--json",), ("--strategy", "greedy")]
)
def test_what_can_not_be_shown_live_is_shown_at_the_end(
    run: Run, model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...]
) -> None:
    terminal = on_terminal(monkeypatch)
    streams: list[object] = []
    monkeypatch.setattr(command.Captioner, "live", lambda *arguments: streams.append(arguments))
    draft = ("--draft", model) if options[-1] == "greedy" else ()
    assert run("caption", photos / "red.png", "--model", model, "--retry", "false", *options, *draft)[0] == 0
    assert not streams and "red.png" in terminal.getvalue()


def test_captions_go_to_a_file_though_a_bar_is_on_the_terminal(
    run: Run, model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    status, out, _ = run("caption", photos, "--model", model, "--max_tokens", 3)
    assert status == 0 and len(out.splitlines()) == 4
    assert "Captions" in screen.getvalue() and "4/4" in screen.getvalue() and "red.png" not in screen.getvalue()


def test_reading_ahead_keeps_order_and_counts(
    run_json: Callable[..., tuple[int, dict[str, Any]]], model: str, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):  # large and small in turn, so that they are decoded out of order
        size = (700, 600) if number % 2 else (8, 8)
        path = folder / f"{number:02d}.png"
        Image.new("RGB", size, (6 * number, 40, 40)).save(path)
        if number % 5 == 3:
            path.write_bytes(path.read_bytes()[:30])
    options = ("--model", model, "--batch_size", 7, "--max_tokens", 2, "--beams", 1, "--retry", "false")
    status, result = run_json("caption", folder, *options)
    good = [f"{number:02d}" for number in range(40) if number % 5 != 3]
    assert status == 1 and [row["key"] for row in result["captions"]] == good
    assert (result["used"], result["rejected"]) == (32, 8)
    bad = sorted(rejection["key"] for rejection in result["rejections"])
    assert bad == [f"{number:02d}" for number in range(40) if number % 5 == 3]


def test_no_thread_outlives_an_interrupted_run(
    run: Run, model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Captioner, "all", interrupted)
    before = threading.active_count()
    assert run("caption", photos, "--model", model)[0] == 130
    assert threading.active_count() == before
