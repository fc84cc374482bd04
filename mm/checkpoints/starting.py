"""What training starts from: random parts, pretrained parts, or both together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoints.directory import Loaded, load_strictly, special_tokens
from mm.checkpoints.resolve import find_tokenizer, load_model
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import Preprocessing
from mm.errors import CheckpointError, UsageError
from mm.models import Architecture, LanguageModel, Parts, TextParts, TextTransformer, VisionLanguageModel, build
from mm.models.presets import TEXT, complete

SPACE = (
    "embedding_width",
    "image_pooling",
    "text_pooling",
    "image_bias",
    "text_bias",
    "matches",
    "text_length",
)
ROLES = ("vision", "text_encoder", "text_decoder")
# What a part has or lacks by the role it plays: in another role these begin with random numbers, or are left behind.
OF_THE_ROLE = ("crossing.", "cross_attention", "head.")


def start_from_parts(parts: Parts, tokenizer: str | None = None) -> Loaded:
    """Builds a vision-language model of parts, each random or, where it says ``checkpoint``, taken from a checkpoint.

    Args:
        parts: the descriptions. One with ``checkpoint``, a name that ``mm.load`` takes, has that model's numbers, save
            for those that it gives itself, and that model's weights.
        tokenizer: one of mm's own, by file, model directory or ``mm-tiny``, where no text part is pretrained; None for
            mm-tiny's.

    Raises:
        UsageError: a checkpoint has no such part, or parts don't fit each other.
        CheckpointError: a checkpoint can't be read, or its part doesn't fit the numbers that are given.
    """
    found: dict[str, tuple[str, Loaded, nn.Module]] = {}
    described: dict[str, Any] = {}
    for role in ROLES:
        description = getattr(parts, role)
        if description is not None and "checkpoint" in description:
            name = str(description["checkpoint"])
            loaded = load_model(name)
            module, numbers = _part(loaded, role, name)
            found[role] = (name, loaded, module)
            given = {key: value for key, value in description.items() if key != "checkpoint"}
            described[role] = _of_the_role(role, numbers, module) | given
    texts = {role: loaded for role, (_, loaded, _) in found.items() if role != "vision"}
    words = _tokenizer(tokenizer, texts)
    space = texts.get("text_encoder")
    if space is not None and "embed" in space.model.capabilities:
        described |= _space(space.architecture)
    whole = replace(parts, **described)
    _check_vocabulary(whole, words)
    model = build(whole, len(words), special_tokens(words))
    for role, (name, _, module) in found.items():
        _copy(getattr(model, role), module, f"model.parts.{role} of {name}")
    if "text_encoder" in found:
        _copy_space(model, found["text_encoder"][1].model, f"model.parts.text_encoder of {found['text_encoder'][0]}")
    preprocessing = _preprocessing(found["vision"][1], whole) if "vision" in found else None
    return Loaded(model, words, whole, "", preprocessing)


def _part(loaded: Loaded, role: str, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Finds the part of a model that can play a role, and its numbers; an encoder may become a decoder."""
    architecture = loaded.architecture
    model = loaded.model
    if isinstance(architecture, Architecture):
        architecture = architecture.parts()
    if isinstance(architecture, Parts):
        known = {own: (getattr(model, own), getattr(architecture, own)) for own in ROLES}
    elif isinstance(architecture, TextParts) and isinstance(model, LanguageModel):
        known = {f"text_{own}": (getattr(model, own), getattr(architecture, own)) for own in ("encoder", "decoder")}
    else:
        known = {}
    others = {"text_decoder": ["text_decoder", "text_encoder"], "text_encoder": ["text_encoder"], "vision": ["vision"]}
    for own in others[role]:
        module, numbers = known.get(own, (None, None))
        if module is not None and numbers is not None:
            return module, dict(numbers)
    raise UsageError(f"model.parts.{role}: {name} ({loaded.family}) has no part that could be one")


