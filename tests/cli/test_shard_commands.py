from __future__ import annotations

from collections.abc import Callable


def test_actions_are_explained(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("shards")[0] == 2
    status, out, _ = run("shards", "--help")
    assert status == 0 and all(f"mm shards {action}" in out for action in ("make", "check", "stats"))
    status, _, err = run("shards", "mkae")
    assert status == 2 and "mkae" in err and err.count("\n") == 1
