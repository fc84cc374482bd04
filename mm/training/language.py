"""The LightningModule that trains a language model on captions."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.checkpoints.directory import Loaded, special_tokens
from mm.checkpoints.resolve import find_tokenizer, load_model
from mm.data.dataset import Batch
from mm.data.shard_data import Watch, unwatched
from mm.data.texts import Learns, TextData
from mm.data.tokenizer import Tokenizer
from mm.errors import CapabilityError, OptionError
from mm.files import write_whole
from mm.metrics.tokenize import LANGUAGES
from mm.models import LanguageModel, TextParts, build_language
from mm.training.attention import fast_attention
from mm.training.base import Training
from mm.training.language_validation import LanguageRun, TextValidation, predict
from mm.training.optimizer import OptimizerSettings


class LanguageTraining(Training):
    """Trains an encoder to fill in masked tokens, a decoder to continue texts, and both together to translate.

    Args:
        architecture: what to build, where ``init`` gives no model.
        tokenizer: a ``tokenizer.json`` or a model for its tokenizer, where ``init`` gives no model; None for mm-tiny's.
        init: a language model to start from, by any name that ``mm.load`` takes.
        source: language, or languages, of the captions that are read.
        target: language of the captions that are written, where they are translated; None for the only one that the
            model writes. A model that writes a single language may be given another instead.
        smoothing: share of the probability of a target that is spread over the vocabulary.
        optimizer: AdamW and its schedule.
        validation: what is measured.
        seed: what random weights and dropout depend on.

    Raises:
        OptionError: an option is out of range, doesn't fit the model, or ``tokenizer`` is given along with ``init``.
        UsageError: the architecture can't be built.
        CheckpointError: a model or tokenizer can't be read.
    """

    model: LanguageModel

    def __init__(
        self,
        architecture: TextParts | None = None,
        tokenizer: str | None = None,
        init: str | None = None,
        source: str | list[str] = "en",
        target: str | None = None,
        smoothing: float = 0.0,
        optimizer: OptimizerSettings = OptimizerSettings(),
        validation: TextValidation = TextValidation(),
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        if not 0 <= smoothing < 1:
            raise OptionError(f"model.smoothing must be at least 0 and below 1, not {smoothing}")
        self.sources = [source] if isinstance(source, str) else source
        if not self.sources:
            raise OptionError("model.source is empty; give the language of the captions that are read")
        self.smoothing = smoothing
        self.validation = validation
        loaded = self._start(architecture, tokenizer, init)
        self.architecture, self.model = loaded.architecture, loaded.model.train()
        self.preprocessing, self.family = loaded.preprocessing, loaded.family
        self.target = self._target(loaded.tokenizer, target)
        self.tokenizer = self._speaking(loaded.tokenizer)
        self.model.special = special_tokens(self.tokenizer)
        self._run: LanguageRun | None = None

    def _start(self, architecture: TextParts | None, tokenizer: str | None, init: str | None) -> Loaded:
        """Gives the model that training begins with."""
        if init is not None:
            if tokenizer is not None:
                raise OptionError("model.tokenizer is for a model without model.init, which has its own")
            loaded = load_model(init)
            if not isinstance(loaded.model, LanguageModel):
                raise CapabilityError(
                    f"model.init {init} sees images; 'task: text' trains models of text alone, such as BERT and T5"
                )
            return loaded
        if architecture is None:
            raise OptionError("nothing to train: set model.init to a model, or model.architecture to what to build")
        torch.manual_seed(self.seed)
        words = Tokenizer.read(find_tokenizer(tokenizer or "mm-tiny"))
        return Loaded(build_language(architecture, len(words), special_tokens(words)), words, architecture, "")

    def _target(self, tokenizer: Tokenizer, target: str | None) -> str | None:
        """Finds the language that is written, where the model translates."""
        if self.learns != "translate":
            if target is not None:
                raise OptionError(f"model.target {target!r} needs a model that translates, with encoder and decoder")
            return None
        if target is None:
            if len(tokenizer.languages) != 1:
                raise OptionError(
                    f"model.target isn't set: the language to write; the tokenizer knows "
                    f"{', '.join(tokenizer.languages)}"
                )
            (target,) = tokenizer.languages
        if target in self.sources:
            raise OptionError(f"model.target {target!r} is model.source too; give two languages to translate between")
        return target

    def _speaking(self, tokenizer: Tokenizer) -> Tokenizer:
        """Gives the tokenizer with the languages that the model is trained to write.

        Raises:
            OptionError: it doesn't know one of them, or lacks a mask.
        """
        if self.learns == "fill":
            if tokenizer.mask is None:
                raise OptionError(
                    "the tokenizer has no mask token, which an encoder learns to fill in; 'mm tokenizer' makes one "
                    "that has, for model.tokenizer"
                )
            return tokenizer
        option = "source" if self.target is None else "target"
        try:
            return tokenizer.writing(self.sources if self.target is None else [self.target])
        except OptionError as error:
            raise OptionError(f"model.{option}: {error}") from error

    @property
    def learns(self) -> Learns:
        """What the model learns, which follows from the parts that it has."""
        if self.model.decoder is None:
            return "fill"
        return "continue" if self.model.encoder is None else "translate"

    @property
    def best_figure(self) -> str:
        """The validation figure that tells which weights are best."""
        return "val/CIDEr" if self.target in LANGUAGES else "val/accuracy"

    def attach(self, data: TextData, progress: Watch = unwatched) -> None:
        """Gives the data what depends on the model.

        Args:
            data: where training and validation texts come from.
            progress: shows how far a long check is.

        Raises:
            OptionError: texts are longer than the model has positions for.
        """
        room = min(part.max_tokens for part in (self.model.encoder, self.model.decoder) if part is not None)
        if data.max_tokens > room:
            raise OptionError(f"data.max_tokens {data.max_tokens} must be at most {room}, the positions of the model")
        if self.model.decoder is not None:
            prompt = (data.max_tokens + 1) // 2 if self.target is None else len(self.tokenizer.begin(self.target))
            room = self.model.decoder.max_tokens - prompt + 1
            if self.validation.generation.max_tokens > room:
                raise OptionError(
                    f"validation.generation.max_tokens {self.validation.generation.max_tokens} must be at most {room}: "
                    "the model has positions for no more behind what a text begins with"
                )
        data.attach(self.tokenizer, self.learns, self.sources, self.target, progress)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of a batch of ``TextSet.collate``: the mean over all that is to be predicted."""
        with fast_attention(self.device):
            loss = self.batch_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def batch_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy with label smoothing, the mean over all positions where something is to be predicted."""
        logits, targets = predict(self.model, batch)
        total = F.cross_entropy(logits.float(), targets, label_smoothing=self.smoothing, reduction="sum")
        return total / max(1, len(targets))

    def on_validation_epoch_start(self) -> None:
        """Begins a pass."""
        self._run = LanguageRun(self.model, self.tokenizer, self.target, self.validation)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures a batch of ``TextSet.collate``."""
        assert self._run is not None
        self._run.add(batch)

    def report(self, split: str) -> None:
        """Logs the figures, and writes some texts with what the model makes of them."""
        assert self._run is not None
        for name, value in self._run.metrics().items():
            self.log(f"{split}/{name}", value, prog_bar=name in ("loss", self.best_figure.removeprefix("val/")))
        folder = self.trainer.log_dir  # which all ranks have to ask for
        if self.trainer.is_global_zero and folder:
            examples = Path(folder) / "examples"
            examples.mkdir(parents=True, exist_ok=True)
            write_whole(examples / f"{split}-{self.global_step:06d}.txt", self._run.report().encode())
        self._run = None
