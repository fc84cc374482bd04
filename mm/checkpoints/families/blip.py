"""BLIP (arXiv:2201.12086): captioning, retrieval and question answering."""

from __future__ import annotations

from typing import Any

import torch

from mm.checkpoints.convert import Converted, HubFolder, Names, Settings, Source, layer
from mm.checkpoints.families.bert import UNUSED, bert_blocks, bert_embeddings, bert_head, bert_numbers
from mm.checkpoints.families.vision import blip_vision, vit_numbers
from mm.checkpoints.preprocessing import Numbers, read_preprocessing
from mm.checkpoints.weights import read_json
from mm.errors import CheckpointError
from mm.models import Parts

CAPTIONING, RETRIEVAL, ANSWERING = "BLIP captioning", "BLIP retrieval", "BLIP question answering"
HEAD = "text_decoder.cls.predictions"
"""What maps hidden states to logits, in the checkpoint."""
IMAGE_SIZE = 384
"""Side of the square input in pixels where the configuration is silent."""
TEXT_DEFAULTS: dict[str, Any] = {"vocab_size": 30524, "num_attention_heads": 8, "hidden_dropout_prob": 0.0}
"""What text parts take likewise, where that differs from BERT."""


def convert_blip_captioning(hub: HubFolder) -> Converted:
    """Converts a ``BlipForConditionalGeneration``: a vision encoder and a text decoder."""
    return _convert(hub, CAPTIONING)


def convert_blip_retrieval(hub: HubFolder) -> Converted:
    """Converts a ``BlipForImageTextRetrieval``: a vision encoder and a text encoder."""
    return _convert(hub, RETRIEVAL)


def convert_blip_answering(hub: HubFolder) -> Converted:
    """Converts a ``BlipForQuestionAnswering``: a vision encoder, a text encoder and a text decoder."""
    return _convert(hub, ANSWERING)


def blip_parts(family: str, config: Settings, mean: Numbers, std: Numbers) -> Parts:
    """Gives the parts of a BLIP.

    Args:
        family: which of the three.
        config: its whole configuration.
        mean: per-channel mean of pixels, from the checkpoint's preprocessing.
        std: per-channel standard deviation likewise.
    """
    vision = vit_numbers(config.part("vision_config"), mean, std, image_size=IMAGE_SIZE)
    settings = config.part("text_config")
    text = bert_numbers(settings, **TEXT_DEFAULTS)
    tied = any(part.get("tie_word_embeddings", True) for part in (config, settings))
    if family == CAPTIONING:
        return Parts(vision, text_decoder=text | {"tied": tied})
    if family == ANSWERING:
        return Parts(vision, text_decoder=text | {"tied": tied}, text_encoder=text, sees="answer")
    return Parts(
        vision,
        text_encoder=text,
        embedding_width=config.get("image_text_hidden_size", 256),
        image_pooling="first",
        text_pooling="first",
    )


def blip_names(family: str, parts: Parts) -> Names:
    """Gives the sources of a BLIP's tensors, each of them a tensor of the checkpoint as it is.

    Args:
        family: which of the three.
        parts: its parts.
    """
    names = blip_vision("vision_model", parts.vision["blocks"])
    if parts.text_encoder is not None:
        names |= bert_embeddings("text_encoder", "text_encoder.embeddings", types=False)
        names |= bert_blocks("text_encoder", "text_encoder.encoder", parts.text_encoder["blocks"], cross=True)
    if parts.text_decoder is not None:
        names |= bert_embeddings("text_decoder", "text_decoder.bert.embeddings", types=False)
        names |= bert_blocks("text_decoder", "text_decoder.bert.encoder", parts.text_decoder["blocks"], cross=True)
        names |= _head(parts.text_decoder.get("tied", True))[0]
    if family == RETRIEVAL:
        names |= layer("image_projection", "vision_proj") | layer("text_projection", "text_proj")
        names |= layer("match_head", "itm_head")
    return names


def _head(tied: bool) -> tuple[Names, tuple[str, ...], dict[str, str]]:
    embedding = "text_decoder.bert.embeddings.word_embeddings"
    return bert_head("text_decoder", HEAD, embedding, tied=tied)


def _convert(hub: HubFolder, family: str) -> Converted:
    image_size = hub.config.part("vision_config").get("image_size", IMAGE_SIZE)
    _, mean, std = read_preprocessing(hub.folder, image_size)
    parts = blip_parts(family, hub.config, mean, std)
    names = blip_names(family, parts)
    unused: tuple[str, ...] = ()
    copies: dict[str, str] = {}
    if parts.text_decoder is not None:
        _, unused, copies = _head(parts.text_decoder["tied"])
    if family == RETRIEVAL:
        scale = hub.config.get("logit_scale_init_value", 2.6592)
        names["logit_scale"] = Source((), lambda: torch.tensor(scale))
    return Converted(family, parts, names, _special(hub, family), (*UNUSED, *unused), copies)


def _special(hub: HubFolder, family: str) -> dict[str, Any]:
    """Gives the special tokens: a caption or answer begins with the decoder's token, other texts with the tokenizer's.

    Both end as the tokenizer ends a text.
    """
    text = hub.config.part("text_config")
    begin = {} if family == RETRIEVAL else {"en": text.get("bos_token_id", 30522)}
    end = text.get("sep_token_id", 102)
    special = {"padding": text.get("pad_token_id", 0), "end": end, "languages": begin}
    if family == CAPTIONING:
        return special | {"embed": None, "match": None, "close": None}
    first, last = _token(hub, "cls_token", "[CLS]"), _token(hub, "sep_token", "[SEP]")
    return special | {"embed": first, "match": first, "close": last}


def _token(hub: HubFolder, name: str, default: str) -> int:
    """Gives the id of a special token of the tokenizer."""
    path = hub.folder / "tokenizer_config.json"
    token = read_json(path).get(name, default) if path.is_file() else default
    if isinstance(token, dict):
        token = token.get("content")
    if token not in hub.added_tokens:
        raise CheckpointError(
            f"{hub.folder / 'tokenizer.json'}: has no special token {token!r}, which BLIP's texts have ({name})"
        )
    return hub.added_tokens[token]