def _of_the_role(role: str, numbers: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Gives a part's numbers with those that its new role decides, whatever it was before."""
    if not isinstance(module, TextTransformer):
        return numbers
    whole = numbers | {"vocabulary": module.embedding.num_embeddings}
    return complete(role, TEXT, whole, mask="causal", head=True) if role == "text_decoder" else whole


def _tokenizer(name: str | None, loaded: dict[str, Loaded]) -> Tokenizer:
    """Gives the tokenizer: captions begin and end as the text decoder knows it, other texts as the text encoder does.

    Raises:
        UsageError: they come from checkpoints with different tokenizers.
    """
    if not loaded:
        return Tokenizer.read(find_tokenizer(name or "mm-tiny"))
    *others, words = (one.tokenizer for one in loaded.values())
    if name is not None and Tokenizer.read(find_tokenizer(name)).to_json() != words.to_json():
        raise UsageError(
            f"model.tokenizer {name} isn't that of the pretrained text part; leave it out, or set it to null"
        )
    if words.own:
        return words
    if not words.languages:  # an encoder's, such as BERT's: captions are between the tokens that texts are between
        first, last = words.frame()
        if not first or not last:
            raise UsageError("model.parts: the pretrained text part's tokenizer doesn't say how captions begin and end")
        special = words.special | {"languages": {"en": first[0]}, "end": last[-1]}
        words = Tokenizer.from_json(words.to_json(), "the tokenizer", special, words.clean)
    if not others:
        return words
    if others[0].to_json() != words.to_json():
        raise UsageError("model.parts: text_encoder and text_decoder have different tokenizers")
    both = words.special | {name: others[0].special[name] for name in ("embed", "match", "close")}
    return Tokenizer.from_json(words.to_json(), "the tokenizer", both, words.clean)


def _space(architecture: Architecture | Parts) -> dict[str, Any]:
    """Gives the numbers of the shared space that a text encoder was trained for."""
    parts = architecture.parts() if isinstance(architecture, Architecture) else architecture
    return {name: getattr(parts, name) for name in SPACE}


def _copy_space(model: nn.Module, source: nn.Module, name: str) -> None:
    """Copies what maps images and texts into the shared space, and what matches them."""
    for part in ("image_projection", "text_projection", "match_head"):
        target, given = getattr(model, part, None), getattr(source, part, None)
        if target is not None and given is not None:
            load_strictly(target, given.state_dict(), f"{name}, {part}")
    if isinstance(source, VisionLanguageModel) and source.embeds:
        with torch.no_grad():
            model.logit_scale.copy_(source.logit_scale)  # type: ignore[operator]


def _check_vocabulary(parts: Parts, tokenizer: Tokenizer) -> None:
    for role in ("text_encoder", "text_decoder"):
        rows = (getattr(parts, role) or {}).get("vocabulary")
        if rows is not None and rows < len(tokenizer):
            raise UsageError(
                f"model.parts.{role} has a vocabulary of {rows}, but the tokenizer has {len(tokenizer)} tokens"
            )


def _copy(target: nn.Module, source: nn.Module, name: str) -> None:
    """Copies a pretrained part's weights; what only one of the two roles has, or has otherwise, stays random."""
    own, theirs = target.state_dict(), source.state_dict()
    fitting = {key for key in own.keys() & theirs.keys() if own[key].shape == theirs[key].shape}
    state: dict[str, Tensor] = {
        key: value for key, value in theirs.items() if key in fitting or not _is_of_the_role(key)
    }
    state |= {key: own[key] for key in own if key not in fitting and _is_of_the_role(key)}
    load_strictly(target, state, name)


def _is_of_the_role(name: str) -> bool:
    return any(f".{part}" in f".{name}" for part in OF_THE_ROLE)


def _preprocessing(loaded: Loaded, parts: Parts) -> Preprocessing | None:
    if loaded.preprocessing is not None and loaded.preprocessing.size != parts.image_size:
        raise CheckpointError(
            f"model.parts.vision sees {parts.image_size} pixels, but the checkpoint's images have "
            f"{loaded.preprocessing.size}"
        )
    return loaded.preprocessing
