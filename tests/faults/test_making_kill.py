"""``mm shards make`` survives kill -9 at any moment: the same command goes on, and ends with the very same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from making import content, mixed_sources

from mm.data.making.journal import JOURNAL_NAME

KILLS = 8
MOST = 8  # shards that a process finishes before it waits for its end, which then comes in time, however late

# ``mm``, which waits for a signal after so many shards.
WAITING = f"""
import signal, sys

from mm.cli import main
from mm.data.making.journal import Journal

finished, add = [], Journal.add


def add_and_wait(journal, record):
    add(journal, record)
    finished.append(record)
    if len(finished) == {MOST}:
        signal.pause()


Journal.add = add_and_wait
sys.exit(main())
"""

OPTIONS = "--max_side=32 --languages=en --drop_duplicates --splits=train=0.7,val=0.3 --max_samples=3 --json"


def command(sources: list[Path], out: Path, waits: bool = False) -> list[str]:
    """``mm shards make`` with options under which all that can become of an item comes about."""
    program = ["-c", WAITING] if waits else ["-m", "mm"]
    return [sys.executable, *program, "shards", "make", *map(str, sources), str(out), *OPTIONS.split()]


def figures(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed)
    found["rejections"].sort(key=str)
    return found


def begun(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    """Waits until a process has written so many lines of its journal, or has ended."""
    journal = out / JOURNAL_NAME
    while process.poll() is None:
        try:
            if journal.read_bytes().count(b"\n") >= lines:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_many_times(tmp_path: Path) -> None:
    sources = mixed_sources(tmp_path, photos=200)
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = subprocess.run(command(sources, whole), capture_output=True, text=True)
    assert expected.returncode == 1, expected.stderr  # some samples are rejected
    chance, lines = random.Random(0), 1
    for _ in range(KILLS):
        with subprocess.Popen(command(sources, out, waits=True), stdout=subprocess.PIPE, text=True) as process:
            begun(process, out, lines)
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        written = (out / JOURNAL_NAME).read_bytes().count(b"\n")
        lines = written + chance.randrange(0, 4)
        assert not list(out.rglob("manifest.json"))
        for shard in out.rglob("*.tar"):
            assert shard.read_bytes() == (whole / shard.relative_to(out)).read_bytes()
    last = subprocess.run(command(sources, out), capture_output=True, text=True)
    assert lines > KILLS
    assert content(out) == content(whole)
    assert figures(last.stdout) == figures(expected.stdout) and last.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_end(tmp_path: Path, number: int, status: int) -> None:
    sources = mixed_sources(tmp_path, photos=200)
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command(sources, whole), capture_output=True, check=False)
    pipe = subprocess.PIPE
    with subprocess.Popen(command(sources, out, waits=True), stdout=pipe, stderr=pipe, text=True) as process:
        begun(process, out, 5)
        process.send_signal(number)
        printed, said = process.communicate()
    assert (process.returncode, printed) == (status, "")
    assert said.count("\n") == 1 and "the same command goes on from there" in said
    assert list(out.rglob("*.tar")) and not list(out.rglob(".*.tmp"))
    subprocess.run(command(sources, out), capture_output=True, check=False)
    assert content(out) == content(whole)
