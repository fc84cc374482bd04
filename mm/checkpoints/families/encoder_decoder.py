"""T5, BART and mBART: an encoder and a decoder that sees what it gives."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from mm.checkpoints.convert import ACTIVATION_NAMES, Converted, HubFolder, Names, Settings, Source, layer, same
from mm.checkpoints.weights import read_json
from mm.models import TextParts

T5_UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""A relative bias of cross-attention that old checkpoints of T5 hold and that no version ever used."""

T5_NETWORKS = {name: (mine, False) for name, mine in ACTIVATION_NAMES.items()}
T5_NETWORKS |= {f"gated-{name}": (mine, True) for name, mine in ACTIVATION_NAMES.items()}
T5_NETWORKS["gated-gelu"] = ("gelu_tanh", True)
"""The activation of T5's feed-forward networks and whether they are gated, by ``feed_forward_proj``."""

_CODE = re.compile(r"([a-z]{2,3})_[A-Z]{2}", re.ASCII)


class _Tables(NamedTuple):
    """Which (V, D) tensors of a checkpoint the encoder's and the decoder's embedding and the map to logits are.

    Args:
        encoder: name of the encoder's token embedding.
        decoder: name of the decoder's.
        head: name of the map to logits.
        repeats: names of the tensors that equal another.
    """

    encoder: str
    decoder: str
    head: str
    repeats: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """Whether encoder and decoder share their token embedding."""
        return self.encoder == self.decoder

    @property
    def tied(self) -> bool:
        """Whether logits come from the decoder's token embedding."""
        return self.head == self.decoder

    def names(self) -> Names:
        """Gives the sources of the embeddings and of the map to logits."""
        names = {"encoder.embedding.weight": same(self.encoder)}
        if not self.shared:
            names["decoder.embedding.weight"] = same(self.decoder)
        if not self.tied:
            names["decoder.head.weight"] = same(self.head)
        return names


def _tables(hub: HubFolder, prefix: str) -> _Tables:
    """Finds out which tables of tokens are one and the same.

    The weights say it: those that are missing, or equal to the first that is there, are that one. Configurations of T5
    don't, since ``tie_word_embeddings`` stands for the scale of the logits in some of them.

    Args:
        hub: the checkpoint.
        prefix: what the names of the model's tensors begin with: ``model.``, or nothing.
    """
    parts = [f"{prefix}encoder.embed_tokens.weight", f"{prefix}decoder.embed_tokens.weight", "lm_head.weight"]
    names = [f"{prefix}shared.weight", *parts]
    first = next((name for name in names if name in hub.weights), names[0])
    there = [name for name in names if name in hub.weights and name != first]
    repeats = [name for name in there if torch.equal(hub.weights[name], hub.weights[first])]
    own = [name if name in there and name not in repeats else first for name in parts]
    if first not in own:
        repeats.append(first)  # the shared table of a checkpoint that shares nothing
    return _Tables(own[0], own[1], own[2], tuple(repeats))


def t5_numbers(config: Settings) -> dict[str, Any]:
    """Gives the numbers of the ``t5`` preset that encoder and decoder have in common, from T5's configuration."""
    known = config.one_of("feed_forward_proj", "relu", T5_NETWORKS)
    activation, gated = T5_NETWORKS[known]
    return {
        "preset": "t5",
        "vocabulary": config.get("vocab_size", 32128),
        "width": config.get("d_model", 512),
        "heads": config.get("num_heads", 8),
        "blocks": config.get("num_layers", 6),
        "hidden": config.get("d_ff", 2048),
        "head_width": config.get("d_kv", 64),
        "max_tokens": config.get("n_positions", 512),
        "activation": activation,
        "gated": gated,
        "buckets": config.get("relative_attention_num_buckets", 32),
        "furthest": config.get("relative_attention_max_distance", 128),
        "eps": config.get("layer_norm_epsilon", 1e-6),
        "dropout": config.get("dropout_rate", 0.1),
    }


