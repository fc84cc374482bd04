"""Models of open_clip, by name: those that embed, and CoCa, which also captions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mm.checkpoints.convert import unfilled
from mm.checkpoints.directory import Loaded, load_strictly, special_tokens
from mm.checkpoints.families.coca import coca_names, coca_parts
from mm.checkpoints.weights import Fingerprint
from mm.data.tokenizer import CLEANINGS, Tokenizer
from mm.data.transforms import Preprocessing
from mm.errors import CheckpointError, UnknownModelError, first_line
from mm.models import DualEncoder, OpenClip, Parts, VisionLanguageModel, build

FAMILY, CAPTIONING_FAMILY = "CLIP (open_clip)", "CoCa"
PROBES = ("a photo of two dogs", "Snow &amp; grass\n“again”")
# What open_clip's own tokenizer takes for a word.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ModelFingerprint(Fingerprint):
    """SHA-256 of a model's weights, computed when it is first asked for, as what ``str`` gives.

    Args:
        model: whose weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__([])
        self.model = model

    @cached_property
    def value(self) -> str:
        """The hexadecimal digest."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_open_clip(name: str) -> Loaded:
    """Loads a model of open_clip.

    Args:
        name: ``open_clip:architecture/tag``, the tag one of open_clip's pretrained tags or a local file of weights.

    Returns:
        A CoCa as a ``VisionLanguageModel`` that captions and embeds; any other as a ``DualEncoder``.

    Raises:
        UnknownModelError: open_clip has no such architecture or tag, or the weights can't be fetched.
        CheckpointError: a local file can't be read or doesn't fit, or mm can't take the tokenizer or the tower over.
    """
    import open_clip

    architecture, _, tag = name.removeprefix("open_clip:").partition("/")
    model = _create(name, architecture, tag)
    config, seen = open_clip.get_model_config(architecture), model.visual.preprocess_cfg
    described = OpenClip(config, tuple(seen["mean"]), tuple(seen["std"]))
    tokenizer = _tokenizer(name, architecture, described.max_tokens, captions=can_caption(config))
    preprocessing = _preprocessing(seen)
    if can_caption(config):
        parts = coca_parts(config, described.mean, described.std)
        captioner = _coca(name, parts, tokenizer, model.state_dict()).eval()
        return Loaded(captioner, tokenizer, parts, ModelFingerprint(captioner), preprocessing, CAPTIONING_FAMILY)
    encoder = DualEncoder(model, described, special_tokens(tokenizer)).eval()
    return Loaded(encoder, tokenizer, described, ModelFingerprint(model), preprocessing, FAMILY)


def _create(name: str, architecture: str, tag: str) -> Any:
    """Lets open_clip build the model and read its weights."""
    import open_clip

    if architecture not in open_clip.list_models():
        known = ", ".join(open_clip.list_models()[:12])
        raise UnknownModelError(f"{name}: open_clip has no architecture {architecture!r}; some it has: {known}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    local = Path(tag).is_file()
    if not local and tag.lower() not in map(str.lower, tags):
        raise UnknownModelError(f"{name}: {tag!r} is no file and no tag of {architecture}; tags: {', '.join(tags)}")
    try:
        return open_clip.create_model(architecture, pretrained=tag, weights_only=True)
    except Exception as error:  # open_clip, hub and torch raise several kinds
        reason = first_line(error)
        if local:
            raise CheckpointError(f"{name}: the weights can't be used ({reason})") from error
        raise UnknownModelError(f"{name}: can't be fetched ({reason}); give a local file instead of the tag") from error


def can_caption(config: Mapping[str, Any]) -> bool:
    """Says whether a model is a CoCa that mm can decode with: one whose text tower is open_clip's own."""
    return "multimodal_cfg" in config and "hf_model_name" not in config["text_cfg"]


