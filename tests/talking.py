"""Language models small enough to train in a test, and the data and trainers for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import tiny
from running import tokenizer_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from mm.data.dataset import Batch
from mm.data.samples import Sample
from mm.data.shards.writing import write_shards
from mm.data.texts import TextData
from mm.models import TextParts
from mm.training.language import LanguageTraining

SMALL = {"preset": "mm", "width": 32, "heads": 2, "blocks": 1, "max_tokens": 64, "dropout": 0.1}
PARTS = {
    "fill": TextParts(encoder=SMALL),
    "continue": TextParts(decoder=SMALL),
    "translate": TextParts(encoder=SMALL, decoder=SMALL, share_embedding=True),
}
ENGLISH = ["a", "red", "green", "blue", "white", "black", "yellow", "grey", "purple", "wall", "all", "of", "it", "is"]


class RecordedLanguage(LanguageTraining):
    """Notes every step: its number, its samples and its loss; calls ``during`` in the middle of each."""

    during: Callable[[int], None] = staticmethod(lambda step: None)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: list[tuple[int, list[int], float]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.during(self.global_step)
        self.steps.append((self.global_step, batch["index"].tolist(), float(loss.detach())))
        return loss


def talking(folder: Path, learns: str, **options: Any) -> RecordedLanguage:
    """A small language model in training."""
    defaults: dict[str, Any] = {"architecture": PARTS[learns], "tokenizer": tokenizer_file(folder)}
    if learns == "translate":
        defaults["target"] = "zh"
    return RecordedLanguage(**(defaults | options))


def text_data(folder: Path, **options: Any) -> TextData:
    """Captions of fourteen pictures to train on and of six to validate on, made where they aren't there yet."""
    for name, count in (("train", 14), ("val", 6)):
        if not (folder / name).exists():
            tiny.shards(folder / name, count)
    sources = {name: str(folder / name) for name in ("train", "val")}
    return TextData(**(sources | {"batch_size": 4, "val_batch_size": 4} | options))


def texts(folder: Path, captions: Sequence[Mapping[str, Sequence[str]]]) -> str:
    """Writes a shard of samples with these captions."""
    image = tiny.encode(tiny.picture("red"))
    samples = [
        Sample(str(number), "made", image, {code: list(some) for code, some in known.items()})
        for number, known in enumerate(captions)
    ]
    write_shards(samples, folder)
    return str(folder)


def fit_texts(trainer: L.Trainer, module: LanguageTraining, data: TextData, last: bool = False) -> None:
    """Trains, as ``mm fit`` does."""
    module.attach(data)
    trainer.fit(module, datamodule=data, ckpt_path="last" if last else None, weights_only=True)


def word_tokenizer(folder: Path) -> None:
    """Writes a ``tokenizer.json`` in BERT's layout of whole English words, which puts [CLS] and [SEP] around a text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = {name: number for number, name in enumerate([*special, *ENGLISH])}
    backend = Backend(models.WordPiece(names, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
