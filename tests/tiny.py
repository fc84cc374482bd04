"""Models, tokenizers and pictures small enough to train in a test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from mm.data.samples import Sample
from mm.data.shards.writing import write_shards
from mm.data.tokenizer import Tokenizer
from mm.models import Architecture, Conditioning, Head, SpecialTokens, TextTransformer, VisionLanguageModel, build
from mm.models.presets import block

COLOURS = {
    "red": ((220, 20, 20), "红色"),
    "green": ((20, 200, 20), "绿色"),
    "blue": ((20, 20, 220), "蓝色"),
    "white": ((250, 250, 250), "白色"),
    "black": ((5, 5, 5), "黑色"),
    "yellow": ((240, 230, 20), "黄色"),
    "grey": ((128, 128, 128), "灰色"),
    "purple": ((150, 20, 180), "紫色"),
}
ARCHITECTURE = Architecture(
    vision="test_convnext",
    hybrid_blocks=1,
    image_size=32,
    width=32,
    heads=2,
    encoder_blocks=1,
    decoder_blocks=1,
    embedding_width=16,
    max_tokens=32,
    dropout=0.1,
)


def captions(name: str) -> dict[str, list[str]]:
    """Captions of a colour."""
    chinese = COLOURS[name][1]
    return {"en": [f"a {name} wall", f"all of it is {name}"], "zh": [f"一面{chinese}的墙"]}


def tokenizer(vocabulary: int = 300) -> Tokenizer:
    """Learned from the captions of all colours."""
    texts = [text for name in COLOURS for known in captions(name).values() for text in known]
    return Tokenizer.train(texts, vocabulary, ["en", "zh"])


def special(words: Tokenizer) -> SpecialTokens:
    """The ids of a tokenizer's special tokens."""
    return SpecialTokens(words.padding, words.end, words.embed, words.match, dict(words.languages))


def model(words: Tokenizer, architecture: Architecture = ARCHITECTURE, seed: int = 0) -> VisionLanguageModel:
    """A model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return build(architecture, len(words), special(words)).eval()


def decoder(vocabulary: int, end: int, seed: int = 0) -> TextTransformer:
    """A random text decoder whose choices are far from even, and whose captions end at different lengths."""
    torch.manual_seed(seed)
    embedding = torch.nn.Embedding(vocabulary, 32)
    torch.nn.init.normal_(embedding.weight, std=0.4)
    stack = [block(32, 4, context_width=24) for _ in range(2)]
    built = TextTransformer(embedding, stack, 40, "causal", norm=torch.nn.LayerNorm(32), head=Head(vocabulary)).eval()
    with torch.no_grad():
        assert built.positions is not None and built.head is not None and built.head.bias is not None
        built.positions.mul_(100)
        built.head.bias[end] = 2.0
    return built


def about(model: TextTransformer, image_tokens: torch.Tensor) -> Conditioning:
    """What captions of images are about, for a decoder with cross-attention."""
    return Conditioning(len(image_tokens), context=model.keys_values(image_tokens))


class Numbers:
    """Stands for a tokenizer: texts are the numbers of their tokens."""

    open_tokens: frozenset[int] = frozenset()
    open_characters: frozenset[str] = frozenset()

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Turns rows of token ids into texts."""
        return [" ".join(map(str, row)) for row in rows]

    def spellings(self, phrase: str) -> list[list[int]]:
        """Gives the one way in which the numbers of a phrase are written."""
        return [[int(number) for number in re.findall("[0-9]+", phrase)]]


def picture(name: str, size: int = 40) -> Image.Image:
    """A plain picture of a colour."""
    return Image.new("RGB", (size, size), COLOURS[name][0])


def encode(image: Image.Image) -> bytes:
    """A PNG file."""
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shards(folder: Path, count: int, per_shard: int = 1000) -> Path:
    """Writes shards of ``count`` pictures that differ in colour and shade, captioned in English and Chinese."""
    names = list(COLOURS)
    samples = []
    for number in range(count):
        name = names[number % len(names)]
        red, green, blue = (max(0, value - 3 * (number // len(names))) for value in COLOURS[name][0])
        image = encode(Image.new("RGB", (40, 32), (red, green, blue)))
        samples.append(Sample(f"{number:04d}", f"made/{number:04d}", image, captions(name)))
    write_shards(samples, folder, max_samples=per_shard)
    return folder