def _coca(name: str, parts: Parts, tokenizer: Tokenizer, state: Mapping[str, Tensor]) -> VisionLanguageModel:
    """Builds a CoCa and fills it with open_clip's weights.

    Raises:
        CheckpointError: some are missing, or mm has no place for some.
    """
    with unfilled():
        model = build(parts, len(tokenizer), special_tokens(tokenizer))
    sources = coca_names(parts, state)
    used = {theirs for source in sources.values() for theirs in source.names}
    if used != state.keys():
        raise CheckpointError(f"{name}: mm's CoCa differs in {', '.join(sorted(used ^ state.keys()))}")
    made = {}
    for own, source in sources.items():
        values = [state[theirs] for theirs in source.names]
        made[own] = values[0] if source.make is None else source.make(*values)
    load_strictly(model, made, name)
    return model


def _preprocessing(seen: Mapping[str, Any]) -> Preprocessing:
    """Gives how an image becomes a square, from what open_clip calls ``preprocess_cfg``."""
    size = seen["size"] if isinstance(seen["size"], int) else seen["size"][0]
    filter = "bilinear" if seen["interpolation"] == "bilinear" else "bicubic"
    return Preprocessing(size, "stretch" if seen["resize_mode"] == "squash" else "shortest", filter, pillow=True)


def _tokenizer(name: str, architecture: str, length: int, *, captions: bool) -> Tokenizer:
    """Gives the tokenizer of an architecture.

    Args:
        name: the model's name, for messages.
        architecture: open_clip's name of it.
        length: tokens of a text, with special tokens and padding.
        captions: whether the model writes, in English.

    Raises:
        UnknownModelError: it can't be fetched.
        CheckpointError: mm can't read texts as it does.
    """
    import open_clip

    try:
        theirs: Any = open_clip.get_tokenizer(architecture)
    except Exception as error:  # as when weights are fetched
        raise UnknownModelError(f"{name}: its tokenizer can't be fetched ({first_line(error)})") from error
    clean = next(kind for kind in CLEANINGS if open_clip.tokenizer.get_clean_fn(kind) is theirs.clean_fn)
    if isinstance(theirs, open_clip.SimpleTokenizer):
        first, close, padding = theirs.sot_token_id, theirs.eot_token_id, 0
        backend = _byte_pairs(theirs)
    else:
        backend, padding = getattr(theirs.tokenizer, "backend_tokenizer", None), theirs.tokenizer.pad_token_id
        if backend is None:
            raise CheckpointError(f"{name}: its tokenizer isn't one of the tokenizers library")
        first, close = _frame(backend.to_str(), name)
        if theirs.strip_sep_token and close == theirs.tokenizer.sep_token_id:
            close = 0
    special = {"padding": padding, "end": padding if close is None else close, "embed": first, "match": None}
    special |= {"languages": {"en": first} if captions else {}, "close": close}
    tokenizer = Tokenizer.from_json(backend.to_str(), name, special, clean)
    _check_texts(name, tokenizer, theirs, length)
    return tokenizer


def _frame(tokenizer: str, name: str) -> tuple[int | None, int | None]:
    """Gives the tokens that a ``tokenizer.json`` puts before a text and behind it."""
    nothing: dict[str, Any] = {"padding": -1, "end": -1, "embed": None, "match": None, "languages": {}}
    front, behind = Tokenizer.from_json(tokenizer, name, nothing).frame()
    if len(front) > 1 or len(behind) > 1:
        raise CheckpointError(f"{name}: its tokenizer puts more than one token on a side of a text")
    return next(iter(front), None), next((token for token in behind if token >= 0), None)


def _byte_pairs(tokenizer: Any) -> Any:
    """Makes a tokenizer of the ``tokenizers`` library of open_clip's own."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(tokenizer.encoder, list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    backend.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])
    backend.add_special_tokens([tokenizer.decoder[number] for number in tokenizer.all_special_ids])
    return backend


def _check_texts(name: str, tokenizer: Tokenizer, theirs: Any, length: int) -> None:
    """Makes sure that texts of ``length`` tokens are read as open_clip reads them.

    Raises:
        CheckpointError: they aren't.
    """
    front, behind = ([token] * (token is not None) for token in (tokenizer.embed, tokenizer.close))
    rows = tokenizer.encode(PROBES, length - len(front) - len(behind))
    ours = [([*front, *row, *behind] + [tokenizer.padding] * length)[:length] for row in rows]
    if ours != theirs(list(PROBES)).tolist():
        raise CheckpointError(f"{name}: mm can't read texts as open_clip's tokenizer of it does")
