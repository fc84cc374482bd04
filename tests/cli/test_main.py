import os
import subprocess
import sys

import pytest

from mm.cli import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "usage: mm" in out
    assert command in out


@pytest.mark.parametrize("action", ["make", "check"])
def test_help_of_both_shard_actions(run, action):
    status, out, _ = run("shards", action, "--help")
    assert status == 0
    assert f"mm shards {action}" in out


def test_help_lists_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"  {name} " in out for name in COMMANDS)


def test_no_command_shows_the_help_and_fails(run):
    status, out, _ = run()
    assert status == 2
    assert "usage: mm" in out


def test_unknown_command_names_the_known_ones(run):
    status, _, err = run("captoin")
    assert status == 2
    assert err.count("\n") == 1
    assert "'captoin'" in err and "caption" in err


def test_a_message_of_several_lines_is_printed_whole_in_one():
    from mm.cli import one_line
    from mm.errors import ImageError, UsageError

    assert one_line(UsageError("a\nname: doesn't exist")) == "a name: doesn't exist"
    loading = "Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
    assert one_line(ImageError(f"{loading}mm.errors.ImageError: a\nb.png: is cut\n")) == "a b.png: is cut"


def test_version(run):
    import mm

    assert run("--version") == (0, f"mm {mm.__version__}\n", "")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("shards",)])
def test_unknown_option_is_one_line(run, command):
    status, _, err = run(command, "--no-such-option", "1")
    assert status == 2
    assert err.count("\n") == 1
    assert f"mm {command}" in err


def test_a_closed_pipe_is_no_traceback(model, photos):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mm", "caption", photos, "--model", model, "--max_tokens", "3"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1 and "Traceback" not in done.stderr
