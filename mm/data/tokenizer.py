"""The subword tokenizer: byte-level BPE for mm's own models, so that no text is ever unknown; others as they come."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mm.data import spellings
from mm.errors import CheckpointError, OptionError

PADDING, END, EMBED, MATCH = "<pad>", "<end>", "<embed>", "<match>"
MASK = "<mask>"
MASKS = ("[MASK]", MASK)
_LANGUAGE = re.compile(r"<([a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)>", re.ASCII)
CLEANINGS = ("lower", "whitespace", "canonicalize")


def language_token(language: str) -> str:
    """Names the token that begins a caption in a language: ``<en>``, ``<zh>``."""
    return f"<{language}>"


def clean_caption(text: str) -> str:
    """Collapses white space and takes off a full stop at the end, which says nothing about the image."""
    text = " ".join(text.split())
    return text.rstrip(".。").rstrip() or text


def _spelling(token: Any) -> re.Pattern[str]:
    """Finds a special token that is spelled out in a text, with the white space that belongs to it."""
    before, behind = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
    return re.compile(before + re.escape(token.content) + behind)


class Tokenizer:
    """Text to token ids and back, with the ids of the special tokens.

    Args:
        tokenizer: a tokenizer of the ``tokenizers`` library.
        source: where it came from, for messages.
        special: ids of the special tokens of a model from elsewhere, as ``special`` gives them; None to find those that
            mm's own tokenizers have.
        clean: how texts are cleaned before they are encoded, by the name that open_clip gives it: ``lower``,
            ``whitespace`` or ``canonicalize``; None for not at all.

    Raises:
        CheckpointError: it lacks a special token that every model of mm needs, or can't encode every text.
    """

    def __init__(
        self,
        tokenizer: object,
        source: str = "the tokenizer",
        special: Mapping[str, Any] | None = None,
        clean: str | None = None,
    ) -> None:
        from tokenizers import Tokenizer as Backend

        assert isinstance(tokenizer, Backend)
        self._backend = tokenizer
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.own = special is None
        if clean is not None and clean not in CLEANINGS:
            raise CheckpointError(f"{source}: texts are cleaned by {clean!r}; mm knows {', '.join(CLEANINGS)}")
        self.clean = clean
        found = self._find(source) if special is None else special
        self.padding: int = found["padding"]
        self.end: int = found["end"]
        self.embed: int | None = found["embed"]
        self.match: int | None = found["match"]
        self.languages: dict[str, int] = dict(found["languages"])
        self.close: int | None = found.get("close")
        self.start: int | None = found.get("start")
        self.image: int | None = found.get("image")
        self.around_image: int | None = found.get("around_image")
        masks = [(number, t) for number, t in tokenizer.get_added_tokens_decoder().items() if t.content in MASKS]
        self.mask: int | None = masks[0][0] if masks else None
        self._mask = _spelling(masks[0][1]) if masks else None

    @property
    def special(self) -> dict[str, Any]:
        """Ids of the special tokens, by what they are for."""
        names = ("padding", "end", "embed", "match", "languages", "close", "start", "image", "around_image")
        return {name: getattr(self, name) for name in names}

    def _find(self, source: str) -> dict[str, Any]:
        """Finds the special tokens of a tokenizer that mm made, by their names."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        special = {t.content for t in self._backend.get_added_tokens_decoder().values() if t.special}
        for name in (PADDING, END, EMBED, MATCH):
            if name not in special:
                raise CheckpointError(f"{source}: has no special token {name}; 'mm tokenizer' makes one that has")
        codes = [match.group(1) for name in special if (match := _LANGUAGE.fullmatch(name))]
        codes.sort(key=lambda code: vocabulary[language_token(code)])
        languages = {code: vocabulary[language_token(code)] for code in codes if code not in ("pad", "end")}
        if not languages:
            raise CheckpointError(f"{source}: has no language's token, such as <en>; 'mm tokenizer' makes one that has")
        self._check(vocabulary, source)
        ids = [vocabulary[name] for name in (PADDING, END, EMBED, MATCH)]
        return dict(zip(("padding", "end", "embed", "match"), ids, strict=True)) | {"languages": languages}

    def _check(self, vocabulary: dict[str, int], source: str) -> None:
        """Refuses a tokenizer whose ids aren't 0 to V - 1, or that doesn't know every byte."""
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise CheckpointError(f"{source}: its {len(vocabulary)} tokens aren't numbered from 0 without gaps")
        text = "a photo, 一张图片 ~\x01é\U0001f600"
        try:
            same = self.decode(self.encode([text]))[0] == text
        except Exception as error:  # the library raises bare exceptions
            raise CheckpointError(f"{source}: can't encode text ({error})") from error
        if not same:
            raise CheckpointError(f"{source}: doesn't keep every byte of a text; 'mm tokenizer' makes one that does")

    @classmethod
    def read(cls, path: str | Path, special: Mapping[str, Any] | None = None, clean: str | None = None) -> Tokenizer:
        """Reads a ``tokenizer.json``.

        Args:
            path: the file.
            special: ids of special tokens, as for the class.
            clean: how texts are cleaned, likewise.

        Raises:
            CheckpointError: the file is missing or isn't a tokenizer.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"{path}: can't be read ({error.strerror}); a model needs its tokenizer.json"
            ) from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: isn't UTF-8, so not a tokenizer.json") from error
        return cls.from_json(text, str(path), special, clean)

    @classmethod
    def from_json(
        cls, text: str, source: str, special: Mapping[str, Any] | None = None, clean: str | None = None
    ) -> Tokenizer:
        """Reads what ``to_json`` gives.

        Args:
            text: JSON of the ``tokenizers`` library.
            source: where it came from, for the error message.
            special: ids of special tokens, as for the class.
            clean: how texts are cleaned, likewise.

        Raises:
            CheckpointError: it isn't a tokenizer.
        """
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_str(text)
        except Exception as error:  # the library raises bare exceptions
            raise CheckpointError(f"{source}: not a tokenizer of the tokenizers library ({error})") from error
        return cls(backend, source, special, clean)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, languages: Sequence[str]) -> Tokenizer:
        """Learns byte-level BPE merges (Sennrich et al., arXiv:1508.07909) on lower-cased text.

        Args:
            texts: what to learn from.
            vocabulary: number of tokens V, special tokens and the 256 bytes included.
            languages: codes of the languages, one first token each.

        Raises:
            OptionError: the vocabulary has no room for the bytes, or a language isn't a code like ``en``.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

        for language in languages:
            if not _LANGUAGE.fullmatch(language_token(language)) or language in ("pad", "end"):
                raise OptionError(f"{language!r} isn't a language code like 'en' or 'zh'")
        special = [PADDING, END, EMBED, MATCH, *map(language_token, languages), MASK]
        if vocabulary < 256 + len(special):
            raise OptionError(
                f"a vocabulary of {vocabulary} has no room for 256 bytes and {len(special)} special tokens"
            )
        backend = Backend(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocabulary,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return cls(backend)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """Returns what ``read`` takes."""
        return self._backend.to_str(pretty=False)

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Turns texts into token ids, without special tokens, each cut to ``max_tokens``.

        Special tokens spelled out in a text are text, unless a unigram model has them as pieces of text too; half a
        surrogate pair becomes a question mark.
        """
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        if self.clean is not None:
            from open_clip.tokenizer import get_clean_fn

            whole = [get_clean_fn(self.clean)(text) for text in whole]
        encoded = self._backend.encode_batch(whole, add_special_tokens=False)
        return [e.ids[:max_tokens] for e in encoded]

    def tidy(self, text: str) -> str:
        """Gives a text as the model has learnt texts: mm's own models know it by ``clean_caption``, others as it is."""
        return clean_caption(text) if self.own else text

    def encode_captions(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Turns captions into token ids as ``encode`` does, but behind the mark of an image where a model has one.

        Args:
            texts: the captions, or how they begin.
            max_tokens: the most tokens of each, marks not counted; None for all.
        """
        if self.image is None:
            return self.encode(texts, max_tokens)
        mark = self.image if self.around_image is None else self.around_image
        return [ids[:max_tokens] for ids in self._encode_behind(mark, [text.strip(" ") for text in texts])]

    def _encode_behind(self, token: int, texts: Sequence[str]) -> list[list[int]]:
        """Turns texts that stand behind a special token into token ids, without that token.

        Some tokenizers take the first word of all for another than the first word behind a special token. A text that
        spells out special tokens is encoded as ``encode`` does.
        """
        name, special = str(self._backend.id_to_token(token)), self._backend.get_added_tokens_decoder()
        whole = [name + text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        behind = [e.ids[1:] for e in self._marking.encode_batch(whole, add_special_tokens=False)]
        alone = self.encode(texts)
        return [
            plain if (set(ids) - set(plain)) & special.keys() else ids for ids, plain in zip(behind, alone, strict=True)
        ]

    @cached_property
    def _marking(self) -> Any:
        """The same tokenizer, but special tokens that are spelled out in a text are special tokens."""
        from tokenizers import Tokenizer as Backend

        return Backend.from_str(self.to_json())

    def begin(self, language: str) -> list[int]:
        """Gives the tokens that a text in a language begins with, when a decoder writes it."""
        return [*([] if self.start is None else [self.start]), self.languages[language]]

    def writing(self, languages: Sequence[str]) -> Tokenizer:
        """Gives the same tokenizer for a model that is trained to write texts in these languages.

        Where every text begins alike, as with most public models, those in these languages do so from then on.

        Raises:
            OptionError: different languages begin differently, and one of these isn't among them.
        """
        unknown = [code for code in languages if code not in self.languages]
        if not unknown:
            return self
        begins = set(self.languages.values())
        if self.own or len(begins) != 1:
            known = ", ".join(self.languages)
            raise OptionError(f"language {unknown[0]!r} is unknown; the tokenizer knows {known}")
        special = self.special | {"languages": dict.fromkeys(languages, begins.pop())}
        return Tokenizer.from_json(self.to_json(), "the tokenizer", special, self.clean)

    def frame(self, language: str | None = None) -> tuple[list[int], list[int]]:
        """Gives the special tokens in front of a text and behind it, as an encoder reads it.

        They are those that ``tokenizer.json`` puts there. A tokenizer that puts none, as mm's own, closes a text with
        the end token.

        Args:
            language: of the text, where one of the tokens stands for it; None for the one that stands there already.
        """
        encoded = self._backend.encode("a")
        known = set(self.languages.values())
        marks = [
            self.languages[language] if language is not None and number in known else number for number in encoded.ids
        ]
        special = encoded.special_tokens_mask
        first = next((place for place, flag in enumerate(special) if not flag), len(special))
        behind = [number for number, flag in zip(marks[first:], special[first:], strict=True) if flag]
        return marks[:first], behind if any(special) else [self.end]

    def enclose(self, rows: Sequence[Sequence[int]], max_tokens: int, language: str | None = None) -> list[list[int]]:
        """Puts special tokens around texts, as an encoder reads them.

        Args:
            rows: what ``encode`` gave.
            max_tokens: the most tokens of each; a text that is longer is cut, its special tokens are not.
            language: of the texts, as for ``frame``.
        """
        front, behind = self.frame(language)
        room = max(0, max_tokens - len(front) - len(behind))
        return [[*front, *row[:room], *behind] for row in rows]

    def encode_masked(self, texts: Sequence[str]) -> list[list[int]]:
        """Turns texts into token ids as ``encode`` does; the name of the mask, such as ``[MASK]``, is the mask.

        Raises:
            CheckpointError: this tokenizer has no mask.
        """
        if self._mask is None or self.mask is None:
            raise CheckpointError(f"the tokenizer has no token {' or '.join(MASKS)} to fill in")
        parts = [self._mask.split(text) for text in texts]
        encoded = iter(self.encode([part for some in parts for part in some]))
        rows = []
        for some in parts:
            row = next(encoded)
            for _ in some[1:]:
                row = [*row, self.mask, *next(encoded)]
            rows.append(row)
        return rows

    def spellings(self, phrase: str) -> list[list[int]]:
        """Gives every way in which a word or phrase is commonly written in tokens within a caption.

        At the beginning of a caption and behind other words, as it is, in lower case and with a capital letter, as far
        as these differ. A token that holds more than the phrase, such as two Chinese words, isn't found.

        Args:
            phrase: without special tokens; white space at its ends makes no difference.

        Raises:
            OptionError: it is empty, or the vocabulary has no tokens for it.
        """
        if not phrase.strip():
            raise OptionError(f"phrase {phrase!r} is empty; give a word or several")
        rows: list[list[int]] = []
        for form in spellings.forms(phrase):
            rows += [self.encode([form])[0], self.encode_captions([form])[0]]
            for context in spellings.contexts(form):
                before, whole = self.encode([context.rstrip(), context + form])
                rows += [whole[len(before) :]] if whole[: len(before)] == before else []
        found = [list(row) for row in dict.fromkeys(map(tuple, rows)) if row and not self._without_words & set(row)]
        if not found:
            raise OptionError(f"phrase {phrase!r} can't be written with the vocabulary of this model; give another")
        return found

    @cached_property
    def _without_words(self) -> frozenset[int]:
        return spellings.without_words(self._backend)

    @cached_property
    def open_tokens(self) -> frozenset[int]:
        """Ids of tokens whose text later tokens may change, such as single bytes of a character."""
        return spellings.open_tokens(self._backend)

    @cached_property
    def open_characters(self) -> frozenset[str]:
        """Characters of a decoded text that may be taken away or changed once others follow them."""
        return spellings.open_characters(self._backend)

    def name(self, token: int) -> str:
        """Gives a token as text, or its name where it isn't text."""
        return self.names([token])[0]

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Gives tokens as ``name`` does."""
        texts = self.decode([[token] for token in tokens])
        return [text or str(self._backend.id_to_token(token)) for text, token in zip(texts, tokens, strict=True)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Turns rows of token ids into texts.

        Special tokens are left out, and so are bytes that aren't UTF-8: a token may be part of a character, and a model
        may write it without the others. The replacement character U+FFFD, which stands for such bytes, goes too.
        """
        texts = self._backend.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        return [text.replace("\ufffd", "").strip() for text in texts]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Pads rows on the right to one length.

        Returns:
            (B, T) int64 token ids and (B, T) bool, true at real tokens; T is at least 1.
        """
        longest = max([1, *map(len, rows)])
        tokens = np.full((len(rows), longest), self.padding, dtype=np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        lengths = np.array([len(r) for r in rows], dtype=np.int64).reshape(-1, 1)
        return tokens, np.arange(longest)[None, :] < lengths
