"""Small random BLIPs of transformers, and what they and mm make of the same images and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from folders import padded, random_, wordpiece
from PIL import Image
from torch import Tensor

from mm.generation import GenerationConfig
from mm.models import VisionLanguageModel

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
PHOTOS = [SAMPLES / f"{name}.jpg" for name in ("cat", "rocket", "coffee")]
PROMPTS = ["", "a photo of", "the dog runs"]
QUESTIONS = ["the dog ?", "a photo of two cats on red grass.", "snow"]
BEGIN, CLS, SEP = 60, 2, 3
GREEDY = GenerationConfig(min_tokens=0, max_tokens=12)
TEXT = {
    "vocab_size": 62,  # as in the public checkpoints, the first token of a caption isn't one of the tokenizer's
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "layer_norm_eps": 1e-2,
    "bos_token_id": BEGIN,
    "sep_token_id": SEP,
    "pad_token_id": 0,
    "eos_token_id": 9,
}
VISION = {
    "num_hidden_layers": 2,
    "intermediate_size": 56,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 3e-2,
}
KINDS: dict[str, Any] = {
    "BLIP captioning": transformers.BlipForConditionalGeneration,
    "BLIP retrieval": transformers.BlipForImageTextRetrieval,
    "BLIP question answering": transformers.BlipForQuestionAnswering,
}


class Reference(NamedTuple):
    """A model of transformers, with what prepares its inputs."""

    model: Any
    processor: Any

    def inputs(self, photo: Path, text: str) -> dict[str, Tensor]:
        """A photo and a text as the model takes them; no text where it is empty."""
        return dict(self.processor(images=Image.open(photo), text=text or None, return_tensors="pt"))

    def written(self, photo: Path, text: str) -> tuple[list[int], str]:
        """What it writes about a photo, greedily: the ids behind the first up to the end, and the text."""
        ids = self.model.generate(**self.inputs(photo, text), max_new_tokens=GREEDY.max_tokens)[0]
        tokens = ids.tolist()[1:]
        return tokens[: tokens.index(SEP)] if SEP in tokens else tokens, self.processor.decode(
            ids, skip_special_tokens=True
        )


def made(folder: Path, row: str, *, tied: bool = True, seed: int = 0) -> Reference:
    """A small random BLIP, saved with its processor.

    Args:
        folder: where.
        row: which kind.
        tied: whether logits come from the token embedding.
        seed: what the weights depend on.
    """
    width = 32 if row == "BLIP question answering" else 40  # answers look at a text, which is as wide as an image there
    config = transformers.BlipConfig(
        text_config=TEXT | {"tie_word_embeddings": tied},
        vision_config=VISION | {"hidden_size": width, "num_attention_heads": width // 8},
        image_text_hidden_size=16,
        logit_scale_init_value=2.0,
        tie_word_embeddings=tied,
    )
    words = transformers.BertTokenizer(wordpiece(folder, BEGIN).get_vocab())
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    reference = Reference(random_(KINDS[row](config), seed), transformers.BlipProcessor(images, words))
    reference.model.save_pretrained(folder)
    reference.processor.save_pretrained(folder)
    return reference


def seen(reference: Reference, rows: int) -> tuple[Tensor, Tensor]:
    """Random pixels in [0, 1], and the same as the reference takes them."""
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))[:rows]
    images = reference.processor.image_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
    return pixels, (pixels - mean) / std


def begun(rows: int) -> tuple[Tensor, Tensor]:
    """Captions of different lengths with their first token, padded on the right."""
    tokens, real = padded()
    tokens[:, 0] = BEGIN
    return tokens[:rows], real[:rows]


def enclosed(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts of different lengths with the tokens around them and their padding, and without, as mm takes them."""
    tokens, real = padded()
    lengths = real.sum(1)
    tokens[:, 0] = CLS
    tokens[torch.arange(len(tokens)), lengths - 1] = SEP
    inner = torch.arange(tokens.shape[1] - 2)[None] < (lengths - 2)[:, None]
    return tokens[:rows], real[:rows], tokens[:rows, 1:-1], inner[:rows]


@torch.inference_mode()
def logits(row: str, reference: Reference, model: VisionLanguageModel, rows: int) -> tuple[Tensor, Tensor]:
    """What mm and the reference predict of captions and answers at real positions, or of matches; in this order."""
    pixels, given = seen(reference, rows)
    tokens, real = begun(rows)
    ids, mask, inner, padding = enclosed(rows)
    image = model.image_tokens(pixels)
    if row == "BLIP retrieval":
        context = model.encoder.keys_values(image)
        matches = reference.model(ids, given, attention_mask=mask.long()).itm_score
        return model.match_logits(context, inner, padding), matches
    if row == "BLIP captioning":
        about = model.about(image)
        expected = reference.model(given, tokens, attention_mask=real.long()).logits
    else:
        about = model.about_question(image, inner, padding)
        questions = [row[kept] for row, kept in zip(ids, mask, strict=True)]
        expected = torch.cat(
            [_answered(reference, q, *rest) for q, *rest in zip(questions, given, tokens, real, strict=True)]
        )
    hidden = model.decoder(tokens, padding=real, context=about.context)
    return model.decoder.logits(hidden)[real], expected[real]


def _answered(reference: Reference, question: Tensor, image: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
    """What the reference predicts of one answer. It is asked one question at a time: its answers see the padding."""
    kept: list[Tensor] = []
    hook = reference.model.text_decoder.register_forward_hook(lambda *call: kept.append(call[-1].logits))
    reference.model(question[None], image[None], tokens[None], decoder_attention_mask=real[None].long())
    hook.remove()
    return kept[0]


def used(model: Any) -> list[Any]:
    """All that a loaded model can say of the photos."""
    results: list[Any] = []
    if "caption" in model.capabilities:
        results += [caption.text for caption in model.caption(PHOTOS, prompt=PROMPTS, config=GREEDY)]
    if "ask" in model.capabilities:
        results += [answer.text for answer in model.ask(PHOTOS, QUESTIONS, config=GREEDY)]
    if "match" in model.capabilities:
        tables = model.match(PHOTOS, QUESTIONS), model.embed_images(PHOTOS), model.embed_text(QUESTIONS)
        results += [table.round(4).tolist() for table in tables]
    return results
