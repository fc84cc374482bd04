from __future__ import annotations

import io
import sys

import pytest

from mm.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_count_and_unit_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("Counting", "photos") as update:
        for done in range(1, 5):
            update(done, 4)
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "Counting" in text and "4/4" in text and "photos" in text


def test_nothing_is_written_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Counting") as update:
        update(1, None)
        update(2, 4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_what_is_printed_goes_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress("Counting", shown=shown) as update:
        print("one, ", end="", flush=True)
        update(1, 1)
        assert capsys.readouterr().out == "one, "
    assert ("Counting" in sys.stderr.getvalue()) == shown  # type: ignore[attr-defined]


def test_an_unknown_total_can_become_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress("Counting") as update:
        update(3)
        update(3, 3)
    assert "3/3" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_errors_pass_through() -> None:
    with pytest.raises(KeyboardInterrupt), progress("Counting") as update:
        update(1, 2)
        raise KeyboardInterrupt
