"""BERT and RoBERTa, and the layers of BERT that BLIP and GIT are made of."""

from __future__ import annotations

from typing import Any

from mm.checkpoints.convert import Converted, HubFolder, Names, Settings, Source, layer, same
from mm.models import TextParts

UNUSED = ("*.position_ids", "*.token_type_ids", "*.pooler.*", "cls.seq_relationship.*")


def bert_numbers(config: Settings, *, max_tokens: int | None = None) -> dict[str, Any]:
    """Gives the numbers of the ``bert`` preset from a configuration of BERT's kind."""
    config.one_of("position_embedding_type", "absolute", ("absolute",))
    return {
        "preset": "bert",
        "vocabulary": config.get("vocab_size", 30522),
        "width": config.get("hidden_size", 768),
        "heads": config.get("num_attention_heads", 12),
        "blocks": config.get("num_hidden_layers", 12),
        "hidden": config.get("intermediate_size", 3072),
        "max_tokens": max_tokens or config.get("max_position_embeddings", 512),
        "activation": config.activation("hidden_act", "gelu"),
        "eps": config.get("layer_norm_eps", 1e-12),
        "dropout": config.get("hidden_dropout_prob", 0.1),
    }


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
    names[f"{own}.positions"] = Source(positions, lambda table, *kinds: sum((k[0] for k in kinds), table[first:]))
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


def _output(hub: HubFolder, head: str, embedding: str) -> tuple[bool, Names, dict[str, str]]:
    """Gives whether logits come from the token embedding, the sources of their map, and what repeats other tensors.

    Args:
        hub: the checkpoint.
        head: name of the module that has ``bias`` and ``decoder``.
        embedding: name of the token embedding.
    """
    if hub.config.get("tie_word_embeddings", True):
        copies = {f"{head}.decoder.bias": f"{head}.bias", f"{head}.decoder.weight": f"{embedding}.weight"}
        return True, {"encoder.head.bias": same(f"{head}.bias")}, copies
    return False, layer("encoder.head", f"{head}.decoder"), {}


def convert_bert(hub: HubFolder) -> Converted:
    """Converts a ``BertForMaskedLM``."""
    tied, output, copies = _output(hub, "cls.predictions", "bert.embeddings.word_embeddings")
    numbers = bert_numbers(hub.config) | {"tied": tied}
    names = bert_embeddings("encoder", "bert.embeddings") | bert_blocks("encoder", "bert.encoder", numbers["blocks"])
    names |= layer("encoder.head.transform.map", "cls.predictions.transform.dense")
    names |= layer("encoder.head.transform.norm", "cls.predictions.transform.LayerNorm")
    unused = UNUSED if tied else (*UNUSED, "cls.predictions.bias")
    return Converted("BERT", TextParts(encoder=numbers), names | output, _special(hub, 0), unused, copies)


def convert_roberta(hub: HubFolder) -> Converted:
    """Converts a ``RobertaForMaskedLM``, whose positions begin behind that of the padding token."""
    first = hub.config.get("pad_token_id", 1) + 1
    tied, output, copies = _output(hub, "lm_head", "roberta.embeddings.word_embeddings")
    longest = hub.config.get("max_position_embeddings", 514) - first
    numbers = bert_numbers(hub.config, max_tokens=longest) | {"tied": tied}
    names = bert_embeddings("encoder", "roberta.embeddings", first=first)
    names |= bert_blocks("encoder", "roberta.encoder", numbers["blocks"])
    names |= layer("encoder.head.transform.map", "lm_head.dense")
    names |= layer("encoder.head.transform.norm", "lm_head.layer_norm")
    unused = UNUSED if tied else (*UNUSED, "lm_head.bias")
    return Converted("RoBERTa", TextParts(encoder=numbers), names | output, _special(hub, 1), unused, copies)


def _special(hub: HubFolder, padding: int) -> dict[str, Any]:
    begin, close = hub.token_or_none("bos_token_id"), hub.token_or_none("eos_token_id")
    padding = hub.config.get("pad_token_id", padding)
    return {"padding": padding, "end": padding if close is None else close, "embed": begin, "match": begin} | {
        "languages": {},
        "close": close,
    }
