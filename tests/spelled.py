"""A tokenizer of each kind, learned from a few captions."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mm.checkpoints.resolve import find_tokenizer
from mm.data.tokenizer import Tokenizer
from mm.errors import OptionError
from mm.generation.stopping import StopStrings

TEXTS = [
    "a dog runs through the snow",
    "A Dog's ball isn't here, is it? No - it's over there!",
    "two men (and 3 women) in t-shirts on 25 bicycles...\nin 1999.",
    "一张图片里有两只狗。",
    "a walking dog and a talking cat \U0001f600",
]
KINDS = ["mm", "wordpiece", "spaced", "gpt2", "prefixed", "unigram", "fallback"]
STOPS = ["dog", " a", "\n", ".", "s t", "n't", "ing", "g and a", "两只", "abc", "bc", "\U0001f600"]
SPECIAL: dict[str, Any] = {"padding": 0, "end": 1, "embed": None, "match": None, "languages": {"en": 1}}


@cache
def tokenizer(kind: str) -> Tokenizer:
    """Makes a tokenizer.

    Args:
        kind: ``mm`` for that of mm-tiny; ``wordpiece``, or ``spaced`` if spaces before marks are taken away too;
            ``gpt2`` for byte-level BPE, ``prefixed`` with a space before a text; ``unigram``; ``fallback`` for BPE of
            characters that writes others as bytes, as LLaMA does.
    """
    if kind == "mm":
        return Tokenizer.read(find_tokenizer("mm-tiny"))
    makers = {"wordpiece": _wordpiece, "spaced": _spaced, "gpt2": _bytes, "unigram": _unigram, "fallback": _fallback}
    backend = _bytes(prefixed=True) if kind == "prefixed" else makers[kind]()
    return Tokenizer.from_json(backend.to_str(), kind, SPECIAL)


@cache
def stops(kind: str) -> list[str]:
    """Gives the stop strings that a tokenizer can write."""
    return [stop for stop in STOPS if _writes(kind, stop)]


def _writes(kind: str, stop: str) -> bool:
    try:
        StopStrings([stop], tokenizer(kind))
    except OptionError:
        return False
    return True


def rows(kind: str) -> st.SearchStrategy[list[int]]:
    """Tokens as they come: those of pieces of texts, and any others between them."""
    words = tokenizer(kind)
    pieces = words.encode(
        [*TEXTS, *STOPS, "isn't the dog's 'ball' . n ' t 's", "狗\U0001f415\u200d\U0001f9ba狗", "n ' t."]
    )
    cuts = st.builds(lambda row, a, b: row[a : a + b], st.sampled_from(pieces), st.integers(0, 12), st.integers(1, 8))
    others = st.lists(st.integers(0, len(words) - 1), max_size=3)
    return st.lists(st.one_of(cuts, others), max_size=8).map(lambda parts: [token for part in parts for token in part])


def _letters() -> list[str]:
    """Every character of the texts but white space."""
    return sorted(set("".join("".join(TEXTS).lower().split())))


def _wordpiece() -> Backend:
    pieces = ["[PAD]", "[SEP]", "[UNK]", "dog", "walk", "talk", "##ing", "the", "shirt", "##lk"]
    pieces += [mark + letter for letter in _letters() for mark in ("", "##")]
    names = {text: number for number, text in enumerate(pieces)}
    backend = Backend(models.WordPiece(names, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(pieces[:3])
    return backend


def _spaced() -> Backend:
    backend = _wordpiece()
    steps = [decoders.Replace(old, old.strip()) for old in (" .", " ,", " ' ", " n't", " 's")]
    backend.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *steps])
    return backend


def _bytes(prefixed: bool = False) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixed)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return backend


def _unigram() -> Backend:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁dog", -3.0), ("dog", -4.0), ("▁the", -3.0), ("▁", -4.0)]
    backend = Backend(models.Unigram([*pieces, *((letter, -6.0) for letter in _letters())], 2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([text for text, _ in pieces[:3]])
    return backend


def _fallback() -> Backend:
    pieces = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "d", "o", "g", "n", "."]
    merges = [("d", "o"), ("do", "g"), ("▁", "dog"), ("▁", "a")]
    names = {text: number for number, text in enumerate([*pieces, *map("".join, merges)])}
    backend = Backend(models.BPE(names, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return backend
