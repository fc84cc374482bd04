from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import lightning as L
import pytest
import tiny
import torch
from pictures import picture, write_tar
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from mm.data.datamodule import CaptionData
from mm.data.dataset import TrainingSet
from mm.data.ledger import Ledger
from mm.data.opening import expand
from mm.data.order import Place
from mm.data.samples import Rejection, Sample, Tally
from mm.data.shards import inspecting
from mm.data.shards.manifest import Manifest
from mm.data.shards.writing import write_shards
from mm.data.tokenizer import Tokenizer, clean_caption
from mm.errors import DataError, OptionError, ShardError, UsageError

WORDS = tiny.tokenizer()


def data(folder: Path | str, stage: str = "fit", words: Tokenizer = WORDS, **options: object) -> CaptionData:
    options = {"captions": {"en": 2, "zh": 1}, "batch_size": 4, "workers": 0, "views": 3, "seed": 1} | options
    made = CaptionData(str(folder), **options)  # type: ignore[arg-type]
    made.attach(words, 32)
    made.setup(stage)
    return made


def training_set(made: CaptionData) -> TrainingSet:
    dataset = made.train_dataloader().dataset
    assert isinstance(dataset, TrainingSet)
    return dataset


def test_a_sample_is_a_function_of_its_place(tmp_path: Path) -> None:
    folder = tiny.shards(tmp_path, 9)
    first, second = training_set(data(folder)), training_set(data(folder))
    differ = 0
    for place in (Place(0, 3), Place(1, 3), Place(0, 4)):
        torch.manual_seed(place.index + place.epoch)
        one, other = first[place], second[place]
        assert torch.equal(one["pixels"], other["pixels"]) and one["captions"] == other["captions"]
        differ += one["captions"] != first[Place(place.epoch + 1, place.index)]["captions"]
    assert differ


def test_captions_are_drawn_anew_in_every_epoch(tmp_path: Path) -> None:
    dataset = training_set(data(tiny.shards(tmp_path, 3), captions={"en": 1, "zh": 2}))
    seen = set()
    for epoch in range(12):
        (english, first), (chinese, second) = dataset[Place(epoch, 0)]["captions"]
        assert (first, second) == (WORDS.languages["en"], WORDS.languages["zh"])
        seen.add(WORDS.decode([english])[0])
        assert WORDS.decode([chinese]) == [clean_caption(tiny.captions("red")["zh"][0])]
    assert seen == set(tiny.captions("red")["en"])