def t5_names(own: str, blocks: int, *, gated: bool, cross: bool = False) -> Names:
    """Gives the sources of T5's encoder or decoder, without embedding and map to logits.

    Args:
        own: ``encoder`` or ``decoder``, in mm and in the checkpoint.
        blocks: their number.
        gated: whether feed-forward networks are.
        cross: whether blocks have cross-attention.
    """
    first = f"{own}.block.0.layer.0.SelfAttention"
    names = {f"{own}.relative.weight": same(f"{first}.relative_attention_bias.weight")}
    attentions = {"attention": "SelfAttention"} | ({"cross_attention": "EncDecAttention"} if cross else {})
    maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    for number in range(blocks):
        mine, other = f"{own}.blocks.{number}", f"{own}.block.{number}.layer"
        for place, (attention, called) in enumerate(attentions.items()):
            for projection in ("query", "key", "value", "output"):
                theirs = f"{other}.{place}.{called}.{projection[0]}"
                names |= layer(f"{mine}.{attention}.{projection}", theirs, bias=False)
            names |= layer(f"{mine}.{attention}_norm", f"{other}.{place}.layer_norm", bias=False)
        last = f"{other}.{len(attentions)}"
        for linear, called in maps.items():
            names |= layer(f"{mine}.feed_forward.{linear}", f"{last}.DenseReluDense.{called}", bias=False)
        names |= layer(f"{mine}.feed_forward_norm", f"{last}.layer_norm", bias=False)
    return names | layer(f"{own}.norm", f"{own}.final_layer_norm", bias=False)


def convert_t5(hub: HubFolder) -> Converted:
    """Converts a ``T5ForConditionalGeneration`` of version 1.0 or 1.1.

    Version 1.0 scales hidden states before they become logits; ``scale_decoder_outputs`` says so, and where it is
    missing a ``tie_word_embeddings`` that isn't false.
    """
    tables, numbers = _tables(hub, ""), t5_numbers(hub.config)
    scaled = hub.config.get("scale_decoder_outputs", hub.config.get("tie_word_embeddings", True))
    blocks = hub.config.get("num_decoder_layers", numbers["blocks"])
    decoder = numbers | {"blocks": blocks, "tied": tables.tied, "scaled": scaled}
    names = tables.names() | t5_names("encoder", numbers["blocks"], gated=numbers["gated"])
    names |= t5_names("decoder", blocks, gated=numbers["gated"], cross=True)
    family = "T5 v1.1" if numbers["gated"] else "T5"
    return Converted(family, _parts(numbers, decoder, tables), names, _special(hub), (*T5_UNUSED, *tables.repeats))


def bart_numbers(config: Settings, side: str, *, pre_norm: bool) -> dict[str, Any]:
    """Gives the numbers of the ``bart`` preset from a configuration of BART's or mBART's.

    Args:
        config: the configuration.
        side: ``encoder`` or ``decoder``.
        pre_norm: whether blocks are normalized first.
    """
    width = config.get("d_model", 1024)
    return {
        "preset": "bart",
        "vocabulary": config.get("vocab_size", 50265),
        "width": width,
        "heads": config.get(f"{side}_attention_heads", 16),
        "blocks": config.get(f"{side}_layers", 12),
        "hidden": config.get(f"{side}_ffn_dim", 4096),
        "max_tokens": config.get("max_position_embeddings", 1024),
        "pre_norm": pre_norm,
        "embedding_scale": width**0.5 if config.get("scale_embedding", False) else 1.0,
        "activation": config.activation("activation_function", "gelu"),
        "dropout": config.get("dropout", 0.1),
    }


def bart_names(own: str, theirs: str, blocks: int, *, pre_norm: bool, cross: bool = False) -> Names:
    """Gives the sources of BART's or mBART's encoder or decoder, without embedding and map to logits.

    Args:
        own: name of the text transformer in mm.
        theirs: its name in the checkpoint.
        blocks: their number.
        pre_norm: whether blocks are normalized first, and what comes out in the end.
        cross: whether blocks have cross-attention.
    """
    # The first two rows of the table belong to no position.
    names = {f"{own}.positions": Source((f"{theirs}.embed_positions.weight",), lambda table: table[2:])}
    names |= layer(f"{own}.embedding_norm", f"{theirs}.layernorm_embedding")
    attentions = {"attention": "self_attn"} | ({"cross_attention": "encoder_attn"} if cross else {})
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    for number in range(blocks):
        mine, other = f"{own}.blocks.{number}", f"{theirs}.layers.{number}"
        for attention, called in attentions.items():
            for projection, linear in projections.items():
                names |= layer(f"{mine}.{attention}.{projection}", f"{other}.{called}.{linear}")
            names |= layer(f"{mine}.{attention}_norm", f"{other}.{called}_layer_norm")
        names |= layer(f"{mine}.feed_forward.up", f"{other}.fc1")
        names |= layer(f"{mine}.feed_forward.down", f"{other}.fc2")
        names |= layer(f"{mine}.feed_forward_norm", f"{other}.final_layer_norm")
    return names | (layer(f"{own}.norm", f"{theirs}.layer_norm") if pre_norm else {})


