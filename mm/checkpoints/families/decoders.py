"""GPT-2, LLaMA and Falcon: decoders alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mm.checkpoints.convert import Converted, HubFolder, Names, Settings, Source, layer, part, same, transposed
from mm.errors import CheckpointError
from mm.models import TextParts

GPT2_UNUSED = ("*.attn.bias", "*.attn.masked_bias", "*.crossattention.bias", "*.crossattention.masked_bias")
"""Patterns of tensors of GPT-2 that are masks, not weights."""

FREQUENCIES = ("*.inv_freq",)
"""Patterns of tensors that hold the wavelengths of rotary positions."""


def gpt2_numbers(config: Settings) -> dict[str, Any]:
    """Gives the numbers of the ``gpt2`` preset from a configuration of GPT-2's kind.

    Raises:
        CheckpointError: scores are scaled otherwise than mm scales them, or a number has a wrong type.
    """
    config.one_of("scale_attn_weights", True, (True,))
    config.one_of("scale_attn_by_inverse_layer_idx", False, (False,))
    width = config.get("n_embd", 768)
    return {
        "preset": "gpt2",
        "vocabulary": config.get("vocab_size", 50257),
        "width": width,
        "heads": config.get("n_head", 12),
        "blocks": config.get("n_layer", 12),
        "hidden": config.get("n_inner", 4 * width),
        "max_tokens": config.get("n_positions", 1024),
        "activation": config.activation("activation_function", "gelu_new"),
        "eps": config.get("layer_norm_epsilon", 1e-5),
        "dropout": config.get("resid_pdrop", 0.1),
        "tied": config.get("tie_word_embeddings", True),
    }


def gpt2_names(own: str, theirs: str, blocks: int, *, cross: bool = False) -> Names:
    """Gives the sources of GPT-2, without the map to logits.

    Args:
        own: name of the text transformer in mm.
        theirs: what its names in the checkpoint begin with: ``transformer.``, or nothing.
        blocks: their number.
        cross: whether they have cross-attention.
    """
    names = {f"{own}.embedding.weight": same(f"{theirs}wte.weight"), f"{own}.positions": same(f"{theirs}wpe.weight")}
    for number in range(blocks):
        mine, other = f"{own}.blocks.{number}", f"{theirs}h.{number}"
        fused = f"{other}.attn.c_attn"
        for place, projection in enumerate(("query", "key", "value")):
            names |= _split(f"{mine}.attention.{projection}", fused, place, 3)
        names |= layer(f"{mine}.attention.output", f"{other}.attn.c_proj", make=transposed)
        names |= layer(f"{mine}.attention_norm", f"{other}.ln_1")
        if cross:
            names |= _gpt2_cross(mine, other)
        names |= layer(f"{mine}.feed_forward.up", f"{other}.mlp.c_fc", make=transposed)
        names |= layer(f"{mine}.feed_forward.down", f"{other}.mlp.c_proj", make=transposed)
        names |= layer(f"{mine}.feed_forward_norm", f"{other}.ln_2")
    return names | layer(f"{own}.norm", f"{theirs}ln_f")


def _gpt2_cross(mine: str, other: str) -> Names:
    """Gives the sources of a block's cross-attention, which keeps keys and values in one map."""
    names = layer(f"{mine}.cross_attention.query", f"{other}.crossattention.q_attn", make=transposed)
    for place, projection in enumerate(("key", "value")):
        names |= _split(f"{mine}.cross_attention.{projection}", f"{other}.crossattention.c_attn", place, 2)
    names |= layer(f"{mine}.cross_attention.output", f"{other}.crossattention.c_proj", make=transposed)
    return names | layer(f"{mine}.cross_attention_norm", f"{other}.ln_cross_attn")


def _split(mine: str, fused: str, place: int, of: int) -> Names:
    """Gives the sources of a linear map that is one of several in a map stored as a convolution."""
    return {
        f"{mine}.weight": part(f"{fused}.weight", place, of, flip=True),
        f"{mine}.bias": part(f"{fused}.bias", place, of),
    }


def output_names(own: str, theirs: str, embedding: str, tied: bool) -> tuple[Names, dict[str, str]]:
    """Gives the sources of a map to logits without bias, and which tensor repeats another, as ``Converted`` takes them.

    Args:
        own: name of the text transformer in mm.
        theirs: name of the map in the checkpoint.
        embedding: name of the token embedding in the checkpoint.
        tied: whether logits come from the token embedding.
    """
    if tied:
        return {}, {f"{theirs}.weight": f"{embedding}.weight"}
    return {f"{own}.head.weight": same(f"{theirs}.weight")}, {}