@pytest.mark.parametrize(("public", "text"), [(True, "a wall."), (False, "a wall")])
def test_only_models_of_mm_leave_out_a_full_stop(tmp_path: Path, public: bool, text: str) -> None:
    write_shards([Sample("0", "made", picture(0), {"en": ["a wall."]})], tmp_path)
    words = Tokenizer.from_json(WORDS.to_json(), "public", WORDS.special if public else None)
    (caption,) = training_set(data(tmp_path, words=words, captions={"en": 1}))[Place(0, 0)]["captions"]
    assert WORDS.decode([caption[0]]) == [text]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({}, ["▁a", "▁wall"]),
        ({"image": "<image>"}, ["a", "▁wall"]),
        ({"image": "<image>", "around_image": "<around>"}, ["a", "▁wall"]),
    ],
)
def test_words_are_those_behind_the_mark_of_an_image(
    tmp_path: Path, marks: dict[str, str], expected: list[str]
) -> None:
    """The first word of all begins with a space that a word behind a mark doesn't have."""
    vocabulary = {name: ids for ids, name in enumerate(["<pad>", "<image>", "<around>", "?", "a", "▁a", "▁wall"])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<pad>", "<image>", "<around>"])
    special = {"padding": 0, "end": 0, "embed": None, "match": None, "languages": {"en": 0}}
    words = Tokenizer(backend, special=special | {role: vocabulary[name] for role, name in marks.items()})
    write_shards([Sample("0", "made", picture(0), {"en": [" a wall"]})], tmp_path)
    (caption,) = training_set(data(tmp_path, words=words, captions={"en": 1}))[Place(0, 0)]["captions"]
    assert caption[0] == [vocabulary[name] for name in expected]


@pytest.mark.parametrize("views", [1, 3, 0])
def test_views(tmp_path: Path, views: int) -> None:
    dataset = training_set(data(tiny.shards(tmp_path, 3), views=views))
    seen = {dataset[Place(epoch, 0)]["pixels"].numpy().tobytes() for epoch in range(30)}
    if views:
        assert seen == {dataset.pixels(0, view).numpy().tobytes() for view in range(views)}
    else:
        assert len(seen) > 20


def test_a_batch_says_which_caption_belongs_to_which_image(tmp_path: Path) -> None:
    dataset = training_set(data(tiny.shards(tmp_path, 9)))
    batch = dataset.collate(dataset.__getitems__([Place(0, index) for index in (5, 2, 7, 5)]))
    assert batch["index"].tolist() == [5, 2, 7, 5]
    assert batch["pixels"].shape == (4, 3, 32, 32) and batch["pixels"].dtype == torch.uint8
    assert [Path(key).name for key in batch["keys"]] == ["0005", "0002", "0007", "0005"]
    names = list(tiny.COLOURS)
    assert len(batch["rows"]) == len(batch["tokens"]) == 12
    for row, tokens, real, language in zip(
        batch["rows"].tolist(), batch["tokens"], batch["padding"], batch["languages"].tolist(), strict=True
    ):
        (text,) = WORDS.decode([tokens[real].tolist()])
        code = {ids: name for name, ids in WORDS.languages.items()}[language]
        known = tiny.captions(names[int(batch["index"][row])])[code]
        assert text in [clean_caption(caption) for caption in known]
    covered = [number for start, stop, _ in batch["groups"] for number in range(start, stop)]
    assert covered == list(range(12))
    for start, stop, longest in batch["groups"]:
        assert batch["padding"][start:stop].sum(1).max() == longest


def test_captions_are_cut(tmp_path: Path) -> None:
    batch = next(iter(data(tiny.shards(tmp_path, 9), max_tokens=2).train_dataloader()))
    assert batch["tokens"].shape[1] == 2 and bool(batch["padding"].all())
    assert not batch["complete"].any()


def test_cut_captions_are_told_from_those_that_just_fit(tmp_path: Path) -> None:
    longest = max(len(ids) for name in tiny.COLOURS for ids in WORDS.encode(tiny.captions(name)["en"]))
    folder = tiny.shards(tmp_path, 9)
    fitting = next(iter(data(folder, max_tokens=longest, captions={"en": 2}, batch_size=9).train_dataloader()))
    assert fitting["complete"].all() and fitting["tokens"].shape[1] == longest
    cut = next(iter(data(folder, max_tokens=longest - 1, captions={"en": 2}, batch_size=9).train_dataloader()))
    lengths = fitting["padding"].sum(1)
    assert (~cut["complete"]).sum() == (lengths == longest).sum() > 0


def test_evaluation_gives_every_sample_once_in_order(tmp_path: Path) -> None:
    made = data("unused", "validate", val=str(tiny.shards(tmp_path, 9)), val_batch_size=4)
    batches = list(made.val_dataloader())
    assert [Path(key).name for batch in batches for key in batch["keys"]] == [f"{number:04d}" for number in range(9)]
    assert batches[0]["captions"][1] == tiny.captions("green")
    assert [len(batch["pixels"]) for batch in batches] == [4, 4, 1]


def hurt(folder: Path) -> Path:
    """Shards with five good samples among bad ones."""
    names = list(tiny.COLOURS)
    folder.mkdir()
    members = {}
    for number in range(5):
        members |= {f"{number}.png": tiny.encode(tiny.picture(names[number])), f"{number}.txt": b"a wall"}
    members |= {"a-none.png": picture(1), "b-text.png": b"not an image", "b-text.txt": b"a wall"}
    members |= {"c-latin.png": picture(1), "c-latin.txt": b"caf\xe9", "d-empty.png": b"", "d-empty.txt": b"a wall"}
    members |= {"e-cut.png": tiny.encode(tiny.picture("red"))[:-30], "e-cut.txt": b"a wall"}
    write_tar(folder / "x.tar", members)
    return folder


REASONS = {"missing caption": 1, "not an image": 1, "caption is not UTF-8": 1, "empty file": 1, "truncated": 1}


def test_what_can_not_be_used_is_counted_by_reason(tmp_path: Path) -> None:
    made = data(hurt(tmp_path / "in"), batch_size=5, check_images=True)
    tally = made.ledgers["train"].tally
    assert tally.used == 5 and tally.seen == 10
    assert tally.by_reason() == REASONS
    assert {rejection.key for rejection in tally.rejections} == {"a-none", "b-text", "c-latin", "d-empty", "e-cut"}
    batch = next(iter(made.train_dataloader()))
    assert sorted(batch["index"].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_can_not_be_decoded_are_counted_when_they_are_reached(tmp_path: Path, workers: int) -> None:
    made = data(hurt(tmp_path / "in"), batch_size=4, workers=workers)
    tally = made.ledgers["train"].tally
    assert (tally.used, tally.seen) == (8, 10)
    seen = [key for _ in range(2) for batch in made.train_dataloader() for key in batch["keys"]]
    assert sorted(Path(key).name for key in seen) == sorted(["0", "1", "2", "3", "4"] * 2)
    assert (tally.used, tally.seen) == (5, 10) and tally.by_reason() == REASONS  # each counts once


def test_a_batch_that_is_left_empty_takes_another_sample(tmp_path: Path) -> None:
    """With several ranks, a step without a batch on one of them would hang the others."""
    made = data(hurt(tmp_path / "in"), batch_size=1)
    batches = list(made.train_dataloader())
    assert len(batches) == 8 and all(len(batch["keys"]) == 1 for batch in batches)
    assert {Path(batch["keys"][0]).name for batch in batches} == {"0", "1", "2", "3", "4"}


def test_damaged_shards_are_refused_unless_a_share_of_rejections_is_allowed(tmp_path: Path) -> None:
    folder = tiny.shards(tmp_path / "in", 8, per_shard=4)
    last = sorted(folder.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:3000])
    with pytest.raises(ShardError, match=rf"data.train: damaged shards: {last}.*data.max_reject_rate"):
        data(folder)
    tally = data(folder, max_reject_rate=0.6).ledgers["train"].tally
    assert 4 <= tally.used < 8 and tally.seen == 8 and not tally.ok
    with pytest.raises(DataError, match=r"data.train: \d of 8 samples were rejected.*max_reject_rate 0.1 .*cut short"):
        data(folder, max_reject_rate=0.1)


def test_more_rejections_than_allowed_stop_the_run_and_are_kept(tmp_path: Path) -> None:
    folder = hurt(tmp_path / "in")
    made = CaptionData(str(folder), captions={"en": 1}, batch_size=4, workers=0, max_reject_rate=0.3)
    made.attach(WORDS, 32)
    made.trainer = L.Trainer(default_root_dir=tmp_path / "run", logger=False, accelerator="cpu")
    made.setup("fit")  # two of ten have no caption
    made.trainer = None
    with pytest.raises(DataError, match=r"4 of 10 samples were rejected, 40.00%.*rejected-train.jsonl lists all"):
        for _ in range(2):
            list(made.train_dataloader())
    rows = [json.loads(line) for line in (tmp_path / "run/rejected-train.jsonl").read_text().splitlines()]
    assert {row["key"] for row in rows} >= {"a-none", "c-latin"} and len(rows) in (4, 5)
    assert all(row["reason"] and row["detail"] and row["source"].startswith(str(folder / "x.tar")) for row in rows)


def rewrite(shard: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Changes the members of a shard."""
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(shard, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, BytesIO(content))


def test_samples_beyond_the_manifest_take_no_other_samples_places(tmp_path: Path) -> None:
    """The first shard holds more than the manifest says; the second one is as it was."""
    folder = tiny.shards(tmp_path / "in", 8, per_shard=4)
    more = tiny.shards(tmp_path / "more", 6)
    shutil.copy(next(more.glob("*.tar")), folder / "shard-000000.tar")
    with pytest.raises(ShardError, match="holds 6 samples, the manifest says 4"):
        data(folder)
    made = data(folder, max_reject_rate=0.8)
    assert made.ledgers["train"].tally.used == 4
    seen = [Path(key).name for batch in made.train_dataloader() for key in batch["keys"]]
    assert sorted(seen) == ["0004", "0005", "0006", "0007"]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", None])
def test_damage_without_a_manifest_counts_too(tmp_path: Path, content: bytes | None) -> None:
    """How many samples are lost isn't known, but that there are some is."""
    folder = tiny.shards(tmp_path / "in", 8, per_shard=4)
    (folder / "manifest.json").unlink()
    shard = sorted(folder.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:3000] if content is None else content)
    with pytest.raises(DataError, match="max_reject_rate 0 allows"):
        data(folder, max_reject_rate=0.0)
    assert data(folder, max_reject_rate=0.5).ledgers["train"].tally.rejected == 1


@pytest.mark.parametrize("behind", [0, 3])
def test_zeros_in_place_of_samples_are_not_the_end(tmp_path: Path, behind: int) -> None:
    """As in a file that was made before all of it came."""
    folder = tiny.shards(tmp_path / "in", 8)
    (folder / "manifest.json").unlink()
    (shard,) = folder.glob("*.tar")
    with tarfile.open(shard) as tar:
        start = [member.offset for member in tar][2 * behind]
    shard.write_bytes(shard.read_bytes()[:start] + bytes(1 << 18))
    with pytest.raises(ShardError, match="bytes of zeros from byte"):
        data(folder)


def test_captions_swapped_between_shards_are_never_paired(tmp_path: Path) -> None:
    """Keys, counts and sizes are as they were; the hash is not."""
    folder = tiny.shards(tmp_path / "in", 8, per_shard=4)
    one, other = sorted(folder.glob("*.tar"))
    rewrite(other, lambda members: [setattr(m, "name", f"000{int(m.name[:4]) - 4}{m.name[4:]}") for m, _ in members])
    (folder / "manifest.json").unlink()
    Manifest.build(folder).write(folder)
    assert data(folder).ledgers["train"].tally.used == 8
    captions = {}

    def note(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        captions[len(captions)] = members[0][1]

    def swap(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        taken = captions.pop(max(captions)).ljust(len(members[0][1]))
        members[0] = (members[0][0], taken)

    rewrite(one, note), rewrite(other, note)
    rewrite(one, swap), rewrite(other, swap)
    with pytest.raises(ShardError, match="damaged shards"):
        data(folder)


def remote(folder: Path) -> str:
    return f"file://{folder}"


def test_remote_samples_must_have_what_local_ones_must(tmp_path: Path) -> None:
    samples = [Sample(str(n), "made", picture(n), {"en": ["a wall"]} if n else {"zh": ["墙"]}) for n in range(4)]
    write_shards(samples, tmp_path / "in")
    made = data(remote(tmp_path / "in"), captions={"en": 1}, cache=str(tmp_path / "cache"))
    (batch,) = made.train_dataloader()
    assert sorted(key.rpartition("/")[2] for key in batch["keys"]) == ["1", "2", "3"]
    assert made.ledgers["train"].tally.by_reason() == {"missing caption": 1}


def test_a_bad_image_among_remote_ones_is_left_out_of_validation(tmp_path: Path) -> None:
    good = [Sample(str(n), "made", picture(n), {"en": ["a wall"]}) for n in range(5)]
    bad = replace(good[3], image=good[3].image[:-30])
    write_shards([*good[:3], bad, good[4]], tmp_path / "in")
    options = {"val": remote(tmp_path / "in"), "val_batch_size": 1, "cache": str(tmp_path / "cache")}
    made = data("unused", "validate", **options)
    batches = list(made.val_dataloader())
    assert [batch["keys"][0].rpartition("/")[2] for batch in batches] == ["0", "1", "2", "4"]
    tally = made.ledgers["val"].tally
    assert (tally.used, tally.by_reason()) == (4, {"truncated": 1})


def test_what_was_rejected_goes_through_a_checkpoint(tmp_path: Path) -> None:
    first = data(hurt(tmp_path / "in"))
    list(first.train_dataloader())
    second = data(tmp_path / "in")
    assert second.ledgers["train"].tally.used == 8
    second.load_state_dict(first.state_dict())
    assert second.ledgers["train"].tally == first.ledgers["train"].tally


def test_each_of_several_ranks_finds_its_share_of_rejections() -> None:
    tally = Tally(10)
    bad = [Rejection("x.tar", str(number), "truncated") for number in range(2)]
    alone, together = Ledger("train", 0.3, None), Ledger("train", 0.3, None, ranks=2)
    for ledger in (alone, together):
        ledger.begin(replace(tally, rejections=[]), "x")
    alone.add(bad)
    with pytest.raises(DataError, match=r"more than data\.max_reject_rate 0\.3 allows"):
        together.add(bad)


def test_a_bit_flipped_in_an_image_is_found_by_verifying(tmp_path: Path) -> None:
    folder = tiny.shards(tmp_path, 4)
    shard = next(folder.glob("*.tar"))
    whole = bytearray(shard.read_bytes())
    whole[whole.index(b"\x89PNG") + 60] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(ShardError, match="SHA-256"):
        data(folder, verify=True)


def test_a_sample_that_changes_while_it_is_in_use_is_found_by_verifying(tmp_path: Path) -> None:
    folder = tiny.shards(tmp_path, 4)
    shard = next(folder.glob("*.tar"))
    made = data(folder, verify=True, max_reject_rate=0.5)
    status = shard.stat()
    with shard.open("r+b") as file:
        at = shard.read_bytes().index(b"\x89PNG") + 60
        file.seek(at)
        flipped = file.read(1)[0] ^ 1
        file.seek(at)
        file.write(bytes([flipped]))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    (batch,) = made.train_dataloader()
    assert len(batch["keys"]) == 3
    assert list(made.ledgers["train"].tally.by_reason().values()) == [1]


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path) -> None:
    samples = [Sample(str(number), "made", picture(number), {"zh": ["图片"]}) for number in range(3)]
    write_shards(samples, tmp_path)
    with pytest.raises(DataError, match=r"data.train: none of the 3 samples in .* can be used: missing caption"):
        data(tmp_path, captions={"en": 1})


def test_checks_show_how_far_they_are(tmp_path: Path) -> None:
    seen: list[object] = []

    @contextmanager
    def progress(title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
        seen.append((title, unit))
        yield lambda done, total: seen.append((done, total))

    made = CaptionData(str(tiny.shards(tmp_path, 3)), workers=0)
    made.attach(WORDS, 32, progress=progress)
    made.setup("fit")
    assert seen[0] == ("Check of data.train", "images") and seen[-1] == (3, 3)


@pytest.mark.parametrize("cache", ["cache", "file/cache"])
def test_shards_without_a_manifest_are_read_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """Even where nothing can be remembered."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MM_CACHE", str(tmp_path / cache))
    folder = tiny.shards(tmp_path / "in", 6, per_shard=2)
    (folder / "manifest.json").unlink()
    seen: list[str] = []
    look = inspecting._inspect

    def inspect(path: Path, name: str, how: inspecting.Thoroughness) -> object:
        assert how.verify
        seen.append(path.name)
        return look(path, name, how)

    monkeypatch.setattr(inspecting, "_inspect", inspect)
    assert len(training_set(data(folder)).usable) == 6 and len(seen) == len(set(seen)) == 3


def test_features_stand_in_for_pixels(tmp_path: Path) -> None:
    made = data(tiny.shards(tmp_path / "shards", 6))
    seen = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images.float().mean((2, 3), keepdim=True)

    made.keep_features(tmp_path / "kept", "weights", encode, lambda done, total: None)
    dataset = training_set(made)
    place = Place(4, 2)
    item = dataset[place]
    assert "pixels" not in item
    plain = training_set(data(tmp_path / "shards"))[place]
    assert torch.equal(item["features"], plain["pixels"].float().mean((1, 2), keepdim=True).half())
    assert item["captions"] == plain["captions"]
    assert next(iter(made.train_dataloader()))["features"].dtype == torch.float32
    done = len(seen)
    other = data(tmp_path / "shards", seed=2)
    other.keep_features(tmp_path / "kept", "weights", encode, lambda done, total: None)
    assert len(seen) > done + 1
    with pytest.raises(OptionError, match=r"data.views"):
        data(tmp_path / "shards", views=0).keep_features(tmp_path, "w", encode, lambda done, total: None)


def test_features_of_other_samples_of_the_same_shards_are_not_taken(tmp_path: Path) -> None:
    """As many samples are usable in English as in Chinese, but not the same ones."""
    samples = [Sample(str(n), "made", picture(n), {"en": ["a wall"]} if n < 2 else {"zh": ["墙"]}) for n in range(4)]
    write_shards(samples, tmp_path / "shards")
    kept = {}
    for language in ("en", "zh"):
        made = data(tmp_path / "shards", captions={language: 1}, views=1)
        made.keep_features(tmp_path / "kept", "weights", lambda x: x.float().mean((2, 3)), lambda done, total: None)
        dataset = training_set(made)
        kept[language] = dataset[Place(0, int(dataset.usable[0]))]["features"]
    assert not torch.equal(kept["en"], kept["zh"])


def test_the_position_goes_through_a_checkpoint(tmp_path: Path) -> None:
    folder = tiny.shards(tmp_path, 9)
    first = data(folder)
    seen = [batch["index"].tolist() for _ in range(3) for batch in first.train_dataloader()]
    state = first.state_dict()
    assert (state["position"], state["samples"]) == (27, 9)  # two batches of four in each of three epochs
    second = data(folder)
    second.load_state_dict(state | {"position": 13})
    assert next(iter(second.train_dataloader()))["index"].tolist() == seen[3]
    second.setup("fit")
    assert [batch["index"].tolist() for batch in second.train_dataloader()] == seen[:2]


def test_a_checkpoint_of_other_data_goes_on_with_the_next_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = data(tiny.shards(tmp_path / "old", 20)).state_dict() | {"position": 33}
    made = data(tiny.shards(tmp_path / "new", 9))
    made.load_state_dict(old)
    assert made.state_dict()["position"] == 18
    assert "isn't what it was when the checkpoint was saved" in caplog.text
    for other in ({"seed": 2}, {"block": 2}):  # as many samples in another order
        made = data(tmp_path / "old", **other)
        made.load_state_dict(old)
        assert made.state_dict()["position"] == 40


def test_batches_done_are_counted_as_they_are_now(tmp_path: Path) -> None:
    """In an epoch of nine samples, four were trained on in batches of two."""
    made = data(tiny.shards(tmp_path, 9), batch_size=1)
    for position, before, done in ((4, 2, 4), (0, 0, 0), (9, 4, 9), (13, 2, 4)):
        made.load_state_dict(made.state_dict() | {"position": position})
        assert made.batches_done(before) == done
    made = data(tmp_path, batch_size=3)
    made.load_state_dict(made.state_dict() | {"position": 4})
    assert made.batches_done(2) == 2  # one of three is left
    made.load_state_dict(made.state_dict() | {"position": 8})
    assert made.batches_done(4) == 3 and made.state_dict()["position"] == 9  # what is left fills no batch


def test_weights_of_sources(tmp_path: Path) -> None:
    one, two = tiny.shards(tmp_path / "one", 6), tiny.shards(tmp_path / "two", 4)
    made = CaptionData({str(one): 1, str(two): 2.5}, captions={"en": 1}, batch_size=8, workers=0)
    made.attach(WORDS, 32)
    made.setup("fit")
    seen = [Path(key).parts[-3] for batch in made.train_dataloader() for key in batch["keys"]]
    assert len(seen) == 16 and seen.count("one") == 6
    with pytest.raises(OptionError, match="weight"):
        data_of = CaptionData({str(one): 0.0}, workers=0)
        data_of.attach(WORDS, 32)
        data_of.setup("fit")


@pytest.mark.parametrize(("remainder", "steps", "left"), [("drop", 2, 1), ("pad", 3, -3)])
def test_what_fills_no_batch_is_dropped_or_filled_up_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, remainder: str, steps: int, left: int
) -> None:
    with caplog.at_level("INFO"):
        made = data(tiny.shards(tmp_path, 9), remainder=remainder)
    found = [batch["index"].tolist() for batch in made.train_dataloader()]
    assert len(found) == steps and {len(batch) for batch in found} == {4}
    assert made.batches().remainder == left
    assert ("1 are left over at its end and dropped" if left > 0 else "3 of them are taken twice") in caplog.text


def test_a_batch_larger_than_the_data_takes_samples_again(tmp_path: Path) -> None:
    (batch,) = data(tiny.shards(tmp_path, 9), batch_size=12).train_dataloader()
    assert len(batch["index"]) == 12 and set(batch["index"].tolist()) == set(range(9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, not 0"),
        ({"captions": {"en": 0}}, "data.captions.en must be at least 1, not 0"),
        ({"captions": {"fr": 1}}, "data.captions has language 'fr'; the tokenizer knows en, zh"),
        ({"crop": 0.0}, "data.crop must be above 0"),
        ({"views": -1}, "data.views must be at least 0"),
        ({"workers": -1}, "data.workers must be at least 0"),
        ({"seed": -1}, "data.seed must be at least 0"),
        ({"color": 1.1}, "data.color must be from 0 to 1"),
        ({"block": 0}, "data.block must be at least 1"),
        ({"max_reject_rate": 1.5}, "data.max_reject_rate must be from 0 to 1"),
        ({"remainder": "keep"}, "data.remainder is 'keep': drop or pad"),
        ({"cache_gigabytes": 0}, "data.cache_gigabytes must be above 0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        data("unused", "none", **options)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.val isn't set"):
        data("unused", "validate")
    with pytest.raises(UsageError, match=r"nothing-\*.tar: matches no shard"):
        data(tmp_path / "nothing-*.tar")
    with pytest.raises(UsageError, match="doesn't exist"):
        data(tmp_path / "nothing.tar")
    tiny.shards(tmp_path, 6, per_shard=2)
    paths = expand([str(tmp_path / "*.tar")])
    assert len(paths) == 3 and paths == sorted(paths) and Manifest.of(paths).total == 6


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].tar").write_bytes(b"")
    (tmp_path / "a1.tar").write_bytes(b"")
    assert expand(str(tmp_path / "a[1].tar")) == [str(tmp_path / "a[1].tar")]
    (tmp_path / "a[1].tar").unlink()
    assert expand(str(tmp_path / "a[1].tar")) == [str(tmp_path / "a1.tar")]
