"""The LightningModule that trains a vision-language model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm.checkpoints.backbones import load_stem_weights
from mm.checkpoints.directory import Loaded, special_tokens
from mm.checkpoints.resolve import find_tokenizer, load_vision_language
from mm.checkpoints.starting import start_from_parts
from mm.data.datamodule import CaptionData
from mm.data.dataset import Batch
from mm.data.shard_data import Watch, unwatched
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import Preprocessing, to_pixels
from mm.errors import OptionError
from mm.models import Architecture, HybridViT, Parts, build
from mm.models.freezing import freeze
from mm.training.attention import fast_attention
from mm.training.base import Training
from mm.training.losses import Losses, caption_loss, contrastive_loss, hard_negatives, matching_loss, similarities
from mm.training.optimizer import OptimizerSettings
from mm.training.validation import Validation, ValidationRun


class VisionLanguageTraining(Training):
    """Trains captioning, the shared space and matching together, ITC + ITM + LM, as far as the model does them.

    Args:
        architecture: what to build, where neither ``parts`` nor ``init`` is given.
        parts: any vision encoder with any text decoder to build, each random or from a checkpoint.
        init: a model to start from, by any name that ``mm.load`` takes.
        tokenizer: a ``tokenizer.json`` or a model for its tokenizer, where ``init`` gives no model; None for that of
            the pretrained text part, or mm-tiny's.
        frozen: parts that are never trained: ``vision``, ``text_encoder``, ``text_decoder``, or ``language_model`` for
            the decoder but for what sees the image.
        frozen_stages: stages of the stem of ``init``, from the first, that are never trained: -1 for all, None for
            those that weren't before.
        vision_weights: pretrained weights for the vision encoder, where ``init`` gives no model: ``timm``, an
            installed package of weights or a file.
        losses: what is minimized. Those that the model has no part for are left out.
        optimizer: AdamW and its schedule.
        validation: what is measured.
        vision_frozen_epochs: epochs in which the pretrained vision weights stay as they are.
        features: a folder to keep the features of stages that are never trained in, so that they are computed once;
            None to compute them in every step.
        seed: what dropout and hard negatives depend on, with the step.

    Raises:
        OptionError: an option is out of range.
        UsageError: the architecture can't be built, or weights aren't there.
        CheckpointError: a model, tokenizer or weights can't be read.
    """

    def __init__(
        self,
        architecture: Architecture = Architecture(),
        parts: Parts | None = None,
        init: str | None = None,
        tokenizer: str | None = None,
        frozen: Sequence[str] = (),
        frozen_stages: int | None = None,
        vision_weights: str | None = None,
        losses: Losses = Losses(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        validation: Validation = Validation(),
        vision_frozen_epochs: int = 0,
        features: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        if vision_frozen_epochs < 0:
            raise OptionError(f"model.vision_frozen_epochs must be at least 0, not {vision_frozen_epochs}")
        self.losses = losses
        self.validation = validation
        self.vision_frozen_epochs = vision_frozen_epochs
        self.features = features
        loaded = self._start(architecture, parts, init, tokenizer, vision_weights, frozen_stages)
        self.architecture, self.tokenizer, self.model = loaded.architecture, loaded.tokenizer, loaded.model.train()
        self.preprocessing, self.family = loaded.preprocessing, loaded.family
        if frozen_stages is not None:
            self._freeze_stages(frozen_stages)
        self.frozen = tuple(frozen)
        freeze(self.model, self.frozen)
        self.active = self._possible(losses)
        self._run: ValidationRun | None = None

    def _start(
        self,
        architecture: Architecture,
        parts: Parts | None,
        init: str | None,
        tokenizer: str | None,
        vision_weights: str | None,
        frozen_stages: int | None,
    ) -> Loaded:
        """Gives the model that training begins with."""
        if init is not None:
            if parts is not None:
                raise OptionError("model.init gives a whole model, and model.parts builds one; give one of them")
            for name, value in {"tokenizer": tokenizer, "vision_weights": vision_weights}.items():
                if value is not None:
                    raise OptionError(f"model.{name} is for a model without model.init, which has its own")
            return load_vision_language(init)
        if frozen_stages is not None:
            raise OptionError(
                "model.frozen_stages is for a model given as model.init; set model.architecture.frozen_stages"
            )
        torch.manual_seed(self.seed)
        if parts is not None and vision_weights is not None and "checkpoint" in parts.vision:
            raise OptionError("model.vision_weights: model.parts.vision has those of its checkpoint")
        if parts is not None:
            loaded = start_from_parts(parts, tokenizer)
            name = str(loaded.architecture.vision.get("name"))
        else:
            words = Tokenizer.read(find_tokenizer(tokenizer or "mm-tiny"))
            loaded = Loaded(build(architecture, len(words), special_tokens(words)), words, architecture, "")
            name = architecture.vision
        if vision_weights is not None:
            load_stem_weights(loaded.model.vision, name, vision_weights)
        return loaded

    def _possible(self, losses: Losses) -> Losses:
        """Gives the losses without those that the model has no part for.

        Raises:
            OptionError: none is left.
        """
        able = self.model.capabilities
        needs = {"captioning": "caption", "contrastive": "embed", "matching": "match"}
        given: Any = {name: getattr(losses, name) if need in able else 0.0 for name, need in needs.items()}
        if not any(given.values()):
            can = " and ".join(name for name, need in needs.items() if need in able)
            if not can:
                raise OptionError(
                    f"a model that can {', '.join(able)} isn't trained here: mm fit trains those that caption, embed "
                    "or match"
                )
            raise OptionError(f"model.losses leaves nothing to train: this model can learn {can}")
        return replace(losses, **given)

    def _freeze_stages(self, stages: int) -> None:
        if not isinstance(self.model.vision, HybridViT):
            raise OptionError("model.frozen_stages needs a model whose vision encoder is a hybrid ViT")
        if stages < -1:
            raise OptionError(f"model.frozen_stages must be at least -1, not {stages}")
        self.model.vision.stem.freeze(stages)
        self.architecture = replace(self.architecture, frozen_stages=stages)

    @property
    def best_figure(self) -> str:
        """The validation figure that says which weights are best."""
        return "val/CIDEr" if "caption" in self.model.capabilities else "val/text_to_image_R@10"

    @property
    def transform(self) -> Preprocessing:
        """How images become the pixels that the model takes."""
        return self.preprocessing or Preprocessing(self.architecture.image_size)

    @property
    def pretrained(self) -> torch.nn.Module:
        """The part of the vision encoder whose weights come from elsewhere."""
        vision = self.model.vision
        return vision.stem if isinstance(vision, HybridViT) else vision

    def attach(self, data: CaptionData, progress: Watch = unwatched) -> None:
        """Gives the data what depends on the model.

        Args:
            data: where training and validation images come from.
            progress: shows how far a long check is.

        Raises:
            OptionError: the model can't write captions in the language of validation.
        """
        if "caption" in self.model.capabilities and self.validation.language not in self.tokenizer.languages:
            known = ", ".join(self.tokenizer.languages)
            raise OptionError(
                f"validation.language {self.validation.language!r} is unknown; the tokenizer knows {known}"
            )
        language = self.validation.language
        data.attach(self.tokenizer, self.transform, language, progress, keeps_features=self.features is not None)

    def setup(self, stage: str) -> None:
        """Checks that captions fit the model.

        Raises:
            OptionError: they are longer.
        """
        if stage == "fit" and self._data().max_tokens > self._room:
            raise OptionError(
                f"data.max_tokens {self._data().max_tokens} must be at most {self._room}: the model has positions for "
                "no more tokens beside the special ones"
            )

    @property
    def _room(self) -> int:
        """The most tokens of a caption, special tokens not counted."""
        rooms = [] if self.model.text_decoder is None else [self.model.caption_room]
        return min([*rooms, *([self.model.text_room] if self.model.embeds else [])])

    def on_fit_start(self) -> None:
        """Computes the features that are kept."""
        if self.features is None:
            return
        vision, data = self.model.vision, self._data()
        if not isinstance(vision, HybridViT) or not vision.stem.frozen_stages:
            raise OptionError(
                "model.features needs a hybrid ViT with architecture.frozen_stages above 0, or model.frozen_stages "
                "where model.init gives the model"
            )
        frozen = vision.stem.stages[: vision.stem.frozen_stages].state_dict()
        parts = [vision.normalize.mean, vision.normalize.std, *frozen.values()]
        identity = hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()
        from mm.progress import progress

        with torch.inference_mode(), progress("Features of frozen stages", "views") as update:
            data.keep_features(
                Path(self.features),
                identity,
                lambda images: vision.frozen(to_pixels(images).to(self.device)),
                update,
            )

    def _data(self) -> CaptionData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, CaptionData)
        return data

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the step a function of its number, so that resuming repeats it; thaws the vision weights in time."""
        super().on_train_batch_start(batch, batch_idx)
        vision = self.model.vision
        trained = vision.stem.stages[vision.stem.frozen_stages :] if isinstance(vision, HybridViT) else vision
        if "vision" not in self.frozen:
            trained.requires_grad_(self.current_epoch >= self.vision_frozen_epochs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the weighted sum of the losses of a batch of ``TrainingSet.collate``."""
        with fast_attention(self.device):
            losses = self.batch_losses(batch)
        total = torch.stack([getattr(self.active, name) * loss for name, loss in losses.items()]).sum()
        count = len(batch["index"])
        self.log("train/loss", total, prog_bar=True, batch_size=count)
        for name, loss in losses.items():
            self.log(f"train/{name}", loss, batch_size=count)
        if "contrastive" in losses:
            self.log("train/temperature", 1 / self.model.logit_scale.exp(), batch_size=count)
        return total

    def batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes each loss that counts, unweighted, by its name in ``Losses``."""
        model, rows = self.model, batch["rows"]
        kept = batch.get("features")
        images = model.image_tokens(to_pixels(batch["pixels"])) if kept is None else model.vision_tokens(kept)
        tokens, padding = batch["tokens"], batch["padding"]
        groups = [(slice(i, j), tokens[i:j, :length], padding[i:j, :length]) for i, j, length in batch["groups"]]
        result: dict[str, Tensor] = {}
        if self.active.captioning:
            result["captioning"] = self._captioning_loss(images, batch, groups)
        if self.active.contrastive or self.active.matching:
            image_vectors = model.image_embedding(images)
            text_vectors = torch.cat([model.text_embedding(ids, real) for _, ids, real in groups])
            same = batch["index"][:, None] == batch["index"][rows][None, :]
            scale = model.logit_scale.exp().clamp(max=100)
            if self.active.contrastive:
                result["contrastive"] = contrastive_loss(image_vectors, text_vectors, same, scale)
            if self.active.matching:
                similarity = similarities(image_vectors, text_vectors, scale)
                result["matching"] = self._matching_loss(images, rows, tokens, padding, similarity, same)
        return result

    def _captioning_loss(self, images: Tensor, batch: Batch, groups: Sequence[tuple[slice, Tensor, Tensor]]) -> Tensor:
        """Predicts every caption from its image: (B, P, D) image tokens, and captions in groups of similar length."""
        model = self.model
        about = model.about(images)
        logits, targets = [], []
        for group, ids, real in groups:
            logits.append(model.caption_logits(about.of(batch["rows"][group]), batch["languages"][group], ids, real))
            targets.append(model.caption_targets(ids, real, batch["complete"][group]))
        return caption_loss(torch.cat(logits), torch.cat(targets), self.active.smoothing)

    def _matching_loss(
        self, images: Tensor, rows: Tensor, tokens: Tensor, padding: Tensor, similarity: Tensor, same: Tensor
    ) -> Tensor:
        """Tells some captions' own images, and their own captions, from hard negatives."""
        model = self.model
        chosen = torch.randperm(len(rows), device=rows.device)[: self.active.match_pairs or len(images)]
        wrong_image, wrong_text = hard_negatives(similarity[rows[chosen]][:, chosen], same[rows[chosen]][:, chosen])
        image = rows[torch.cat([chosen, chosen[wrong_image], chosen])]
        text = torch.cat([chosen, chosen, chosen[wrong_text]])
        matched = torch.arange(len(text), device=text.device) < len(chosen)
        right = same[image, text] == matched  # there is no negative where all chosen captions are of one image
        image, text, matched = image[right], text[right], matched[right]
        context = model.encoder.keys_values(images).rows(image)
        return matching_loss(model.match_logits(context, tokens[text], padding[text]), matched)

    def on_validation_epoch_start(self) -> None:
        """Begins a pass."""
        v = self.validation
        self._run = ValidationRun(self.model, self.tokenizer, v.language, v.generation, v.caption_images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Embeds and captions a batch of ``EvaluationSet.collate``."""
        assert self._run is not None
        self._run.add(to_pixels(batch["pixels"]), batch["keys"], batch["captions"])

    def report(self, split: str) -> None:
        """Logs the metrics and a picture of photos with their captions."""
        assert self._run is not None
        metrics = self._run.metrics()
        for name, value in metrics.items():
            self.log(f"{split}/{name.replace(' ', '_')}", value, prog_bar=name in ("CIDEr", "text to image R@10"))
        picture, folder = self._run.picture(), self.trainer.log_dir  # which all ranks have to ask for
        if picture is not None and self.trainer.is_global_zero:
            for logger in self.loggers:
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "add_image"):
                    image = np.asarray(picture)
                    experiment.add_image(f"{split}/captions", image, self.global_step, dataformats="HWC")
            if folder:
                pictures = Path(folder) / "pictures"
                pictures.mkdir(parents=True, exist_ok=True)
                picture.save(pictures / f"{split}-{self.global_step:06d}.png")
        self._run = None
