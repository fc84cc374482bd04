from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from blips import GREEDY, KINDS, PHOTOS, PROMPTS, Reference, logits, made, used
from folders import random_
from torch import Tensor

import mm
from mm.checkpoints import directory, save_directory
from mm.checkpoints.directory import Loaded, special_tokens
from mm.checkpoints.export_blip import save_blip
from mm.checkpoints.resolve import find_tokenizer, load_model
from mm.data.tokenizer import Tokenizer
from mm.data.transforms import Preprocessing
from mm.errors import OutputError, UsageError
from mm.models import Parts, build

Close = Callable[[str, Tensor, Tensor], None]
SIZES = {"width": 32, "heads": 4, "blocks": 1}
VIT = {"preset": "vit", "image_size": 32, "patch_size": 8} | SIZES
BERT = {"preset": "bert", "hidden": 48, "max_tokens": 24} | SIZES
RETRIEVAL = {"vision": VIT, "text_encoder": BERT, "image_pooling": "first", "text_pooling": "first"}
ANSWERING = {"vision": VIT, "text_encoder": BERT, "text_decoder": BERT, "sees": "answer"}


def again(folder: Path, row: str) -> Reference:
    """What transformers loads of a folder, nothing missing and nothing left over."""
    model, report = KINDS[row].from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return Reference(model.eval(), transformers.AutoProcessor.from_pretrained(folder))


def own(words: Tokenizer, **parts: Any) -> Loaded:
    """A random model that mm built, with a tokenizer of mm's own unless told otherwise."""
    architecture = Parts(**parts)
    model = random_(build(architecture, len(words), special_tokens(words)))
    return Loaded(model, words, architecture, "")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """mm-tiny's tokenizer, of two languages, with a token behind texts too."""
    tokenizer = Tokenizer.read(find_tokenizer("mm-tiny"))
    special = tokenizer.special | {"embed": tokenizer.match, "close": tokenizer.end}
    return Tokenizer.from_json(tokenizer.to_json(), special=special, source="mm-tiny")


@pytest.mark.parametrize("row", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_changed_model_is_the_same_to_transformers(row: str, tied: bool, tmp_path: Path, close: Close) -> None:
    made(tmp_path / "blip", row, tied=tied)
    loaded = load_model(tmp_path / "blip")
    random_(loaded.model, seed=5)  # as training changes it
    kept: dict[str, Any] = {"preprocessing": loaded.preprocessing, "family": loaded.family}
    save_directory(tmp_path / "own", loaded.model, loaded.tokenizer, loaded.architecture, "", **kept)
    save_blip(tmp_path / "hub", load_model(tmp_path / "own"))
    reference = again(tmp_path / "hub", row)
    close(row, *logits(row, reference, loaded.model, 3))
    hub = load_model(tmp_path / "hub")
    assert (hub.architecture, hub.transform, hub.family) == (loaded.architecture, loaded.transform, row)
    assert hub.tokenizer.special == loaded.tokenizer.special
    assert used(mm.load(tmp_path / "hub", "cpu")) == used(mm.load(tmp_path / "own", "cpu"))
    if row == "BLIP retrieval":
        assert hub.model.logit_scale.item() == loaded.model.logit_scale.item() != 2.0


@pytest.mark.parametrize("row", KINDS)
def test_inputs_are_prepared_as_before(row: str, tmp_path: Path) -> None:
    before = made(tmp_path / "blip", row)
    save_blip(tmp_path / "hub", load_model(tmp_path / "blip"))
    after = again(tmp_path / "hub", row)
    for text in (*PROMPTS[1:], "it's a photo, of 2 dogs!"):
        expected, found = before.inputs(PHOTOS[0], text), after.inputs(PHOTOS[0], text)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    if row != "BLIP retrieval":
        assert after.written(PHOTOS[0], PROMPTS[1]) == before.written(PHOTOS[0], PROMPTS[1])


def test_a_captioner_that_mm_built(words: Tokenizer, tmp_path: Path) -> None:
    loaded = own(words, vision=VIT, text_decoder=BERT, matches=False)
    with pytest.raises(UsageError, match=r"must write one language; choose one of en, zh$"):
        save_blip(tmp_path / "hub", loaded)
    with pytest.raises(UsageError, match="choose one of en, zh; 'fr' is none of them"):
        save_blip(tmp_path / "hub", loaded, language="fr")
    assert not (tmp_path / "hub").exists()
    save_blip(tmp_path / "hub", loaded, language="zh")
    save_directory(tmp_path / "own", loaded.model, words, loaded.architecture, "")
    reference, model = again(tmp_path / "hub", "BLIP captioning"), mm.load(tmp_path / "own", "cpu")
    for prompt in ("", "一只狗"):
        captions = model.caption(PHOTOS, language="zh", prompt=prompt, config=GREEDY)
        for photo, caption in zip(PHOTOS, captions, strict=True):
            ids = reference.model.generate(**reference.inputs(photo, prompt), max_new_tokens=GREEDY.max_tokens)
            assert ids[0, 0] == words.languages["zh"]
            assert words.decode(ids[:, 1:].tolist()) == [caption.text]


def test_texts_of_a_tokenizer_of_mm_are_enclosed(words: Tokenizer, tmp_path: Path) -> None:
    save_blip(tmp_path, own(words, **RETRIEVAL))
    reference = again(tmp_path, "BLIP retrieval")
    ids = reference.processor(text=["a dog", "two dogs in the snow"], padding=True)["input_ids"]
    inner = words.encode(["a dog", "two dogs in the snow"])
    assert [row[: len(i) + 2] for row, i in zip(ids, inner, strict=True)] == [
        [words.match, *i, words.close] for i in inner
    ]
    assert set(ids[0][len(inner[0]) + 2 :]) == {words.padding}


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"vision": VIT, "text_encoder": BERT, "text_decoder": BERT}, "it embeds and captions"),
        ({"vision": VIT, "text_decoder": BERT, "sees": "prefix"}, "architecture.sees is 'prefix', not 'cross'"),
        (
            {"vision": VIT | {"pre_norm": True}, "text_decoder": BERT},
            "vision.pre_norm is True, not False; .*patch_bias",
        ),
        ({"vision": VIT | {"bias": False}, "text_decoder": BERT}, "vision.bias is False, not True"),
        ({"vision": VIT, "text_decoder": BERT | {"head_transform": False}}, "text_decoder.head_transform is False"),
        (
            {"vision": VIT, "text_decoder": {"preset": "gpt2", "max_tokens": 24} | SIZES},
            "text_decoder.preset is 'gpt2', not 'bert'",
        ),
        (
            {"vision": VIT, "text_decoder": BERT, "connector": {"preset": "projection"}},
            "architecture.connector is {.*}, not None",
        ),
        (RETRIEVAL | {"text_pooling": "mean"}, "architecture.text_pooling is 'mean', not 'first'"),
        (RETRIEVAL | {"image_bias": False}, "architecture.image_bias is False, not True"),
        (ANSWERING | {"share_embedding": True}, "architecture.share_embedding is True, not False"),
        (ANSWERING | {"text_encoder": BERT | {"blocks": 2}}, "text_encoder.blocks is 2, not 1"),
        (ANSWERING | {"vision": VIT | {"width": 40}}, "vision.width isn't architecture.text_encoder.width"),
    ],
)
def test_models_that_blip_cannot_be(parts: dict[str, Any], reason: str, words: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"can't be written as BLIP: .*{reason}"):
        save_blip(tmp_path / "hub", own(words, **parts), language="en")
    assert not (tmp_path / "hub").exists()


