"""Public checkpoints that are damaged, hostile or contradict themselves: one clear error each."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from public import bert, write_tokenizer
from safetensors.torch import load_file, save_file

from mm.checkpoints.families import CONVERTERS
from mm.checkpoints.resolve import load_model
from mm.checkpoints.tensors import read_pickle
from mm.checkpoints.weights import Weights
from mm.errors import CheckpointError, MMError

Change = Callable[[dict[str, Any]], Any]
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
EMBEDDING = "bert.embeddings.word_embeddings.weight"
NORM = "bert.encoder.layer.1.output.LayerNorm.weight"
HEAD = "cls.predictions.transform.dense.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT in the hub's layout."""
    folder = tmp_path_factory.mktemp("bert")
    bert(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(made, tmp_path / "bert"))


def logits(folder: Path) -> torch.Tensor:
    """What the model of a folder makes of a text."""
    encoder = load_model(folder).model.encoder
    with torch.inference_mode():
        return encoder.logits(encoder(torch.arange(5, 12)[None]))


def refused(folder: Path) -> str:
    """The one line that says why a folder isn't loaded."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def edit(path: Path, change: Change) -> None:
    """Changes the object in a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def set_config(folder: Path, **values: Any) -> None:
    """Sets values in ``config.json``."""
    edit(folder / "config.json", lambda config: config.update(values))


def pickled(folder: Path, **options: Any) -> Path:
    """Turns the safetensors of a folder into a pickle."""
    state = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    torch.save(state, folder / PICKLED, **options)
    return folder / PICKLED


def sharded(folder: Path, name: str = SAFE) -> Path:
    """Divides the weights of a folder into two files with an index."""
    state = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    stem, _, suffix = name.rpartition(".")
    keys, homes = sorted(state), {}
    for number, some in enumerate((keys[::2], keys[1::2]), 1):
        part = f"{stem}-{number:05}-of-00002.{suffix}"
        homes |= dict.fromkeys(some, part)
        values = {key: state[key] for key in some}
        if suffix == "bin":
            torch.save(values, folder / part)
        else:
            save_file(values, folder / part)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return index


def test_a_folder_without_a_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json: can't be read (No such file or directory)" in refused(folder)


@pytest.mark.parametrize("names", [["BertForNextSentencePrediction"], [], "BertForMaskedLM", [{}], [None, 3]])
def test_architectures_that_are_not_supported(folder: Path, names: Any) -> None:
    set_config(folder, architectures=names)
    (folder / SAFE).unlink()
    message = refused(folder)
    assert f"architectures is {names!r}, which mm doesn't support" in message
    assert all(name in message for name in CONVERTERS)


def test_no_architectures(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.pop("architectures"))
    message = refused(folder)
    assert "config.json: has no 'architectures'" in message
    assert all(name in message for name in CONVERTERS)


def test_the_supported_one_of_several_architectures_is_taken(folder: Path) -> None:
    expected = logits(folder)
    set_config(folder, architectures=["BertForFun", "BertForMaskedLM"])
    assert torch.equal(logits(folder), expected)


def test_missing_and_extra_weights_are_all_named(folder: Path) -> None:
    state = load_file(folder / SAFE)
    del state[NORM], state[HEAD]
    save_file(state | {"one.weight": torch.zeros(2), "another": torch.zeros(1)}, folder / SAFE)
    message = refused(folder)
    for part in (f"missing {NORM}", f"missing {HEAD}", "unexpected one.weight", "unexpected another"):
        assert part in message


def test_weights_of_other_shapes_are_all_named_with_what_config_says(folder: Path) -> None:
    state = load_file(folder / SAFE)
    save_file(state | {NORM: torch.zeros(5), HEAD: torch.zeros(32, 31)}, folder / SAFE)
    message = refused(folder)
    assert f"encoder.blocks.1.feed_forward_norm.weight has shape (32,) by config.json, but comes from {NORM} (5,)" in (
        message
    )
    assert f"encoder.head.transform.map.weight has shape (32, 32) by config.json, but comes from {HEAD} (32, 31)" in (
        message
    )


def test_a_copy_that_differs_from_what_it_repeats(folder: Path) -> None:
    state = load_file(folder / SAFE)
    copy = "cls.predictions.decoder.weight"
    save_file(state | {copy: state[EMBEDDING].clone()}, folder / SAFE)
    load_model(folder)
    save_file(state | {copy: state[EMBEDDING] + 1}, folder / SAFE)
    assert f"{copy} differs from {EMBEDDING}, which it should repeat" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("make", [lambda folder: None, pickled])
def test_weights_that_are_not_floating_point_numbers(folder: Path, make: Any, dtype: torch.dtype) -> None:
    state = load_file(folder / SAFE)
    save_file(state | {HEAD: state[HEAD].to(dtype)}, folder / SAFE)
    make(folder)
    assert f"{HEAD} is of type" in refused(folder)


