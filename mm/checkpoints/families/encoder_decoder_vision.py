"""A ViT or DeiT with a text decoder that sees its tokens by cross-attention: ViT + GPT-2 and the like."""

from __future__ import annotations

from typing import Any, NamedTuple

from mm.checkpoints.convert import Converted, HubFolder, Names, Settings, layer, same
from mm.checkpoints.families.bert import UNUSED, bert_blocks, bert_embeddings, bert_head, bert_numbers
from mm.checkpoints.families.decoders import GPT2_UNUSED, gpt2_names, gpt2_numbers, output_names
from mm.checkpoints.families.vision import vit_numbers, vit_vision
from mm.checkpoints.preprocessing import read_preprocessing
from mm.models import Parts

VISION = {"vit": "ViT", "deit": "DeiT"}
TEXT = {"gpt2": "GPT-2", "bert": "BERT", "roberta": "RoBERTa"}
"""Families of encoders and of decoders, by the ``model_type`` of their configuration."""

VISION_UNUSED = ("encoder.pooler.*", "encoder.embeddings.mask_token")


class _Decoder(NamedTuple):
    """What a checkpoint says of its decoder.

    Args:
        numbers: the description of the part.
        names: for each of its tensors the source.
        unused: patterns of its tensors in the checkpoint that mm has no use for.
        copies: tensors that repeat another, and which.
    """

    numbers: dict[str, Any]
    names: Names
    unused: tuple[str, ...]
    copies: dict[str, str]


def convert_vision_encoder_decoder(hub: HubFolder) -> Converted:
    """Converts a ``VisionEncoderDecoderModel``; a linear map stands between encoder and decoder of different widths."""
    seeing, writing = hub.config.part("encoder"), hub.config.part("decoder")
    kind = seeing.one_of("model_type", "vit", VISION)
    vision, names = _vision(hub, seeing, distilled=kind == "deit")
    decoder = _decoder(writing)
    projected = vision["width"] != decoder.numbers["width"]
    if projected:
        writing.one_of("cross_attention_hidden_size", None, (None,))
        names |= layer("connector.0", "enc_to_dec_proj")
    parts = Parts(vision, decoder.numbers, connector={"preset": "projection"} if projected else None)
    family = f"{VISION[kind]} + {TEXT[writing.values.get('model_type', 'bert')]}"
    unused = (*VISION_UNUSED, *decoder.unused)
    return Converted(family, parts, names | decoder.names, _special(hub, writing), unused, decoder.copies)


def _vision(hub: HubFolder, config: Settings, *, distilled: bool) -> tuple[dict[str, Any], Names]:
    """Gives the numbers and sources of the encoder; DeiT's has a second token beside the class token."""
    _, mean, std = read_preprocessing(hub.folder, config.get("image_size", 224))
    bias = config.get("qkv_bias", True)
    numbers = vit_numbers(config, mean, std, layer_norm_eps=1e-12) | {"bias": bias, "registers": int(distilled)}
    names = vit_vision("encoder", numbers["blocks"], bias=bias)
    if distilled:
        names["vision.model.reg_token"] = same("encoder.embeddings.distillation_token")
    return numbers, names


def _decoder(config: Settings) -> _Decoder:
    config.one_of("is_decoder", True, (True,))
    config.one_of("add_cross_attention", True, (True,))
    kind = config.one_of("model_type", "bert", TEXT)
    tied = config.get("tie_word_embeddings", True)
    own, theirs = "text_decoder", "decoder"
    if kind == "gpt2":
        numbers = gpt2_numbers(config)
        names = gpt2_names(own, f"{theirs}.transformer.", numbers["blocks"], cross=True)
        output, copies = output_names(own, f"{theirs}.lm_head", f"{theirs}.transformer.wte", tied)
        return _Decoder(numbers, names | output, GPT2_UNUSED, copies)
    first = config.get("pad_token_id", 1) + 1 if kind == "roberta" else 0
    longest = config.get("max_position_embeddings", 512) - first
    numbers = bert_numbers(config, max_tokens=longest) | {"tied": tied}
    names = bert_embeddings(own, f"{theirs}.{kind}.embeddings", first=first)
    names |= bert_blocks(own, f"{theirs}.{kind}.encoder", numbers["blocks"], cross=True)
    embedding = f"{theirs}.{kind}.embeddings.word_embeddings"
    if kind == "roberta":
        transform = ("dense", "layer_norm")
        head, unused, copies = bert_head(own, f"{theirs}.lm_head", embedding, tied=tied, transform=transform)
    else:
        head, unused, copies = bert_head(own, f"{theirs}.cls.predictions", embedding, tied=tied)
    return _Decoder(numbers, names | head, (*UNUSED, *unused), copies)


def _special(hub: HubFolder, config: Settings) -> dict[str, Any]:
    """Gives the special tokens: a caption begins with the decoder's first token, which may be the end token too."""
    begin, end = hub.token_or_none("decoder_start_token_id", config), hub.token("eos_token_id", config)
    padding = hub.token_or_none("pad_token_id", config)
    return {
        "padding": end if padding is None else padding,
        "end": end,
        "embed": None,
        "match": None,
        "languages": {"en": hub.token("bos_token_id", config) if begin is None else begin},
        "close": None,
    }