def convert_bart(hub: HubFolder) -> Converted:
    """Converts a ``BartForConditionalGeneration``."""
    return _convert_bart(hub, "BART", _special(hub), pre_norm=False)


def convert_mbart(hub: HubFolder) -> Converted:
    """Converts an ``MBartForConditionalGeneration``, whose tokenizer has a token for each language."""
    return _convert_bart(hub, "mBART", _special(hub, _language_tokens(hub)), pre_norm=True)


def _convert_bart(hub: HubFolder, family: str, special: dict[str, Any], *, pre_norm: bool) -> Converted:
    tables = _tables(hub, "model.")
    encoder, decoder = (bart_numbers(hub.config, side, pre_norm=pre_norm) for side in ("encoder", "decoder"))
    names = tables.names() | {"decoder.head.bias": _logits_bias(hub, tables)}
    for side, numbers in (("encoder", encoder), ("decoder", decoder)):
        cross = side == "decoder"
        names |= bart_names(side, f"model.{side}", numbers["blocks"], pre_norm=pre_norm, cross=cross)
    parts = _parts(encoder, decoder | {"tied": tables.tied}, tables)
    return Converted(family, parts, names, special, tables.repeats)


def _logits_bias(hub: HubFolder, tables: _Tables) -> Source:
    """Gives the source of the bias of logits, which is zero where a checkpoint has none."""
    if "final_logits_bias" in hub.weights:
        return Source(("final_logits_bias",), lambda bias: bias[0])
    return Source((tables.head,), lambda table: table.new_zeros(len(table)))


def _parts(encoder: dict[str, Any], decoder: dict[str, Any], tables: _Tables) -> TextParts:
    return TextParts(encoder, decoder, share_embedding=tables.shared)


def _language_tokens(hub: HubFolder) -> dict[str, int]:
    """Finds the tokens of a tokenizer that stand for languages, such as ``zh_CN``; by language code."""
    description = read_json(hub.folder / "tokenizer.json")
    added, model = description.get("added_tokens"), description.get("model")
    tokens = [(t.get("content"), t.get("id")) for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        tokens += vocabulary.items()
    elif isinstance(vocabulary, list):
        tokens += [(piece[0], number) for number, piece in enumerate(vocabulary) if isinstance(piece, list) and piece]
    languages: dict[str, int] = {}
    for name, number in tokens:
        if isinstance(name, str) and type(number) is int and (code := _CODE.fullmatch(name)):
            languages.setdefault(code.group(1), number)
    return languages


def _special(hub: HubFolder, languages: dict[str, int] | None = None) -> dict[str, Any]:
    """Gives the ids of special tokens, of which the first one or two begin what the decoder writes.

    A text begins with ``decoder_start_token_id``, behind which ``forced_bos_token_id`` follows where there is one. Of
    mBART's languages one takes the place of that one; without it, that of the first, if the first is a language.

    Args:
        hub: the checkpoint.
        languages: the tokens that stand for languages, by language code; empty or None for a model without such tokens.
    """
    start, forced = hub.token_or_none("decoder_start_token_id"), hub.token_or_none("forced_bos_token_id")
    if not languages:
        if start is None:
            start = hub.token_or_none("bos_token_id")
        begin = hub.token("decoder_start_token_id") if start is None else start
        start, languages = (None, {"en": begin}) if forced is None else (begin, {"en": forced})
    elif forced is None and start in languages.values():
        start = None
    return {
        "padding": hub.token("pad_token_id"),
        "end": hub.token("eos_token_id"),
        "embed": None,
        "match": None,
        "languages": languages,
        "close": None,
        "start": start,
    }
