"""Models of BLIP's shape in the hub's layout: what ``families.blip`` reads, written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mm.checkpoints.convert import ACTIVATION_NAMES, Settings
from mm.checkpoints.directory import Loaded, in_precision, write_files
from mm.checkpoints.families import bert, vision
from mm.checkpoints.families.blip import ANSWERING, CAPTIONING, HEAD, RETRIEVAL, blip_names, blip_parts
from mm.checkpoints.preprocessing import RESAMPLING
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import Preprocessing
from mm.errors import OutputError, UsageError
from mm.models import Parts, VisionLanguageModel
from mm.models.presets import TEXT, VISION
from mm.models.presets.describe import Presets

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

CLASSES = {
    CAPTIONING: "BlipForConditionalGeneration",
    RETRIEVAL: "BlipForImageTextRetrieval",
    ANSWERING: "BlipForQuestionAnswering",
}
TEXTS = ("text_encoder", "text_decoder")
DECIDED = ("embedding", "head", "context_width")
"""What a text preset takes that other parts decide."""
COMPARED = {
    CAPTIONING: ("vision", "text_decoder", "connector"),
    ANSWERING: ("vision", *TEXTS, "share_embedding", "connector"),
    RETRIEVAL: (
        "vision",
        "text_encoder",
        "image_pooling",
        "text_pooling",
        "image_bias",
        "text_bias",
        "matches",
        "text_length",
    ),
}
"""What makes a model of each family one of BLIP's shape."""


def save_blip(
    folder: str | Path, loaded: Loaded, dtype: torch.dtype = torch.float32, *, language: str | None = None
) -> None:
    """Writes a model of BLIP's shape in the hub's layout, so that ``transformers`` loads it; each file appears whole.

    ``config.json`` comes last: a folder without it is no model.

    Args:
        folder: where; made if missing.
        loaded: the model, whatever it was loaded from.
        dtype: precision of the weights on disk.
        language: code of the language that it writes; needed where it knows several, since BLIP knows one.

    Raises:
        UsageError: BLIP can't be what the model is; the message says why.
        OutputError: the folder can't be written, or holds files of another model that would be taken for this one's; or
            a weight is too large for the precision.
    """
    from safetensors.torch import save

    folder = Path(folder)
    family, parts = _family(loaded)
    words = _words(loaded.tokenizer, family, language)
    config = _config(family, parts, loaded.model) | {"dtype": str(dtype).removeprefix("torch.")}
    config["text_config"] |= words.ids
    mean, std = parts.vision["mean"], parts.vision["std"]
    _compare(family, parts, _whole(blip_parts(family, Settings(config, "config.json"), mean, std), loaded.model))
    preprocessing = _preprocessing(loaded.transform) | {"image_mean": mean, "image_std": std}
    files = {
        "model.safetensors": save(in_precision(_weights(family, parts, loaded.model), dtype, folder), {"format": "pt"}),
        "tokenizer.json": words.tokenizer.encode(),
        "tokenizer_config.json": _json(words.config | {"model_max_length": parts.max_tokens}),
        "preprocessor_config.json": _json(preprocessing),
        "config.json": _json(config),
    }
    strange = sorted(path.name for path in folder.glob("*.json") if path.name not in files)
    if strange:
        raise OutputError(f"{folder}: holds {', '.join(strange)} of another model; choose another folder, or remove it")
    write_files(folder, files)


def _unlike(reason: str) -> UsageError:
    return UsageError(f"the model can't be written as BLIP: {reason}")


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2).encode() + b"\n"


def _family(loaded: Loaded) -> tuple[str, Parts]:
    """Gives which of BLIP's families a model may be, and its parts with all their numbers."""
    parts = loaded.architecture
    if not isinstance(parts, Parts) or not isinstance(loaded.model, VisionLanguageModel):
        raise _unlike("BLIP is a ViT with BERT's text encoder or decoder, and this is built otherwise")
    for name, preset in (("vision", "vit"), ("text_encoder", "bert"), ("text_decoder", "bert")):
        part = getattr(parts, name)
        if part is not None and part["preset"] != preset:
            raise _unlike(f"architecture.{name}.preset is {part['preset']!r}, not {preset!r}")
    if parts.sees == "answer":
        return ANSWERING, _whole(parts, loaded.model)
    if parts.text_decoder is None:
        return RETRIEVAL, _whole(parts, loaded.model)
    if parts.text_encoder is not None:
        raise _unlike("it embeds and captions, which are two models there")
    if parts.sees != "cross":
        raise _unlike(f"architecture.sees is {parts.sees!r}, not 'cross'")
    return CAPTIONING, _whole(parts, loaded.model)


def _whole(parts: Parts, model: VisionLanguageModel) -> Parts:
    """Gives parts with all the numbers that their presets take, those too that a description may leave out."""
    vit = _complete(VISION, parts.vision)
    vit["hidden"] = vit["hidden"] or 4 * vit["width"]
    vit["patch_bias"] = not vit["pre_norm"] if vit["patch_bias"] is None else vit["patch_bias"]
    texts: dict[str, Any] = {}
    for name, mask in zip(TEXTS, ("bidirectional", "causal"), strict=True):
        part = getattr(parts, name)
        if part is not None:
            rows = getattr(model, name).embedding.num_embeddings
            texts[name] = _complete(TEXT, {"mask": mask, "vocabulary": rows} | part)
    return replace(parts, vision=vit, **texts)


def _complete(presets: Presets, description: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(presets[description["preset"]]).parameters.values()
    usual = {parameter.name: parameter.default for parameter in known if parameter.name not in DECIDED}
    whole = usual | {name: value for name, value in description.items() if name not in DECIDED}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}


