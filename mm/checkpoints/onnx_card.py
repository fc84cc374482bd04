"""What the README.md beside ONNX files says: how they are used from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = """# {name}

Image and text embeddings of one shared space, of a model of the family {family}: the dot product of an image's and a
text's vector says how well they fit.

- `image.onnx` maps `pixels`, (B, 3, {size}, {size}) float32 in [0, 1], to `vectors`, (B, {width}) float32 of length 1.
- `text.onnx` maps `tokens`, (B, T) int64, and `padding`, (B, T) bool and true at real tokens, to `vectors` likewise; T
  is at most {room}.

Pixels are shifted and scaled, and special tokens put around texts, within the files. After `pip install numpy
onnxruntime pillow tokenizers`, in this folder:

```python
import numpy as np
from onnxruntime import InferenceSession
from PIL import Image
from tokenizers import Tokenizer

image_tower, text_tower = InferenceSession("image.onnx"), InferenceSession("text.onnx")
tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.encode_special_tokens = True


def square(image):
    image = image.convert("RGB")
    shortest = min(image.size)
    width, height = {scaled}
    left, top = (width - {size}) // 2, (height - {size}) // 2
    image = image.resize((width, height), Image.Resampling.{filter})
    return np.asarray(image.crop((left, top, left + {size}, top + {size})))


def embed_images(images):
    pixels = np.stack([square(image) for image in images]).transpose(0, 3, 1, 2)
    return image_tower.run(None, {{"pixels": pixels.astype(np.float32) / 255}})[0]


def clean(text):
    {clean}


def embed_texts(texts):
    rows = [tokenizer.encode(clean(text), add_special_tokens=False).ids[:{room}] for text in texts]
    lengths = np.array([len(row) for row in rows])
    padding = np.arange(max(1, lengths.max())) < lengths[:, None]
    tokens = np.full(padding.shape, {padding}, np.int64)
    tokens[padding] = np.concatenate(rows)
    return text_tower.run(None, {{"tokens": tokens, "padding": padding}})[0]
```
"""
SCALED = {"stretch": "{target}, {target}", "shortest": "({target} * side // shortest for side in image.size)"}
CLEANED = {
    "caption": 'return " ".join(text.split()).rstrip(".。").rstrip() or text',
    "whitespace": 'return " ".join(text.split())',
    "lower": 'return " ".join(text.split()).lower()',
    "canonicalize": """from string import punctuation

    return " ".join("".join(c for c in text.replace("_", " ") if c not in punctuation).lower().split())""",
    None: "return text",
}


def onnx_card(name: str, config: Mapping[str, Any]) -> str:
    """Gives the text of ``README.md``.

    Args:
        name: what the model is called.
        config: what ``config.json`` says.
    """
    image, text = config["image"], config["text"]
    return CARD.format(
        name=name,
        family=config["family"],
        width=config["embedding_width"],
        size=image["size"],
        scaled=SCALED[image["resize"]].format(target=image["scaled"] or image["size"]),
        filter=image["filter"].upper(),
        room=text["max_tokens"],
        padding=text["padding"],
        clean=CLEANED[text["clean"]],
    )
