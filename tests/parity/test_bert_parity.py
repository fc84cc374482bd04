from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from folders import padded, random_, wordpiece
from safetensors.torch import load_file, save_file

from mm.checkpoints.resolve import load_model

NUMBERS = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
REFERENCES: dict[str, tuple[Any, Any, int]] = {
    "BERT": (transformers.BertConfig, transformers.BertForMaskedLM, 0),
    "RoBERTa": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, 1),
}


@pytest.mark.parametrize("row", REFERENCES)
@pytest.mark.parametrize("tied", [True, False])
def test_masked_language_models(row: str, tied: bool, tmp_path: Path, close: Any) -> None:
    config, kind, padding = REFERENCES[row]
    reference = random_(kind(config(**NUMBERS, pad_token_id=padding, tie_word_embeddings=tied)))
    reference.save_pretrained(tmp_path)
    wordpiece(tmp_path, 60)
    model = load_model(tmp_path).model
    tokens, real = padded(padding=padding)
    with torch.inference_mode():
        for some, mask in ((tokens[:1], real[:1]), (tokens, real)):
            expected = reference(input_ids=some, attention_mask=mask.long()).logits
            ours = model.encoder.logits(model.encoder(some, padding=mask))
            close(row, ours[mask], expected[mask])


def test_norms_of_old_checkpoints_are_called_otherwise(tmp_path: Path, close: Any) -> None:
    reference = random_(transformers.BertForMaskedLM(transformers.BertConfig(**NUMBERS)))
    reference.save_pretrained(tmp_path)
    wordpiece(tmp_path, 60)
    former = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = load_file(tmp_path / "model.safetensors")
    for present, old in former.items():
        weights = {name.replace(present, old): value for name, value in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model, (tokens, _) = load_model(tmp_path).model, padded()
    with torch.inference_mode():
        close("BERT", model.encoder.logits(model.encoder(tokens)), reference(input_ids=tokens).logits)
