"""METEOR and SPICE through Java, and what is said where something is missing."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest

from mm.errors import MMError, UsageError
from mm.metrics import java
from mm.metrics.captioning import score_captions

REFERENCES = {"b": ["A man's dog runs.", "the dog is running"], "a": ["Two ||| cats (black) sit", "kittens on a sofa"]}
CANDIDATES = {"a": "two kittens sit on the sofa", "b": "a dog runs"}


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program named java, and nothing else, on the PATH."""
    program = directory / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


@pytest.mark.slow
def test_meteor_ranks_captions() -> None:
    if shutil.which("java") is None:
        message = "no `java` on the PATH, which METEOR runs in: install a Java runtime"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    good = score_captions(REFERENCES, CANDIDATES, java=["METEOR"])
    assert list(good)[-1] == "METEOR"
    assert 0.3 < good["METEOR"] < 1
    assert java.meteor(REFERENCES, {"b": "", "a": "a red bus"}) < 0.1


@pytest.mark.parametrize("metric", [java.meteor, java.spice])
def test_missing_java(metric, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs Java.*install a Java runtime"):
        metric(REFERENCES, CANDIDATES)


@pytest.mark.parametrize("metric", [java.meteor, java.spice])
def test_missing_package(metric, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pycocoevalcap.*pip install"):
        metric(REFERENCES, CANDIDATES)


def test_spice_without_its_jars_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setattr(java, "_package_directory", lambda: tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: pytest.fail("tried to download"))
    with pytest.raises(UsageError, match=r"stanford-corenlp-3\.6\.0\.jar.*get_stanford_models"):
        java.spice(REFERENCES, CANDIDATES)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_java_that_fails_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(MMError, match="METEOR gave no score") as caught:
        java.meteor(REFERENCES, CANDIDATES)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # waits for ever if the scorer's lock was left held


def test_requirements_can_be_checked_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, monkeypatch, "exit 1")
    java.require_java_metrics(["METEOR"])
    java.require_java_metrics([])