@pytest.mark.parametrize("name", [SAFE, PICKLED])
def test_weights_in_parts(folder: Path, name: str) -> None:
    expected = logits(folder)
    sharded(folder, name)
    assert torch.equal(logits(folder), expected)


@pytest.mark.parametrize("name", [SAFE, PICKLED])
def test_a_part_that_is_missing(folder: Path, name: str) -> None:
    sharded(folder, name)
    (part,) = folder.glob("*-00002-of-00002.*")
    part.unlink()
    assert f"index.json: names {part.name}, which is missing" in refused(folder)


@pytest.mark.parametrize("elsewhere", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_that_names_a_file_elsewhere(folder: Path, elsewhere: str) -> None:
    index = sharded(folder)
    shutil.copy(next(folder.glob("*-00001-of-00002.*")), folder.parent / "other.safetensors")
    edit(index, lambda values: values["weight_map"].update({NORM: elsewhere}))
    assert f"index.json: names {elsewhere!r}, which isn't a file beside it" in refused(folder)


@pytest.mark.parametrize("homes", [None, [], {}, "all", 3])
def test_an_index_without_a_map(folder: Path, homes: Any) -> None:
    edit(sharded(folder), lambda values: values.update(weight_map=homes))
    assert "index.json: has no weight_map" in refused(folder)


def test_an_index_that_is_wrong_about_where_a_weight_is(folder: Path) -> None:
    index = sharded(folder)
    homes = json.loads(index.read_text())["weight_map"]
    other = next(name for name in homes.values() if name != homes[NORM])
    edit(index, lambda values: values["weight_map"].update({NORM: other, "ghost": other}))
    message = refused(folder)
    assert f"{NORM} in {other}" in message and f"ghost in {other}" in message


def test_a_weight_in_two_parts(folder: Path) -> None:
    sharded(folder)
    first, second = sorted(folder.glob("*.safetensors"))
    save_file(load_file(second) | {NORM: torch.zeros(32), EMBEDDING: torch.zeros(3)}, second)
    save_file(load_file(first) | {NORM: torch.zeros(32), EMBEDDING: torch.zeros(3)}, first)
    assert f"which {first.name} holds too" in refused(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_weights(folder: Path, zipped: bool) -> None:
    expected = logits(folder)
    pickled(folder, _use_new_zipfile_serialization=zipped)
    assert torch.equal(logits(folder), expected)


def test_a_mapped_pickle_is_mapped_anew_and_stays_the_same(folder: Path) -> None:
    state = load_file(folder / SAFE)
    pickled(folder)
    weights = Weights(folder)
    kept = {name: weights[name] for name in weights}
    assert len({value.untyped_storage().data_ptr() for value in kept.values()}) > 3
    assert state.keys() == kept.keys() and all(value.equal(kept[name]) for name, value in state.items())


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [PICKLED, f"{PICKLED}.index.json", "tokenizer.json", "checkpoint.ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, name: str, zipped: bool) -> None:
    canary = folder / "ran"
    path = folder / name
    if name == "tokenizer.json":
        path.write_bytes(pickle.dumps(Canary(canary), protocol=4 if zipped else 0))
        assert "tokenizer.json" in refused(folder)
    elif path.suffix == ".ckpt":
        torch.save({"state_dict": {}, "mm": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"checkpoint\.ckpt: not a training checkpoint of mm"):
            load_model(path)
    else:
        if path.suffix == ".json":
            sharded(folder, PICKLED)
            path = sorted(folder.glob("*.bin"))[0]
        else:
            pickled(folder)
        state = torch.load(path)
        torch.save(state | {"evil": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
        assert f"{path.name}: can't be read as weights" in refused(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    "document",
    [
        [1, 2],
        {"state": {NORM: torch.zeros(32)}},
        {NORM: torch.zeros(1).expand(1 << 40)},
        {NORM: torch.zeros(32, device="meta")},
        {NORM: torch.eye(32).to_sparse()},
    ],
    ids=["list", "nested", "expanded", "meta", "sparse"],
)
def test_a_pickle_of_something_else(folder: Path, document: Any) -> None:
    (folder / SAFE).unlink()
    torch.save(document, folder / PICKLED)
    assert f"{PICKLED}: isn't a file of weights alone" in refused(folder)


@pytest.mark.parametrize("size", [0, 7, 8, 200, -1, -2000])
@pytest.mark.parametrize("name", [SAFE, PICKLED])
def test_weights_cut_anywhere(folder: Path, name: str, size: int) -> None:
    if name == PICKLED:
        pickled(folder)
    os.truncate(folder / name, size % (folder / name).stat().st_size)
    assert f"{name}: " in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", f"{SAFE}.index.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_json_files_that_are_damaged(folder: Path, name: str, content: bytes) -> None:
    if name.startswith(SAFE):
        sharded(folder)
    (folder / name).write_bytes(content)
    assert f"{name}: not JSON" in refused(folder) or f"{name}: isn't a JSON object" in refused(folder)


SIZES = ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "max_position_embeddings"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [1, 16, 64])
def test_a_configuration_that_contradicts_the_weights(folder: Path, name: str, value: int) -> None:
    set_config(folder, **{name: value})
    message = refused(folder)
    assert "contradict" in message or "don't fit" in message or "not a multiple of 4 heads" in message


def test_a_contradiction_names_both_sides(folder: Path) -> None:
    set_config(folder, num_hidden_layers=3)
    assert "missing bert.encoder.layer.2.attention.self.query.weight" in refused(folder)
    set_config(folder, num_hidden_layers=1)
    assert "unexpected bert.encoder.layer.1.attention.self.query.weight" in refused(folder)
    set_config(folder, num_hidden_layers=2, vocab_size=61)
    assert f"encoder.embedding.weight has shape (61, 32) by config.json, but comes from {EMBEDDING} (60, 32)" in (
        refused(folder)
    )


HOSTILE = ["many", "32", [32], {"a": 32}, True, 32.5, -1, -(10**30), 10**9, 10**18, 10**30, float("nan"), float("inf")]


@pytest.mark.parametrize("name", [*SIZES, "num_attention_heads", "layer_norm_eps"])
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_values_that_are_no_such_numbers(folder: Path, name: str, value: Any) -> None:
    set_config(folder, **{name: value})
    message = refused(folder)
    assert "config.json" in message or "don't fit" in message


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_null_is_what_the_family_takes(folder: Path, name: str) -> None:
    set_config(folder, **{name: None})
    message = refused(folder)
    assert "contradict config.json" in message or "missing bert.encoder.layer.2" in message


def test_heads_that_do_not_divide_the_width(folder: Path) -> None:
    for heads in (0, 5):
        set_config(folder, num_attention_heads=heads)
        assert "config.json: " in refused(folder)


@pytest.mark.parametrize("size", [1, 59, 61, 2000])
def test_a_tokenizer_of_another_size_than_the_embedding(folder: Path, size: int) -> None:
    write_tokenizer(folder, size)
    if 60 - 256 <= size <= 60:
        load_model(folder)  # a few rows that aren't used are common
    else:
        assert f"the tokenizer has {size} tokens, but the model's token embedding has 60 rows" in refused(folder)


@pytest.mark.parametrize("number", [60, 10**9])
def test_a_special_token_that_the_embedding_lacks(folder: Path, number: int) -> None:
    set_config(folder, pad_token_id=number)
    assert f"the padding token is {number}, but the model's token embedding has 60 rows" in refused(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(folder)


@pytest.mark.parametrize("damage", [lambda f: set_config(f, vocab_size=61), lambda f: write_tokenizer(f, 61)])
def test_nothing_is_read_or_built_before_all_is_checked(
    folder: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(folder)
    monkeypatch.setattr(Weights, "__getitem__", lambda weights, name: pytest.fail(f"{name} was read"))
    made: list[torch.device] = []
    initialize = torch.nn.Embedding.__init__

    def noted(embedding: torch.nn.Embedding, *args: Any, **options: Any) -> None:
        initialize(embedding, *args, **options)
        made.append(embedding.weight.device)

    monkeypatch.setattr(torch.nn.Embedding, "__init__", noted)
    refused(folder)
    assert made and all(device.type == "meta" for device in made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [lambda folder: None, pickled, sharded])
def test_weights_in_another_precision_are_loaded_in_float32(folder: Path, make: Any, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in load_file(folder / SAFE).items()}
    save_file(state, folder / SAFE)
    make(folder)
    model = load_model(folder).model
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(model.encoder.embedding.weight, state[EMBEDDING].float())


def test_pickles_are_read_whole_where_they_are_not_mapped(folder: Path) -> None:
    expected = load_file(folder / SAFE)
    path = pickled(folder)
    for mmap in (False, True):
        state = read_pickle(path, mmap=mmap)
        assert state.keys() == expected.keys() and all(value.equal(expected[name]) for name, value in state.items())


def test_errors_are_of_mm(folder: Path) -> None:
    set_config(folder, architectures=None)
    with pytest.raises(MMError) as caught:
        load_model(folder)
    assert caught.value.exit_code == 2


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    names = [f"layer.{number}" for number in range(16)]
    save_file({name: torch.zeros(100) for name in names}, tmp_path / "model.safetensors")
    save_file({name: torch.ones(100) for name in names}, tmp_path / "other")
    weights = Weights(tmp_path)
    assert weights[names[0]].sum() == 0
    (tmp_path / "other").replace(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was changed while it was read"):
        for name in names[1:]:
            assert weights[name].sum() == 0
