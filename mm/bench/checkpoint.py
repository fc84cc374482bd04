"""A BLIP with random weights in the hub's layout, which mm and transformers both load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm.bench.peers import require_transformers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
COARSE = 12
"""Side of the patches of noise that random images are made of: finer noise looks the same to an encoder."""

ADDED = ("output.dense", "out_proj", "c_proj")
"""Names of the maps whose output text blocks add, in transformers' BLIP and in open_clip."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a BLIP.

    Args:
        image_size: side of the square input in pixels.
        patch: side of a patch in pixels.
        width: D of image tokens and text tokens.
        heads: attention heads of each block.
        blocks: blocks of the vision encoder, and of the text decoder.
        hidden: width of the feed-forward layers.
        vocabulary: number of tokens V.
    """

    image_size: int
    patch: int
    width: int
    heads: int
    blocks: int
    hidden: int
    vocabulary: int

    @property
    def image_tokens(self) -> int:
        """P: one token for each patch, and the class token."""
        return (self.image_size // self.patch) ** 2 + 1


BASE = Shape(image_size=384, patch=16, width=768, heads=12, blocks=12, hidden=3072, vocabulary=30524)
SMALL = Shape(image_size=48, patch=8, width=64, heads=4, blocks=2, hidden=128, vocabulary=1000)


def write_blip(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Writes a random BLIP captioner with its tokenizer and its preprocessing.

    Args:
        folder: where; it exists.
        shape: its sizes.
        seed: what the weights depend on.

    Raises:
        UsageError: transformers is missing.
    """
    transformers = require_transformers()
    config = transformers.BlipConfig(
        text_config=_text_config(shape), vision_config=_vision_config(shape), image_text_hidden_size=shape.width
    )
    model = transformers.BlipForConditionalGeneration(config)
    randomize(model, seed)
    model.save_pretrained(folder)
    _write_tokenizer(folder, shape.vocabulary - 2)
    preprocessing = {
        "image_processor_type": "BlipImageProcessor",
        "size": {"height": shape.image_size, "width": shape.image_size},
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing), encoding="utf-8")


def _text_config(shape: Shape) -> dict[str, Any]:
    """Gives the decoder's numbers; its first token stands behind the tokenizer's, as in the public checkpoints."""
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "encoder_hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.blocks,
        "intermediate_size": shape.hidden,
        "max_position_embeddings": 512,
        "bos_token_id": shape.vocabulary - 2,
        "sep_token_id": SPECIAL.index("[SEP]"),
        "eos_token_id": SPECIAL.index("[CLS]"),
        "pad_token_id": SPECIAL.index("[PAD]"),
    }


def _vision_config(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.blocks,
        "intermediate_size": shape.hidden,
        "image_size": shape.image_size,
        "patch_size": shape.patch,
    }


@torch.no_grad()
def randomize(model: nn.Module, seed: int, gain: float = 1.5, added: float = 0.1) -> None:
    """Gives a model random weights with which captions differ and no token is chosen by a hair's breadth.

    Args:
        model: whose weights.
        seed: what they depend on.
        gain: standard deviation of a weight times the square root of how many inputs are summed up.
        added: what the weights are multiplied with of the maps whose output text blocks add to what they are given. A
            deep decoder that adds as much as that forgets which token it was given, and repeats one for ever.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    for name, value in model.named_parameters():
        if value.ndim > 1:
            spread = gain / value.shape[1:].numel() ** 0.5
            value.normal_(0.0, spread * (added if any(part in name for part in ADDED) else 1.0), generator=generator)
        else:
            value.normal_(1.0 if id(value) in scales else 0.0, 0.1, generator=generator)


def _write_tokenizer(folder: Path, size: int) -> None:
    """Writes a ``tokenizer.json`` of whole words: the special tokens, then numbered words up to ``size``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    names = [*SPECIAL, *(f"w{number}" for number in range(size - len(SPECIAL)))]
    words = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    words.add_special_tokens(list(SPECIAL))
    words.save(str(folder / "tokenizer.json"))


def random_images(count: int, size: int, seed: int = 1) -> Tensor:
    """Makes ``count`` random images that look different to an encoder: (B, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, COARSE, COARSE), generator=generator).float()
    return nn.functional.interpolate(coarse, size=(size, size), mode="nearest").to(torch.uint8)
