from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mm.checkpoints.tokenizers import read_tokenizer
from mm.data.tokenizer import Tokenizer
from mm.errors import CheckpointError

SPECIAL: dict[str, Any] = {"padding": 0, "end": 1, "embed": None, "match": None, "languages": {"en": 1}, "close": None}
TEXTS = [
    "a dog runs through the snow",
    "A Dog's ball isn't here, is it? No - it's over there!",
    "two men (and 3 women) on 25 bicycles... in 1999.",
    "Ein Mädchen läuft über die Straße; café, naïve, ÅNGSTRÖM",
    "一张图片里有两只狗。",
    "emoji \U0001f600\U0001f468\u200d\U0001f469 and \u00a0 odd\tspace\n\nlines  ",
    "",
    "they've said we're late; I'm sure he'd go, she'll stay, the cat' s tail",
    "is it , or isn 't it ? yes , it 's !",
    "x" * 120,
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CLIP = ["<|startoftext|>", "<|endoftext|>"]


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def wordpiece(folder: Path, **config: Any) -> None:
    """Writes ``vocab.txt`` and ``tokenizer_config.json``."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=config.get("do_lower_case", True))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        TEXTS[:5], trainers.WordPieceTrainer(vocab_size=140, special_tokens=BERT, show_progress=False)
    )
    vocabulary = backend.get_vocab()
    (folder / "vocab.txt").write_text(
        "\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n", encoding="utf-8"
    )
    write_json(folder / "tokenizer_config.json", config)


def byte_pairs(folder: Path, special: list[str], *, word_end: str = "", **config: Any) -> None:
    """Writes ``vocab.json``, ``merges.txt`` and ``tokenizer_config.json``."""
    suffix: dict[str, Any] = {"end_of_word_suffix": word_end} if word_end else {}
    backend = Backend(models.BPE(**suffix))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=[*special, *(letter + word_end for letter in sorted(alphabet) if word_end)],
        initial_alphabet=alphabet,
        show_progress=False,
        **suffix,
    )
    texts = [text.lower() for text in TEXTS] if word_end else TEXTS
    backend.train_from_iterator(texts * 3, trainer)
    backend.model.save(str(folder))
    write_json(folder / "tokenizer_config.json", config)


def agree(ours: Tokenizer, reference: Any) -> None:
    """Compares ids without and with special tokens, and texts that are decoded."""
    assert len(ours) == len(reference)
    for text in TEXTS:
        expected = reference(text, add_special_tokens=False).input_ids
        assert ours.encode([text])[0] == expected, text
        for ids in (reference(text).input_ids, [*expected, *expected[::-1]]):
            decoded = reference.decode(ids, skip_special_tokens=True).replace("\ufffd", "").strip()
            assert ours.decode([ids])[0] == decoded
    alphabet = list(range(len(reference)))
    for ids in (alphabet, alphabet[::-1], alphabet[::3]):
        decoded = reference.decode(ids, skip_special_tokens=True).replace("\ufffd", "").strip()
        assert ours.decode([ids])[0] == decoded


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": "BertTokenizerFast", "strip_accents": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"clean_up_tokenization_spaces": True},
        {"added_tokens_decoder": {"140": {"content": "[DEC]", "special": True}}},
        {"added_tokens_decoder": {"140": {"content": "[DEC]", "special": False}}, "bos_token": "[DEC]"},
        {"extra_special_tokens": ["dog"]},
    ],
)
def test_wordpiece_from_its_vocabulary(config: dict[str, Any], tmp_path: Path) -> None:
    wordpiece(tmp_path, **config)
    reference = transformers.BertTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path, SPECIAL)
    agree(ours, reference)
    assert ours.enclose(ours.encode(TEXTS), 999) == [reference(text).input_ids for text in TEXTS]


@pytest.mark.parametrize(
    "config",
    [{}, {"tokenizer_class": "GPT2Tokenizer"}, {"add_prefix_space": True}, {"clean_up_tokenization_spaces": True}],
)
def test_the_bytes_of_gpt2(config: dict[str, Any], tmp_path: Path) -> None:
    byte_pairs(tmp_path, ["<|endoftext|>"], **config)
    ours = read_tokenizer(tmp_path, SPECIAL)
    agree(ours, transformers.GPT2Tokenizer.from_pretrained(tmp_path))
    assert ours.decode(ours.encode(TEXTS)) == [text.strip() for text in TEXTS]


@pytest.mark.parametrize(
    "config", [{}, {"tokenizer_class": "RobertaTokenizer"}, {"tokenizer_class": "BartTokenizerFast"}]
)
def test_the_bytes_of_roberta(config: dict[str, Any], tmp_path: Path) -> None:
    byte_pairs(tmp_path, ROBERTA, **config)
    reference = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path, SPECIAL)
    agree(ours, reference)
    assert ours.enclose(ours.encode(TEXTS), 999) == [reference(text).input_ids for text in TEXTS]


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "CLIPTokenizer"}])
def test_the_words_of_clip(config: dict[str, Any], tmp_path: Path) -> None:
    byte_pairs(tmp_path, CLIP, word_end="</w>", **config)
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path, SPECIAL)
    agree(ours, reference)
    assert ours.enclose(ours.encode(TEXTS), 999) == [reference(text).input_ids for text in TEXTS]
    assert ours.decode(ours.encode(["A DOG runs"])) == ["a dog runs"]


@pytest.mark.parametrize("kind", ["BertTokenizer", "GPT2Tokenizer", "CLIPTokenizer"])
def test_a_saved_tokenizer_is_read_whole(kind: str, tmp_path: Path) -> None:
    made, saved = tmp_path / "made", tmp_path / "saved"
    made.mkdir()
    if kind == "BertTokenizer":
        wordpiece(made, clean_up_tokenization_spaces=True)
    else:
        clip = kind == "CLIPTokenizer"
        byte_pairs(made, CLIP if clip else ["<|endoftext|>"], word_end="</w>" if clip else "")
    reference = getattr(transformers, kind).from_pretrained(made)
    reference.save_pretrained(saved)
    assert (saved / "tokenizer.json").is_file()
    again = getattr(transformers, kind).from_pretrained(saved)
    agree(read_tokenizer(saved, SPECIAL), again)
    agree(read_tokenizer(made, SPECIAL), again)


def test_spaces_are_cleaned_up_only_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    pieces = [*BERT, "the", "cat", "'", "s", "t", "tail", ".", "isn", "##n't", "n't", "i", "m", "'m"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    row = [[pieces.index(word) for word in ("the", "cat", "'", "s", "tail", ".", "i", "'", "m", "'", "t", ".")]]
    for clean, text in ((False, "the cat ' s tail. i ' m ' t."), (True, "the cat's tail. i'm't.")):
        write_json(tmp_path / "tokenizer_config.json", {"clean_up_tokenization_spaces": clean})
        assert read_tokenizer(tmp_path, SPECIAL).decode(row) == [text]
        assert transformers.BertTokenizer.from_pretrained(tmp_path).decode(row[0]) == text


def test_tokens_added_beside_a_vocabulary(tmp_path: Path) -> None:
    wordpiece(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"[ENC]": 141, "[DEC]": 140})
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": {"content": "[DEC]", "lstrip": False}})
    ours = read_tokenizer(tmp_path, SPECIAL)
    agree(ours, transformers.BertTokenizer.from_pretrained(tmp_path))
    assert len(ours) == 142 and ours.decode([[140]]) == [""]


def test_a_special_token_that_only_the_settings_name_is_not_text(tmp_path: Path) -> None:
    wordpiece(tmp_path)
    transformers.BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["added_tokens"] = []
    write_json(tmp_path / "tokenizer.json", values)
    assert read_tokenizer(tmp_path, SPECIAL).decode([[2, 0, 3, 4, 0]]) == [""]


def forbidden(folder: Path) -> tuple[Any, Path]:
    """An object that leaves a file behind when it is unpickled."""
    canary = folder / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return open, (str(canary), "w")

    return Bomb(), canary


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_pickle_is_refused_and_not_executed(name: str, protocol: int, tmp_path: Path) -> None:
    if name != "vocab.txt":
        byte_pairs(tmp_path, ["<|endoftext|>"])
    bomb, canary = forbidden(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(bomb, protocol))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_tokenizer(tmp_path, SPECIAL)
    assert not canary.exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert canary.exists()


def change(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")


WRONG: list[tuple[str, str, str]] = [
    ("tokenizer.json", "{", r"tokenizer\.json: not JSON"),
    ("tokenizer.json", "[]", r"tokenizer\.json: isn't a JSON object"),
    ("tokenizer.json", "[" * 100_000, r"tokenizer\.json: not JSON"),
    ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer of the tokenizers library"),
    (
        "tokenizer.json",
        '{"model": {"vocab": {}}, "added_tokens": [{}]}',
        r"tokenizer\.json: an added token lacks its id",
    ),
    (
        "tokenizer.json",
        '{"model": {"type": "BPE", "vocab": {"a": 7}, "merges": []}}',
        "its 1 tokens aren't numbered fr",
    ),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": "0"}}}', "its 1 tokens aren't numbered from 0"),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}', "library"),
    (
        "tokenizer.json",
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 2, "content": "b"}]}',
        r"tokenizer\.json: token 'b' is numbered 2, not 1",
    ),
    (
        "tokenizer.json",
        '{"model": {"type": "WordPiece", "unk_token": "?", "vocab": {"a": 0}, "continuing_subword_prefix": "##", '
        '"max_input_chars_per_word": 9}}',
        r"tokenizer\.json: can't encode text",
    ),
    ("vocab.json", '{"a": 0, "b": 2}', r"vocab\.json: its 2 tokens aren't numbered from 0 without gaps"),
    ("vocab.json", '{"a": -1}', r"vocab\.json: doesn't give each token its number"),
    ("vocab.json", '{"a": true}', r"vocab\.json: doesn't give each token its number"),
    ("merges.txt", "#version: 0.2\na b c\n", r"merges\.txt: merge 1 is 'a b c', not two tokens"),
    ("merges.txt", "never seen\n", r"vocab\.json: not a tokenizer of the tokenizers library"),
    ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', "tokenizer_class is 'T5Tokenizer'; mm makes Bert"),
    ("tokenizer_config.json", '{"add_prefix_space": 1}', "add_prefix_space is 1, not of type bool"),
    ("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer"}', r"has neither tokenizer\.json nor vocab\.txt"),
    (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"x": {"content": "b"}}}',
        r"tokenizer_config\.json: an added token is numbered 'x'",
    ),
    (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"9": {"content": "<|endoftext|>"}}}',
        r"token '<\|endoftext\|>' is numbered 9, not 0",
    ),
    ("added_tokens.json", '{"[DEC]": 1000}', r"token '\[DEC\]' is numbered 1000, not 450"),
]


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_a_damaged_file_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    byte_pairs(tmp_path, ["<|endoftext|>"])
    read_tokenizer(tmp_path, SPECIAL)
    change(tmp_path, name, text)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_tokenizer(tmp_path, SPECIAL)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    byte_pairs(tmp_path, ["<|endoftext|>"])
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json|nor merges\.txt"):
        read_tokenizer(tmp_path, SPECIAL)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"])
def test_a_sentencepiece_file_alone_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x00")
    with pytest.raises(CheckpointError, match=rf"has {name}, which mm doesn't read.*AutoTokenizer.*save_pretrained"):
        read_tokenizer(tmp_path, SPECIAL)


def test_tokens_around_a_text_must_be_in_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\na\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: lacks \[SEP\], which stands around a text"):
        read_tokenizer(tmp_path, SPECIAL)


def test_an_unknown_decoder_stays_as_it_is(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"a": 0, "dog": 1, "?": 2, "[UNK]": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path, SPECIAL).decode([[0, 1]]) == ["adog"]
