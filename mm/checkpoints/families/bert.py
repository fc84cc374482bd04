"""BERT and RoBERTa, and the layers of BERT that BLIP and GIT are made of."""

from __future__ import annotations

from typing import Any

from mm.checkpoints.convert import Converted, HubFolder, Names, Settings, Source, layer, same
from mm.models import TextParts

UNUSED = ("*.position_ids", "*.token_type_ids", "*.pooler.*", "cls.seq_relationship.*")

NUMBERS: dict[str, tuple[str, Any]] = {
    "vocabulary": ("vocab_size", 30522),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "blocks": ("num_hidden_layers", 12),
    "hidden": ("intermediate_size", 3072),
    "max_tokens": ("max_position_embeddings", 512),
    "activation": ("hidden_act", "gelu"),
    "eps": ("layer_norm_eps", 1e-12),
    "dropout": ("hidden_dropout_prob", 0.1),
}
"""Numbers of the ``bert`` preset: what a configuration calls each, and what BERT takes where it is silent."""


def bert_numbers(config: Settings, *, max_tokens: int | None = None, **defaults: Any) -> dict[str, Any]:
    """Gives the numbers of the ``bert`` preset from a configuration of BERT's kind.

    Args:
        config: of BERT or of a text part like it.
        max_tokens: the most tokens of a text; None for what the configuration says.
        defaults: what the family takes where its configuration is silent, by the configuration's names.
    """
    config.one_of("position_embedding_type", "absolute", ("absolute",))
    numbers = {own: config.get(theirs, defaults.get(theirs, usual)) for own, (theirs, usual) in NUMBERS.items()}
    numbers["activation"] = config.activation("hidden_act", "gelu")
    return {"preset": "bert"} | numbers | ({"max_tokens": max_tokens} if max_tokens else {})


def bert_embeddings(own: str, theirs: str, *, types: bool = True, first: int = 0) -> Names:
    """Gives the sources of BERT's embeddings.

    Args:
        own: name of the text transformer in mm.
        theirs: name of the embeddings in the checkpoint.
        types: whether there are token types; all tokens are of the first, which is added to the positions.
        first: the first row of the position table that is used.
    """
    positions: tuple[str, ...] = (f"{theirs}.position_embeddings.weight",)
    if types:
        positions += (f"{theirs}.token_type_embeddings.weight",)
    names = {f"{own}.embedding.weight": same(f"{theirs}.word_embeddings.weight")}
    as_they_are = not types and not first
    names[f"{own}.positions"] = Source(
        positions, None if as_they_are else lambda table, *kinds: sum((k[0] for k in kinds), table[first:])
    )
    return names | layer(f"{own}.embedding_norm", f"{theirs}.LayerNorm")


def bert_blocks(own: str, theirs: str, blocks: int, *, cross: bool = False) -> Names:
    """Gives the sources of BERT's blocks.

    Args:
        own: name of the text transformer in mm.
        theirs: name of the encoder in the checkpoint, which has ``layer``.
        blocks: their number.
        cross: whether they have cross-attention.
    """
    names: Names = {}
    attentions = {"attention": "attention"} | ({"cross_attention": "crossattention"} if cross else {})
    for number in range(blocks):
        mine, other = f"{own}.blocks.{number}", f"{theirs}.layer.{number}"
        for part, called in attentions.items():
            for projection in ("query", "key", "value"):
                names |= layer(f"{mine}.{part}.{projection}", f"{other}.{called}.self.{projection}")
            names |= layer(f"{mine}.{part}.output", f"{other}.{called}.output.dense")
            names |= layer(f"{mine}.{part}_norm", f"{other}.{called}.output.LayerNorm")
        names |= layer(f"{mine}.feed_forward.up", f"{other}.intermediate.dense")
        names |= layer(f"{mine}.feed_forward.down", f"{other}.output.dense")
        names |= layer(f"{mine}.feed_forward_norm", f"{other}.output.LayerNorm")
    return names


def bert_head(
    own: str,
    theirs: str,
    embedding: str,
    *,
    tied: bool,
    transform: tuple[str, str] = ("transform.dense", "transform.LayerNorm"),
) -> tuple[Names, tuple[str, ...], dict[str, str]]:
    """Gives the sources of BERT's map to logits, what it leaves unused, and what repeats other tensors.

    Args:
        own: name of the text transformer in mm.
        theirs: name of the module in the checkpoint that has ``bias`` and ``decoder``.
        embedding: name of the token embedding in the checkpoint.
        tied: whether logits come from that.
        transform: names of the linear map and the norm before it, within that module.
    """
    names = layer(f"{own}.head.transform.map", f"{theirs}.{transform[0]}")
    names |= layer(f"{own}.head.transform.norm", f"{theirs}.{transform[1]}")
    if not tied:
        return names | layer(f"{own}.head", f"{theirs}.decoder"), (f"{theirs}.bias",), {}
    names[f"{own}.head.bias"] = same(f"{theirs}.bias")
    return names, (), {f"{theirs}.decoder.bias": f"{theirs}.bias", f"{theirs}.decoder.weight": f"{embedding}.weight"}


def convert_bert(hub: HubFolder) -> Converted:
    """Converts a ``BertForMaskedLM``."""
    tied = hub.config.get("tie_word_embeddings", True)
    numbers = bert_numbers(hub.config) | {"tied": tied}
    head, unused, copies = bert_head("encoder", "cls.predictions", "bert.embeddings.word_embeddings", tied=tied)
    names = bert_embeddings("encoder", "bert.embeddings") | bert_blocks("encoder", "bert.encoder", numbers["blocks"])
    return Converted("BERT", TextParts(encoder=numbers), names | head, _special(hub, 0), (*UNUSED, *unused), copies)


def convert_roberta(hub: HubFolder) -> Converted:
    """Converts a ``RobertaForMaskedLM``, whose positions begin behind that of the padding token."""
    first = hub.config.get("pad_token_id", 1) + 1
    tied = hub.config.get("tie_word_embeddings", True)
    longest = hub.config.get("max_position_embeddings", 514) - first
    numbers = bert_numbers(hub.config, max_tokens=longest) | {"tied": tied}
    head, unused, copies = bert_head(
        "encoder",
        "lm_head",
        "roberta.embeddings.word_embeddings",
        tied=tied,
        transform=("dense", "layer_norm"),
    )
    names = bert_embeddings("encoder", "roberta.embeddings", first=first)
    names |= bert_blocks("encoder", "roberta.encoder", numbers["blocks"])
    return Converted("RoBERTa", TextParts(encoder=numbers), names | head, _special(hub, 1), (*UNUSED, *unused), copies)


def _special(hub: HubFolder, padding: int) -> dict[str, Any]:
    begin, close = hub.token_or_none("bos_token_id"), hub.token_or_none("eos_token_id")
    padding = hub.config.get("pad_token_id", padding)
    return {"padding": padding, "end": padding if close is None else close, "embed": begin, "match": begin} | {
        "languages": {},
        "close": close,
    }
