"""METEOR and SPICE, which run in Java through the package pycocoevalcap."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mm.errors import MMError, OptionError, UsageError
from mm.metrics.tokenize import ptb_tokenize

_INSTALL_PACKAGE = "pip install 'mm[metrics]'"
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def meteor(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> float:
    """METEOR 1.5 of English captions, over the whole corpus.

    Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language", WMT 2014.

    Args:
        references: image key to its reference captions, untokenized, at least one each.
        candidates: image key to its generated caption, untokenized; the same keys.

    Returns:
        The score in [0, 1].

    Raises:
        UsageError: if Java or pycocoevalcap is missing.
        MMError: if the Java program fails.
    """
    require_java_metrics(["METEOR"])
    from pycocoevalcap.meteor.meteor import Meteor

    return _run("METEOR", Meteor, references, candidates)


def spice(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> float:
    """SPICE of English captions, the mean over images.

    Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation", ECCV 2016.

    Args:
        references: image key to its reference captions, untokenized, at least one each.
        candidates: image key to its generated caption, untokenized; the same keys.

    Returns:
        The score in [0, 1].

    Raises:
        UsageError: if Java, pycocoevalcap or the CoreNLP jars that SPICE needs are missing.
        MMError: if the Java program fails.
    """
    require_java_metrics(["SPICE"])
    from pycocoevalcap.spice.spice import Spice

    return _run("SPICE", Spice, references, candidates)


JAVA_METRICS: dict[str, Callable[[Mapping[str, Sequence[str]], Mapping[str, str]], float]] = {
    "METEOR": meteor,
    "SPICE": spice,
}


def require_java_metrics(names: Sequence[str], language: str = "en") -> None:
    """Check that metrics can run here, without running them.

    Args:
        names: any of "METEOR" and "SPICE".
        language: the language of the captions.

    Raises:
        OptionError: if a name is unknown, or the language isn't English.
        UsageError: if Java, pycocoevalcap or the CoreNLP jars that SPICE needs are missing.
    """
    if isinstance(names, str):
        names = [names]
    for name in names:
        if name not in JAVA_METRICS:
            raise OptionError(f"unknown Java metric {name!r}: choose from {', '.join(JAVA_METRICS)}")
        if language != "en":
            raise OptionError(f"{name} scores English captions only, not {language!r}: leave it out")
        if shutil.which("java") is None:
            raise UsageError(f"{name} needs Java, and no `java` is on the PATH: install a Java runtime (17 works)")
        directory = _package_directory()
        if directory is None:
            raise UsageError(f"{name} needs the package pycocoevalcap, which isn't installed: {_INSTALL_PACKAGE}")
        if name == "SPICE":
            missing = [jar for jar in _SPICE_JARS if not (directory / "spice" / "lib" / jar).is_file()]
            if missing:
                raise UsageError(
                    f"SPICE needs {' and '.join(missing)}, which pycocoevalcap doesn't ship: download them with "
                    "`python -m pycocoevalcap.spice.get_stanford_models` (about 400 MB)"
                )


def _package_directory() -> Path | None:
    spec = find_spec("pycocoevalcap")
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def _run(
    name: str, make_scorer: Callable[[], Any], references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]
) -> float:
    # Keys become numbers: they go into a command or a file of the Java program.
    tokenized_references = {i: [_plain(text) for text in texts] for i, texts in enumerate(references.values())}
    tokenized_candidates = {i: [_plain(candidates[key])] for i, key in enumerate(references)}
    scorer: Any = make_scorer()
    try:
        score, _ = scorer.compute_score(tokenized_references, tokenized_candidates)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise MMError(
            f"the Java program of {name} gave no score ({error}): check that `java -version` works (METEOR runs with "
            "Java 8 to 17, SPICE was made for Java 8) and that there is memory for it (METEOR 2 GB, SPICE 8 GB)"
        ) from error
    finally:
        # The METEOR scorer leaves its lock held when interrupted, and would wait for it for ever when it is deleted.
        lock = getattr(scorer, "lock", None)
        if lock is not None and lock.locked():
            lock.release()
    return float(score)


def _plain(text: str) -> str:
    """The caption as spaced tokens, without the separator of METEOR's protocol."""
    return " ".join(token for token in ptb_tokenize(text) if "|||" not in token)