def convert_gpt2(hub: HubFolder) -> Converted:
    """Converts a ``GPT2LMHeadModel``, whose names begin with ``transformer.`` in some checkpoints and not in others."""
    hub.config.one_of("add_cross_attention", False, (False,))
    numbers = gpt2_numbers(hub.config)
    theirs = "transformer." if "transformer.wte.weight" in hub.weights else ""
    output, copies = output_names("decoder", "lm_head", f"{theirs}wte", numbers["tied"])
    names = gpt2_names("decoder", theirs, numbers["blocks"]) | output
    return Converted("GPT-2", TextParts(decoder=numbers), names, _special(hub), GPT2_UNUSED, copies)


def llama_numbers(config: Settings) -> dict[str, Any]:
    """Gives the numbers of the ``llama`` preset from a configuration of LLaMA's kind.

    Raises:
        CheckpointError: its feed-forward networks have biases, its rotary positions are of an unknown kind, or a number
            has a wrong type.
    """
    config.one_of("mlp_bias", False, (False,))
    width, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
    longest = config.get("max_position_embeddings", 2048)
    return {
        "preset": "llama",
        "vocabulary": config.get("vocab_size", 32000),
        "width": width,
        "heads": heads,
        "blocks": config.get("num_hidden_layers", 32),
        "hidden": config.get("intermediate_size", 11008),
        "max_tokens": longest,
        "key_value_heads": config.get("num_key_value_heads", heads),
        "head_width": config.get("head_dim", width // max(1, heads)),
        "tied": config.get("tie_word_embeddings", False),
        "bias": config.get("attention_bias", False),
        "activation": config.activation("hidden_act", "silu"),
        "eps": config.get("rms_norm_eps", 1e-6),
    } | _rotary(config, longest)


def _rotary(config: Settings, longest: int) -> dict[str, Any]:
    """Gives the numbers of rotary positions; ``longest`` is what a text's length may be."""
    scaling, kind = _scaling(config, ("default", "linear", "llama3"))
    numbers: dict[str, Any] = {"base": _base(config, scaling)}
    if kind == "linear":
        numbers["stretch"] = _above_zero(scaling, "factor")
    elif kind == "llama3":
        trained = "original_max_position_embeddings"
        original = config.get(trained, scaling.get(trained, longest))
        parts = ("factor", "low_freq_factor", "high_freq_factor")
        numbers["llama3"] = [*(_above_zero(scaling, name) for name in parts), float(original)]
    return numbers


def _scaling(config: Settings, known: tuple[str, ...]) -> tuple[Settings, str]:
    """Gives the part about rotary positions, called one name in old configurations and another in new, and its kind."""
    scaling = config.part("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")
    for settings in (config, scaling):
        settings.one_of("partial_rotary_factor", 1.0, (1.0,))
    return scaling, scaling.one_of("rope_type" if "rope_type" in scaling.values else "type", "default", known)


def _base(config: Settings, scaling: Settings) -> float:
    return scaling.get("rope_theta", config.get("rope_theta", 10000.0))


def _above_zero(settings: Settings, name: str) -> float:
    value = settings.get(name, 0.0)
    if value <= 0:
        raise CheckpointError(f"{settings.source}: {name} is {settings.values.get(name)!r}; it must be above 0")
    return value


def llama_names(own: str, theirs: str, blocks: int, *, bias: bool = False) -> Names:
    """Gives the sources of LLaMA, without the map to logits.

    Args:
        own: name of the text transformer in mm.
        theirs: name of the model in the checkpoint.
        blocks: their number.
        bias: whether attention has biases.
    """
    names = layer(f"{own}.embedding", f"{theirs}.embed_tokens", bias=False)
    for number in range(blocks):
        mine, other = f"{own}.blocks.{number}", f"{theirs}.layers.{number}"
        for projection in ("query", "key", "value", "output"):
            called = f"{other}.self_attn.{projection[0]}_proj"
            names |= layer(f"{mine}.attention.{projection}", called, bias=bias)
        names |= layer(f"{mine}.attention_norm", f"{other}.input_layernorm", bias=False)
        for linear in ("gate", "up", "down"):
            names |= layer(f"{mine}.feed_forward.{linear}", f"{other}.mlp.{linear}_proj", bias=False)
        names |= layer(f"{mine}.feed_forward_norm", f"{other}.post_attention_layernorm", bias=False)
    return names | layer(f"{own}.norm", f"{theirs}.norm", bias=False)


def convert_llama(hub: HubFolder) -> Converted:
    """Converts a ``LlamaForCausalLM``."""
    numbers = llama_numbers(hub.config)
    output, copies = output_names("decoder", "lm_head", "model.embed_tokens", numbers["tied"])
    names = llama_names("decoder", "model", numbers["blocks"], bias=numbers["bias"]) | output
    return Converted("LLaMA", TextParts(decoder=numbers), names, _special(hub), FREQUENCIES, copies)


def falcon_numbers(config: Settings) -> dict[str, Any]:
    """Gives the numbers of the ``falcon`` preset from a configuration of Falcon's kind.

    Raises:
        CheckpointError: positions aren't plain rotary ones, blocks are arranged as no Falcon's are, or a number has a
            wrong type.
    """
    config.one_of("alibi", False, (False,))
    scaling, _ = _scaling(config, ("default",))
    width, heads = config.get("hidden_size", 4544), config.get("num_attention_heads", 71)
    return {
        "preset": "falcon",
        "vocabulary": config.get("vocab_size", 65024),
        "width": width,
        "heads": heads,
        "blocks": config.get("num_hidden_layers", 32),
        "max_tokens": config.get("max_position_embeddings", 2048),
        "hidden": config.get("ffn_hidden_size", 4 * width),
        "tied": config.get("tie_word_embeddings", True),
        "bias": config.get("bias", False),
        "activation": config.activation("activation", "gelu"),
        "eps": config.get("layer_norm_epsilon", 1e-5),
        "base": _base(config, scaling),
        "dropout": config.get("hidden_dropout", 0.0),
    } | _arrangement(config, heads)


def _arrangement(config: Settings, heads: int) -> dict[str, Any]:
    """Gives how a block of Falcon is arranged: heads of keys and values, norms, and whether it is parallel."""
    if config.get("new_decoder_architecture", False):
        config.one_of("parallel_attn", True, (True,))
        norms = config.one_of("num_ln_in_parallel_attn", 2, (1, 2))
        return {"key_value_heads": config.get("num_kv_heads", heads), "norms": norms, "parallel": True}
    shared = config.get("multi_query", True)
    if not shared:
        config.one_of("num_kv_heads", heads, (heads,))
    parallel = config.get("parallel_attn", True)
    if parallel:
        config.one_of("num_ln_in_parallel_attn", 1, (1,))
    return {"key_value_heads": 1 if shared else heads, "norms": 1 if parallel else 2, "parallel": parallel}


def falcon_names(own: str, theirs: str, numbers: dict[str, Any]) -> Names:
    """Gives the sources of Falcon, without the map to logits.

    Args:
        own: name of the text transformer in mm.
        theirs: name of the model in the checkpoint.
        numbers: of the preset.
    """
    bias, parallel = numbers["bias"], numbers["parallel"]
    norms = ("input_layernorm",) if parallel else ("input_layernorm", "post_attention_layernorm")
    if parallel and numbers["norms"] == 2:
        norms = ("ln_attn", "ln_mlp")
    names = layer(f"{own}.embedding", f"{theirs}.word_embeddings", bias=False)
    for number in range(numbers["blocks"]):
        mine, other = f"{own}.blocks.{number}", f"{theirs}.h.{number}"
        fused = f"{other}.self_attention.query_key_value"
        for projection, chosen in _GROUP.items():
            for kind in ("weight", "bias") if bias else ("weight",):
                source = _grouped(f"{fused}.{kind}", numbers, chosen)
                names[f"{mine}.attention.{projection}.{kind}"] = source
        names |= layer(f"{mine}.attention.output", f"{other}.self_attention.dense", bias=bias)
        names |= layer(f"{mine}.feed_forward.up", f"{other}.mlp.dense_h_to_4h", bias=bias)
        names |= layer(f"{mine}.feed_forward.down", f"{other}.mlp.dense_4h_to_h", bias=bias)
        for norm, called in zip(("attention_norm", "feed_forward_norm"), norms, strict=False):
            names |= layer(f"{mine}.{norm}", f"{other}.{called}")
    return names | layer(f"{own}.norm", f"{theirs}.ln_f")


_GROUP = {"query": slice(0, -2), "key": slice(-2, -1), "value": slice(-1, None)}


def _grouped(name: str, numbers: dict[str, Any], chosen: slice) -> Source:
    """Gives some heads of each group of a fused map: a group's heads of queries are followed by its key and value."""

    def make(value: Tensor) -> Tensor:
        head_width = numbers["width"] // numbers["heads"]
        return value.unflatten(0, (numbers["key_value_heads"], -1, head_width))[:, chosen].flatten(0, 2)

    return Source((name,), make)


def convert_falcon(hub: HubFolder) -> Converted:
    """Converts a ``FalconForCausalLM``."""
    numbers = falcon_numbers(hub.config)
    output, copies = output_names("decoder", "lm_head", "transformer.word_embeddings", numbers["tied"])
    names = falcon_names("decoder", "transformer", numbers) | output
    return Converted("Falcon", TextParts(decoder=numbers), names, _special(hub), FREQUENCIES, copies)


def _special(hub: HubFolder) -> dict[str, Any]:
    """Gives the ids of special tokens; a text begins with the end token where there is none for its beginning."""
    begin, end = hub.token_or_none("bos_token_id"), hub.token("eos_token_id")
    padding = hub.token_or_none("pad_token_id")
    return {
        "padding": end if padding is None else padding,
        "end": end,
        "embed": None,
        "match": None,
        "languages": {"en": end if begin is None else begin},
        "close": None,
    }