def _config(family: str, parts: Parts, model: VisionLanguageModel) -> dict[str, Any]:
    """Gives what ``config.json`` says."""
    text = parts.text_decoder or parts.text_encoder or {}
    tied = {"tie_word_embeddings": text["tied"]}
    text_config = {"model_type": "blip_text_model", "encoder_hidden_size": parts.vision["width"], "is_decoder": True}
    config: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": "blip",
        "image_text_hidden_size": parts.embedding_width,
        "vision_config": {"model_type": "blip_vision_model"} | _numbers(vision.NUMBERS, parts.vision),
        "text_config": text_config | _numbers(bert.NUMBERS, text) | tied,
    }
    if family == RETRIEVAL:
        config["logit_scale_init_value"] = model.logit_scale.item()
    return config | tied


def _weights(family: str, parts: Parts, model: VisionLanguageModel) -> dict[str, Tensor]:
    """Gives a model's weights under BLIP's names."""
    own = model.state_dict()
    state = {source.names[0]: own[name] for name, source in blip_names(family, parts).items()}
    if f"{HEAD}.decoder.bias" in state:
        state[f"{HEAD}.bias"] = state[f"{HEAD}.decoder.bias"].clone()  # of no use there, but missed
    return state


def _numbers(table: Mapping[str, tuple[str, Any]], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Gives numbers of a preset under a configuration's names."""
    activations = {own: theirs for theirs, own in reversed(ACTIVATION_NAMES.items())}
    given = dict(numbers) | {"activation": activations[numbers["activation"]]}
    return {theirs: given[own] for own, (theirs, _) in table.items()}


def _compare(family: str, parts: Parts, blip: Parts) -> None:
    """Makes sure that a model is what BLIP makes of its configuration.

    Raises:
        UsageError: names everything that isn't.
    """
    problems = []
    for name in COMPARED[family]:
        own, theirs = getattr(parts, name), getattr(blip, name)
        if isinstance(own, dict) and isinstance(theirs, dict):
            problems += [
                f"architecture.{name}.{key} is {own[key]!r}, not {theirs[key]!r}"
                for key in own
                if own[key] != theirs[key] and not (name == "text_encoder" and key in ("tied", "head_transform"))
            ]
        elif own != theirs:
            problems.append(f"architecture.{name} is {own!r}, not {theirs!r}")
    if family == ANSWERING and parts.vision["width"] != (parts.text_encoder or {})["width"]:
        problems.append("architecture.vision.width isn't architecture.text_encoder.width")
    if problems:
        raise _unlike("; ".join(problems))


def _preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Gives what ``preprocessor_config.json`` says, mean and standard deviation aside."""
    if preprocessing.resize != "stretch" or preprocessing.target != preprocessing.size:
        raise _unlike(f"its images are cut ({preprocessing}), and BLIP's are only scaled")
    filters = {name: number for number, name in RESAMPLING.items()}
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": preprocessing.size, "width": preprocessing.size},
        "resample": filters[preprocessing.filter],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }


class _Words(NamedTuple):
    """A tokenizer as the hub has it.

    Args:
        tokenizer: what ``tokenizer.json`` holds.
        config: what ``tokenizer_config.json`` says.
        ids: what ``text_config`` says of special tokens.
    """

    tokenizer: str
    config: dict[str, Any]
    ids: dict[str, int]


def _words(tokenizer: Tokenizer, family: str, language: str | None) -> _Words:
    """Gives a tokenizer that puts around texts what the model has around them.

    In front of a caption stands whatever the tokenizer puts there: BLIP replaces it.
    """
    ids = {"sep_token_id": tokenizer.end, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.padding}
    around = [tokenizer.match, tokenizer.close]
    if family != RETRIEVAL:
        ids["bos_token_id"] = _begin(tokenizer, language)
    elif tokenizer.embed != tokenizer.match:
        raise _unlike("texts that are embedded and texts that are matched begin with different tokens")
    if family == CAPTIONING:
        around = [ids["bos_token_id"], tokenizer.end]
    backend = _enclosing(tokenizer, around)
    found = backend.encode("")
    if len(found.ids) != 2 or (family != CAPTIONING and found.ids != around):
        raise _unlike(f"its tokenizer puts {' '.join(found.tokens)} around texts, and the model something else")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "BlipProcessor",
        "pad_token": backend.id_to_token(tokenizer.padding),
        "cls_token": found.tokens[0],
        "sep_token": found.tokens[1],
        "clean_up_tokenization_spaces": False,
    }
    return _Words(backend.to_str(), config, ids)


def _enclosing(tokenizer: Tokenizer, around: Sequence[int | None]) -> Backend:
    """Gives a tokenizer of the ``tokenizers`` library that puts a token before texts and one behind them.

    Args:
        tokenizer: mm's.
        around: the two tokens, for one that puts nothing there yet.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    backend = Backend.from_str(tokenizer.to_json())
    if not backend.encode("").ids:
        names = [None if token is None else backend.id_to_token(token) for token in around]
        if None in names:
            raise _unlike("its texts don't begin with a token of the tokenizer and end with one")
        special = list(zip(names, around, strict=True))
        backend.post_processor = TemplateProcessing(single=f"{names[0]} $A {names[1]}", special_tokens=special)
    return backend


def _begin(tokenizer: Tokenizer, language: str | None) -> int:
    """Gives the token that what the model writes begins with."""
    known = tokenizer.languages
    if language is None and len(known) == 1:
        return next(iter(known.values()))
    if language not in known:
        wrong = "" if language is None else f"; {language!r} is none of them"
        raise _unlike(f"it must write one language; choose one of {', '.join(known)}{wrong}")
    return known[language]
