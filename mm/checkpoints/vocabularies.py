"""Tokenizers of public checkpoints that have a vocabulary's own files but no ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.checkpoints.convert import Settings
from mm.checkpoints.weights import read_json
from mm.errors import CheckpointError

Description = dict[str, Any]
"""What a ``tokenizer.json`` holds."""

WHOLE, PIECES, PAIRS, MERGES = "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"
SENTENCEPIECE = ("*.model", "*.spm")
WORD_END = "</w>"

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer that has a vocabulary but no ``tokenizer.json``.

    Args:
        files: what it is made of.
        describe: gives its description from the vocabulary, the merges and the settings.
        special: its special tokens by role, where a checkpoint doesn't say others.
        around: roles of the tokens around a text that is read; None for none.
    """

    files: tuple[str, ...]
    describe: Callable[[dict[str, int], list[list[str]], Settings], Description]
    special: Mapping[str, str]
    around: tuple[str, str] | None


def _wordpiece(vocabulary: dict[str, int], merges: list[list[str]], config: Settings) -> Description:
    """Describes WordPiece as in BERT (arXiv:1810.04805)."""
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.one_of("strip_accents", None, (None, True, False)),
            "lowercase": config.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": _text(config, "unk"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def _byte_level(vocabulary: dict[str, int], merges: list[list[str]], config: Settings) -> Description:
    """Describes byte-level BPE as in GPT-2 and RoBERTa."""
    return {
        "normalizer": None,
        "pre_tokenizer": _BYTES | {"add_prefix_space": config.get("add_prefix_space", False)},
        "decoder": _BYTES,
        "model": _bpe(vocabulary, merges),
    }


def _clip(vocabulary: dict[str, int], merges: list[list[str]], config: Settings) -> Description:
    """Describes CLIP's BPE: lower case, words, single digits and runs of marks apart, ``</w>`` at the end of each."""
    white = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    pieces = r"'(?:[stmd]|re|ve|ll)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    split = {"type": "Split", "pattern": {"Regex": pieces}, "behavior": "Removed", "invert": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, white, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTES]},
        "decoder": _BYTES,
        "model": _bpe(vocabulary, merges) | {"end_of_word_suffix": WORD_END, "unk_token": _text(config, "unk")},
    }


def _bpe(vocabulary: dict[str, int], merges: list[list[str]]) -> Description:
    return {"type": "BPE", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": merges}


_BERT = Kind(
    (PIECES,),
    _wordpiece,
    {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    ("cls", "sep"),
)
_GPT2 = Kind((PAIRS, MERGES), _byte_level, dict.fromkeys(("unk", "bos", "eos"), "<|endoftext|>"), None)
_ROBERTA = Kind(
    (PAIRS, MERGES),
    _byte_level,
    {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    ("cls", "sep"),
)
_CLIP = Kind(
    (PAIRS, MERGES),
    _clip,
    {"bos": "<|startoftext|>"} | dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>"),
    ("bos", "eos"),
)
KINDS = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "GPT2Tokenizer": _GPT2,
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "CLIPTokenizer": _CLIP,
}
"""Kinds of tokenizers by their ``tokenizer_class``."""

GENERAL = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
"""Values of ``tokenizer_class`` that say nothing about the kind."""


def describe_vocabulary(folder: Path, config: Settings) -> tuple[Path, Description, Settings]:
    """Describes the tokenizer that a vocabulary's own files make.

    Args:
        folder: the checkpoint.
        config: settings of its tokenizer.

    Returns:
        The file with the vocabulary, what a ``tokenizer.json`` would hold, and the settings with the kind's defaults.

    Raises:
        CheckpointError: a file is missing or damaged, or the tokenizer is of an unknown kind.
    """
    kind = _kind(folder, config)
    for name in kind.files:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has neither {WHOLE} nor {name}; {_advice(folder)}")
    path = folder / kind.files[0]
    vocabulary = _pieces(path) if path.name == PIECES else _pairs(path)
    merges = _merges(folder / MERGES) if MERGES in kind.files else []
    special = {f"{role}_token": text for role, text in kind.special.items()}
    config = Settings(special | dict(config.values), config.source)
    description = kind.describe(vocabulary, merges, config) | {"version": "1.0", "added_tokens": []}
    if kind.around is not None:
        description["post_processor"] = _around(vocabulary, [_text(config, role) for role in kind.around], path)
    return path, description, config


def _around(vocabulary: dict[str, int], tokens: list[str], path: Path) -> Description:
    """Describes what puts a token in front of a text that is read, and one behind it."""
    if missing := [token for token in tokens if token not in vocabulary]:
        raise CheckpointError(f"{path}: lacks {missing[0]}, which stands around a text")
    first, last = ([token, vocabulary[token]] for token in tokens)
    return {"type": "BertProcessing", "cls": first, "sep": last}


def _kind(folder: Path, config: Settings) -> Kind:
    """Finds the kind of a tokenizer, by its ``tokenizer_class`` or else by its files and vocabulary."""
    named = config.get("tokenizer_class", "").removesuffix("Fast")
    if named in KINDS:
        return KINDS[named]
    if named and config.values["tokenizer_class"] not in GENERAL:
        raise CheckpointError(
            f"{config.source}: tokenizer_class is {named!r}; mm makes {', '.join(KINDS)} of a vocabulary's files; "
            f"{_advice(folder)}"
        )
    if (folder / PIECES).is_file():
        return _BERT
    if not (folder / PAIRS).is_file():
        others = sorted(path.name for pattern in SENTENCEPIECE for path in folder.glob(pattern))
        only = f"has {others[0]}, which mm doesn't read, but no {WHOLE}" if others else f"has no {WHOLE}"
        raise CheckpointError(f"{folder}: {only}; {_advice(folder)}")
    vocabulary = _pairs(folder / PAIRS)
    if any(text.endswith(WORD_END) for text in vocabulary):
        return _CLIP
    return _ROBERTA if "</s>" in vocabulary else _GPT2


def _advice(folder: Path) -> str:
    return f"transformers makes one: AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"


def _text(config: Settings, role: str) -> str:
    """Gives the text of a special token."""
    value = config.values.get(f"{role}_token")
    return str(value.get("content") if isinstance(value, dict) else value)


def _pieces(path: Path) -> dict[str, int]:
    """Reads ``vocab.txt``, which has one token per line."""
    return {line.rstrip(): number for number, line in enumerate(_lines(path))}


def _pairs(path: Path) -> dict[str, int]:
    """Reads ``vocab.json``, which gives each token its id."""
    vocabulary = read_json(path)
    if not all(type(number) is int and number >= 0 for number in vocabulary.values()):
        raise CheckpointError(f"{path}: doesn't give each token its number")
    return vocabulary


def _merges(path: Path) -> list[list[str]]:
    """Reads ``merges.txt``, which has two tokens per line."""
    merges = [line.split() for line in _lines(path) if line.strip() and not line.startswith("#version")]
    for number, merge in enumerate(merges, 1):
        if len(merge) != 2:
            raise CheckpointError(f"{path}: merge {number} is {' '.join(merge)[:40]!r}, not two tokens")
    return merges


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: isn't UTF-8, so not a vocabulary") from error
    return text.removesuffix("\n").split("\n")
