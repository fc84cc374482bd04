"""What validation measures: captions and retrieval on held-out images, and a picture to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mm.data.tokenizer import Tokenizer
from mm.errors import OptionError
from mm.generation import GenerationConfig, generate
from mm.generation.ranking import RANKS
from mm.generation.sampling import content_seeds
from mm.generation.stopping import StopStrings
from mm.metrics.captioning import score_captions
from mm.metrics.retrieval import retrieval_metrics
from mm.models import VisionLanguageModel

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Validation:
    """What a validation pass measures.

    Args:
        language: of captions and queries.
        caption_images: images that are captioned; all are embedded.
        generation: how captions are decoded.

    Raises:
        OptionError: no image is to be captioned, or captions can't be ranked as the options say.
    """

    language: str = "en"
    caption_images: int = 200
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        if self.caption_images < 1:
            raise OptionError(f"validation.caption_images must be at least 1, not {self.caption_images}")
        check_ranking(self.generation)


def check_ranking(config: GenerationConfig) -> None:
    """Refuses options of decoding that rank what is found by a look at the images, which validation doesn't take.

    Raises:
        OptionError: they do.
    """
    if config.rank_by not in RANKS:
        raise OptionError(
            f"validation.generation.rank_by {config.rank_by} doesn't act in validation; choose {' or '.join(RANKS)}"
        )


class ValidationRun:
    """Collects one pass over held-out images.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        language: of the captions that are generated and searched with.
        config: how captions are decoded.
        caption_images: how many images are captioned; all are embedded.
        pictures: how many photos the picture shows.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        language: str,
        config: GenerationConfig,
        caption_images: int,
        pictures: int = 8,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.language = language
        self.config = config
        self.caption_images = caption_images
        self.pictures = pictures
        self.writes, self.embeds = (name in model.capabilities for name in ("caption", "embed"))
        self.images: list[Tensor] = []
        self.texts: list[Tensor] = []
        self.references: dict[str, list[str]] = {}
        self.captions: dict[str, str] = {}
        self.photos: list[tuple[Tensor, str]] = []

    def add(self, pixels: Tensor, keys: Sequence[str], captions: Sequence[Mapping[str, Sequence[str]]]) -> None:
        """Embeds a batch of images, and captions those among the first ``caption_images``, as far as the model does.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            keys: of the B images, for messages; several shards may use the same.
            captions: of the B images, by language.
        """
        keys = [f"{number}: {key}" for number, key in enumerate(keys, len(self.references))]
        tokens = self.model.image_tokens(pixels)
        if self.embeds:
            self.images.append(self.model.image_embedding(tokens).float().cpu())
        count = max(0, min(len(keys), self.caption_images - len(self.captions))) if self.writes else 0
        texts = self._caption(tokens[:count], pixels[:count]) if count else []
        for key, text, image in zip(keys, texts, pixels, strict=False):
            self.captions[key] = text
            if len(self.photos) < self.pictures:
                self.photos.append((image.float().cpu(), text))
        for key, known in zip(keys, captions, strict=True):
            self.references[key] = list(known.get(self.language, []))
        # Texts are embedded along with the images: averaged weights are in the model only until the last batch.
        texts = [self.tokenizer.tidy(text) for key in keys for text in self.references[key]]
        if self.embeds:
            self.texts.append(self._embed(texts))

    def _caption(self, tokens: Tensor, pixels: Tensor) -> list[str]:
        language = torch.full((len(tokens),), self.tokenizer.languages[self.language])
        found = generate(
            self.model.decoder,
            self.model.about(tokens),
            self.model.opening(language).tolist(),
            self.config,
            end=self.tokenizer.end,
            fill=self.tokenizer.padding,
            never=self.model.special.image_marks,
            text=self.tokenizer,
            seeds=content_seeds(self.config, (image.float().cpu().numpy().tobytes() for image in pixels)),
        )
        stops = StopStrings(self.config.stop, self.tokenizer)
        return [text for text, _ in stops.decode([caption.tokens for caption in found])]

    def metrics(self) -> dict[str, float]:
        """Computes BLEU, CIDEr and R@k of what was collected; empty without images that have captions."""
        known = {key: texts for key, texts in self.references.items() if texts}
        result: dict[str, float] = {}
        captioned = {key: text for key, text in self.captions.items() if key in known}
        if captioned:
            result |= score_captions({key: known[key] for key in captioned}, captioned, self.language)
        if known and self.embeds:
            rows = [row for row, key in enumerate(self.references) if key in known]
            owner = np.repeat(np.arange(len(known)), [len(texts) for texts in known.values()])
            result |= retrieval_metrics(torch.cat(self.images)[rows], torch.cat(self.texts), owner)
        return result

    def _embed(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        device = self.model.logit_scale.device
        vectors = []
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                rows = self.tokenizer.encode(texts[start : start + batch_size], self.model.text_room)
                tokens, padding = (torch.from_numpy(a).to(device) for a in self.tokenizer.pad(rows))
                vectors.append(self.model.text_embedding(tokens, padding).float().cpu())
        return torch.cat([torch.empty(0, self.model.embedding_width), *vectors])

    def picture(self) -> Image.Image | None:
        """Draws the first photos with their captions under them; None without any."""
        return draw_captions(self.photos) if self.photos else None


def draw_captions(photos: Sequence[tuple[Tensor, str]], columns: int = 4) -> Image.Image:
    """Draws photos in a grid, each with its caption under it.

    Args:
        photos: (3, H, W) pixels in [0, 1] and a caption each.
        columns: photos in a row.
    """
    from PIL import Image, ImageDraw, ImageFont

    size, text_height = 224, 54
    rows = -(-len(photos) // columns)
    sheet = Image.new("RGB", (columns * size, rows * (size + text_height)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for number, (pixels, caption) in enumerate(photos):
        left, top = number % columns * size, number // columns * (size + text_height)
        array = (pixels.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(array).resize((size, size)), (left, top))
        draw.multiline_text((left + 4, top + size + 2), textwrap.fill(caption, 34)[:140], fill="black", font=font)
    return sheet
