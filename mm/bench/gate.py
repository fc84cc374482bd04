"""`mm bench gate`: whether a reduced precision keeps the quality of a model's captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from mm.bench.measure import median
from mm.bench.peers import OwnModel
from mm.checkpoints.directory import read_config
from mm.errors import UsageError
from mm.files import write_whole
from mm.generation import Generated, GenerationConfig
from mm.metrics.captioning import score_captions
from mm.models.precision import PRECISIONS, Precision

EXACT: Precision = "float32"
LARGEST_DROP = 0.01
"""Of CIDEr, relative: a precision passes below it."""


class Difference(NamedTuple):
    """A caption that isn't the one in float32.

    Args:
        source: the image.
        exact: the caption in float32.
        reduced: the one in reduced precision.
        gap: how much better the former ranks in float32; below 0 where it ranks worse.
    """

    source: str
    exact: str
    reduced: str
    gap: float


@dataclass
class Gate:
    """Captions the same images in several precisions, and compares the captions with those in float32.

    Args:
        models: the same model by precision, in float32 too.
        config: how captions are decoded, by beam search.
        language: of the captions.
    """

    models: Mapping[Precision, OwnModel]
    config: GenerationConfig
    language: str = "en"
    references: list[list[str]] = field(default_factory=list)
    texts: dict[Precision, list[str]] = field(default_factory=dict)
    differences: dict[Precision, list[Difference]] = field(default_factory=dict)

    def add(self, sources: Sequence[str], images: Sequence[Image], references: Sequence[list[str]]) -> None:
        """Captions images in every precision.

        Args:
            sources: what the images are called.
            images: decoded, as many as go together.
            references: the known captions of each.
        """
        self.references += references
        words = self.models[EXACT].pipeline.tokenizer
        pixels = self.models[EXACT].pixels(images)
        written = {name: model.write(model.see(pixels), self.config) for name, model in self.models.items()}
        texts = {name: words.decode([one.tokens for one in captions]) for name, captions in written.items()}
        for name, captions in written.items():
            self.texts.setdefault(name, []).extend(texts[name])
            differing = self.differences.setdefault(name, [])
            for row, (exact, reduced) in enumerate(zip(written[EXACT], captions, strict=True)):
                if exact.tokens != reduced.tokens:
                    gap = self._gap(pixels[row : row + 1], exact, reduced)
                    differing.append(Difference(sources[row], texts[EXACT][row], texts[name][row], gap))

    def _gap(self, image: Tensor, exact: Generated, reduced: Generated) -> float:
        """Gives how much better the caption in float32 ranks than another one, both of them scored in float32."""
        model = self.models[EXACT]
        about = model.see(image)
        words = model.pipeline.tokenizer
        first = torch.tensor([words.languages[self.language]], device=image.device)
        ranks = []
        for one in (exact, reduced):
            tokens = torch.tensor([one.tokens], dtype=torch.int64, device=image.device)
            with torch.inference_mode():
                logits = model.pipeline.model.caption_logits(about, first, tokens, torch.ones_like(tokens).bool())
            ids = [*one.tokens, words.end] if one.ended else one.tokens
            ranks.append(rank(logits.log_softmax(-1), model.opening, ids, self.config))
        return ranks[0] - ranks[1]

    def figures(self) -> list[dict[str, Any]]:
        """Gives for each precision CIDEr, how much lower it is than in float32, and how the captions differ."""
        scores = {precision: self._cider(texts) for precision, texts in self.texts.items()}
        return [self._row(precision, scores[precision], scores[EXACT]) for precision in self.texts]

    def _row(self, precision: Precision, cider: float, exact: float) -> dict[str, Any]:
        gaps = [abs(one.gap) for one in self.differences[precision]]
        drop = (exact - cider) / exact if exact else 0.0
        return {
            "precision": precision,
            "CIDEr": cider,
            "drop": drop,
            "captions": len(self.references),
            "identical": 1 - len(gaps) / len(self.references),
            "median_gap": median(gaps) if gaps else None,
            "largest_gap": max(gaps, default=None),
            "passes": drop < LARGEST_DROP,
        }

    def _cider(self, texts: Sequence[str]) -> float:
        references = {str(number): known for number, known in enumerate(self.references)}
        candidates = {str(number): text for number, text in enumerate(texts)}
        return score_captions(references, candidates, self.language)["CIDEr"]


def rank(likely: Tensor, opening: Sequence[int], ids: Sequence[int], config: GenerationConfig) -> float:
    """Gives what beam search ranks a caption by: its log-probability, that of tokens which were there before times the
    repetition penalty, over its length to the power of the length penalty.

    Args:
        likely: (T, V) log-probabilities of the token at each place.
        opening: the tokens that come before.
        ids: the caption's T tokens, the end token included; T may be one less than ``likely`` has.
        config: the penalties.
    """
    seen, total = set(opening), 0.0
    for place, token in enumerate(ids):
        total += float(likely[place, token]) * (config.repetition_penalty if token in seen else 1.0)
        seen.add(token)
    return total / len(ids) ** config.length_penalty


def save_precisions(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes into the ``config.json`` of a model directory which precisions the model is good in, beside float32.

    Args:
        folder: the model directory.
        rows: what ``Gate.figures`` gave. What is said of other precisions stays as it is.

    Returns:
        What it says now.

    Raises:
        CheckpointError: it isn't a model directory of mm.
        OutputError: it can't be written.
    """
    config = read_config(folder)
    passed = {row["precision"]: row["passes"] for row in rows}
    known = config.get("precisions", [])
    good = [one for one in PRECISIONS if one != EXACT and passed.get(one, one in known)]
    config["precisions"] = good
    write_whole(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
    return list(good)


def require_directory(name: str) -> Path:
    """Gives the model directory that a name is of.

    Raises:
        UsageError: it isn't one.
        CheckpointError: it isn't one of mm.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise UsageError(f"--save writes into a model directory, and {name!r} isn't one; give --model a folder")
    read_config(folder)
    return folder