def test_tokenizers_and_images_that_blip_cannot_have(words: Tokenizer, tmp_path: Path) -> None:
    loaded = own(words, **RETRIEVAL)
    cases = [
        (replace(loaded, preprocessing=Preprocessing(32, "shortest")), "its images are cut"),
        (replace(loaded, preprocessing=Preprocessing(32, "stretch", scaled=40)), "its images are cut"),
        (replace(loaded, tokenizer=Tokenizer.read(find_tokenizer("mm-tiny"))), "begin with different tokens"),
    ]
    made(tmp_path / "blip", "BLIP retrieval")
    other = load_model(tmp_path / "blip")
    for special, reason in (
        ({"close": None}, r"puts \[CLS\] \[SEP\] around texts, and the model something else"),
        ({"embed": 4, "match": 4}, r"puts \[CLS\] \[SEP\] around texts"),
    ):
        tokenizer = Tokenizer.from_json(other.tokenizer.to_json(), "", other.tokenizer.special | special)
        cases.append((replace(other, tokenizer=tokenizer), reason))
    unclosed = Tokenizer.from_json(words.to_json(), "", words.special | {"close": None})
    cases.append((replace(loaded, tokenizer=unclosed), "texts don't begin with a token of the tokenizer and end with"))
    cases.append((load_model("mm-tiny"), "and this is built otherwise"))
    for model, reason in cases:
        with pytest.raises(UsageError, match=f"can't be written as BLIP: .*{reason}"):
            save_blip(tmp_path / "hub", model)
    assert not (tmp_path / "hub").exists()


def test_precision_on_disk(tmp_path: Path, close: Close) -> None:
    made(tmp_path / "blip", "BLIP captioning")
    loaded = load_model(tmp_path / "blip")
    save_blip(tmp_path / "hub", loaded, torch.float16)
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["dtype"] == "float16"
    half = again(tmp_path / "hub", "BLIP captioning").model
    assert half.dtype == torch.float16
    state = loaded.model.state_dict()
    assert torch.equal(
        half.text_decoder.bert.embeddings.word_embeddings.weight, state["text_decoder.embedding.weight"].half()
    )
    loaded.model.decoder.positions.data[0] = 1e6
    with pytest.raises(
        OutputError, match=r"too large for torch.float16: text_decoder.bert.embeddings.position_embeddings"
    ):
        save_blip(tmp_path / "other", loaded, torch.float16)


def test_what_cannot_be_finished_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "blip", "BLIP captioning")
    loaded = load_model(tmp_path / "blip")
    written: list[str] = []
    write = directory.write_whole

    def full(path: Path, content: bytes) -> None:
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        write(path, content)
        written.append(path.name)

    monkeypatch.setattr(directory, "write_whole", full)
    with pytest.raises(OutputError, match="can't be written there"):
        save_blip(tmp_path / "hub", loaded)
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == sorted(written)
    assert "config.json" not in written
    monkeypatch.undo()
    save_blip(tmp_path / "hub", loaded)
    save_blip(tmp_path / "hub", loaded)
    assert load_model(tmp_path / "hub").family == "BLIP captioning"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: the model can't be written there"):
        save_blip(tmp_path / "file", loaded)
    before = {path.name: path.read_bytes() for path in (tmp_path / "blip").iterdir()}
    with pytest.raises(OutputError, match=r"holds generation_config.json, processor_config.json of another model"):
        save_blip(tmp_path / "blip", loaded)
    assert {path.name: path.read_bytes() for path in (tmp_path / "blip").iterdir()} == before
