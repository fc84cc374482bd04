"""What a language model predicts, and what validation measures of that on held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.data.dataset import Batch
from mm.data.texts import NOTHING
from mm.data.tokenizer import Tokenizer
from mm.errors import OptionError
from mm.generation import GenerationConfig, generate
from mm.generation.sampling import content_seeds
from mm.generation.stopping import StopStrings
from mm.metrics.captioning import score_captions
from mm.metrics.tokenize import LANGUAGES
from mm.models import Conditioning, LanguageModel
from mm.training.validation import check_ranking

SHOWN = 20


@dataclass(frozen=True)
class TextValidation:
    """What a validation pass measures, beside the loss.

    Args:
        translations: texts that are translated, to be scored.
        generation: how texts are decoded.

    Raises:
        OptionError: no text is to be translated, or texts can't be ranked as the options say.
    """

    translations: int = 200
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        if self.translations < 1:
            raise OptionError(f"validation.translations must be at least 1, not {self.translations}")
        check_ranking(self.generation)


def predict(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Predicts what a batch of ``TextSet.collate`` asks for.

    Returns:
        (R, V) logits at the R positions where something is to be predicted, and (R,) int64 ids of what it is.
    """
    tokens, targets = batch["tokens"], batch["targets"]
    asked = targets != NOTHING
    if model.decoder is None:
        assert model.encoder is not None
        hidden = model.encoder(tokens, padding=batch["padding"])
        return model.encoder.logits(hidden[asked]), targets[asked]
    about = about_texts(model, batch, slice(None))
    hidden = model.decoder(tokens, context=about.context)  # padding stands behind the text, where none looks at it
    return model.decoder.logits(hidden[asked]), targets[asked]


def about_texts(model: LanguageModel, batch: Batch, rows: slice) -> Conditioning:
    """Encodes what the decoder writes about: the sources of some texts of a batch, or nothing."""
    if model.encoder is None:
        return Conditioning(len(batch["tokens"][rows]))
    return model.about(batch["source"][rows], batch["source_padding"][rows])


class LanguageRun:
    """Collects one pass over held-out texts.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        target: language that it translates into; None where it doesn't.
        validation: what is measured.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, target: str | None, validation: TextValidation
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.target = target
        self.validation = validation
        self.loss, self.right, self.asked = 0.0, 0, 0
        self.written: list[str] = []
        self.references: list[Sequence[str]] = []
        self.examples: list[dict[str, str]] = []

    def add(self, batch: Batch) -> None:
        """Predicts a batch of ``TextSet.collate``, and writes texts of it."""
        logits, targets = predict(self.model, batch)
        best = logits.argmax(-1)
        self.loss += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
        self.right += int((best == targets).sum())
        self.asked += len(targets)
        if self.target is not None:
            self._translate(batch)
        elif self.model.decoder is not None:
            self._go_on(batch)
        else:
            self._show_filled(batch, best)

    def _translate(self, batch: Batch) -> None:
        assert self.target is not None
        some = slice(max(0, min(len(batch["texts"]), self.validation.translations - len(self.written))))
        texts, references = batch["texts"][some], batch["references"][some]
        written = self._write(batch, some, [self.tokenizer.begin(self.target)] * len(texts))
        self.written += written
        self.references += references
        for text, translation, known in zip(texts, written, references, strict=True):
            self._show(caption=text, translation=translation, references=" / ".join(known))

    def _go_on(self, batch: Batch) -> None:
        """Lets the model continue the first half of some texts."""
        some = slice(max(0, SHOWN - len(self.examples)))
        lengths = (batch["padding"][some].sum(1) + 1) // 2
        prompts = [ids[:length] for ids, length in zip(batch["tokens"][some].tolist(), lengths.tolist(), strict=True)]
        for text, prompt, whole in zip(
            batch["texts"], self.tokenizer.decode(prompts), self._write(batch, some, prompts), strict=False
        ):
            self._show(caption=text, beginning=prompt, continued=whole)

    def _show_filled(self, batch: Batch, best: Tensor) -> None:
        tokens, targets = batch["tokens"], batch["targets"]
        filled = tokens.masked_scatter(targets != NOTHING, best)
        for text, row, guesses, wanted in zip(batch["texts"], batch["padding"], filled, targets, strict=True):
            hidden = self.tokenizer.decode([[number] for number in wanted[wanted != NOTHING].tolist()])
            (guessed,) = self.tokenizer.decode([guesses[row].tolist()])
            self._show(caption=text, hidden=", ".join(hidden), filled=guessed)

    def _show(self, **texts: str) -> None:
        if len(self.examples) < SHOWN:
            self.examples.append(texts)

    def _write(self, batch: Batch, some: slice, prompts: Sequence[Sequence[int]]) -> list[str]:
        if not prompts:
            return []
        assert self.model.decoder is not None
        config = self.validation.generation
        found = generate(
            self.model.decoder,
            about_texts(self.model, batch, some),
            prompts,
            config,
            end=self.tokenizer.end,
            fill=self.tokenizer.padding,
            text=self.tokenizer,
            seeds=content_seeds(config, (text.encode("utf-8", "replace") for text in batch["texts"][some])),
        )
        stops = StopStrings(config.stop, self.tokenizer)
        return [text for text, _ in stops.decode([one.tokens for one in found], [prompt[1:] for prompt in prompts])]

    def metrics(self) -> dict[str, float]:
        """Computes loss, perplexity and accuracy of what was asked for; BLEU and CIDEr of English or Chinese texts."""
        loss = self.loss / max(1, self.asked)
        result = {"loss": loss, "perplexity": float(torch.tensor(loss).exp())}
        result["accuracy"] = self.right / max(1, self.asked)
        if self.written and self.target in LANGUAGES:
            written = {str(number): text for number, text in enumerate(self.written)}
            known = {str(number): texts for number, texts in enumerate(self.references)}
            result |= score_captions(known, written, self.target)
        return result

    def report(self) -> str:
        """Gives some texts with what the model makes of them, to look at."""
        blocks = ("".join(f"{name}: {text}\n" for name, text in example.items()) for example in self.examples)
        return "\n".join(blocks)
