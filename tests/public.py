"""Public checkpoints, small and random, in the hub's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

transformers.utils.logging.disable_progress_bar()
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tokenizer(folder: Path, size: int) -> None:
    """Writes a ``tokenizer.json`` with so many words."""
    backend = Backend(models.WordLevel({f"w{number}": number for number in range(size)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))


def bert(folder: Path, dtype: torch.dtype = torch.float32, **numbers: Any) -> Any:
    """Writes a BERT whose tokenizer has a word for each row of the embedding, and gives the model."""
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 60, "max_position_embeddings": 24} | numbers
    model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).to(dtype)
    model.save_pretrained(folder)
    write_tokenizer(folder, model.config.vocab_size)
    return model


def blip(folder: Path, kind: Any = transformers.BlipForImageTextRetrieval) -> Any:
    """Writes a BLIP that sees 32 x 32 pixels, and gives the model."""
    torch.manual_seed(0)
    names = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    text = {"vocab_size": len(names) + 2, "bos_token_id": len(names), "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config=SIZES | text | {"eos_token_id": 3, "max_position_embeddings": 24},
        vision_config=SIZES | {"image_size": 32, "patch_size": 8},
        image_text_hidden_size=16,
    )
    words = transformers.BertTokenizer({name: number for number, name in enumerate(names)})
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    model = kind(config).eval()
    model.save_pretrained(folder)
    transformers.BlipProcessor(images, words).save_pretrained(folder)
    return model
