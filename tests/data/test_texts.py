from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from pictures import write_tar
from talking import texts, word_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from mm.data.order import Place
from mm.data.samples import Sample
from mm.data.shards.manifest import Manifest
from mm.data.shards.reading import IndexedShards
from mm.data.texts import NOTHING, Continued, Masked, TextData, TextSet, Translated
from mm.data.tokenizer import Tokenizer, clean_caption
from mm.errors import DataError, OptionError, UsageError

WORDS = tiny.tokenizer()
LONG = Sample("long", "made", b"", {"en": ["all of it is red and some of it is blue but not the wall"]})
PAIRS = Sample("pairs", "made", b"", {"en": ["a red wall .", "it is red", "all red"], "zh": ["红色的墙。", "一面墙"]})


def bert(folder: Path) -> Tokenizer:
    """A tokenizer of English words that puts [CLS] and [SEP] around a text."""
    word_tokenizer(folder)
    found = {"padding": 0, "end": 3, "embed": None, "match": None, "languages": {}, "close": None}
    return Tokenizer.read(folder / "tokenizer.json", found)


def data(folder: Path | str, learns: Any = "fill", stage: str = "fit", **options: Any) -> TextData:
    made = TextData(str(folder), **({"batch_size": 4, "captions": 2, "seed": 1} | options))
    translates = learns == "translate"
    made.attach(WORDS, learns, ["en"] if translates else ["en", "zh"], "zh" if translates else None)
    made.setup(stage)
    return made


def text_set(made: TextData) -> TextSet:
    dataset = made.train_dataloader().dataset
    assert isinstance(dataset, TextSet)
    return dataset


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_masks_are_a_function_of_seed_epoch_and_sample(tmp_path: Path) -> None:
    folder = tiny.shards(tmp_path, 9)
    first, second, other = (text_set(data(folder, seed=seed)) for seed in (1, 1, 2))
    places = [Place(epoch, index) for epoch in range(3) for index in range(9)]
    found = [first[place]["examples"] for place in places]
    assert found == [second[place]["examples"] for place in reversed(places)][::-1]
    assert len({str(examples) for examples in found}) == len(places)
    assert all(examples != other[place]["examples"] for place, examples in zip(places, found, strict=True))


def test_hidden_tokens_become_masks_other_tokens_or_stay() -> None:
    words = WORDS.encode([LONG.captions["en"][0]])[0]
    learned = Masked(WORDS, ["en"], 1, 40, 0.15)
    fates: Counter[str] = Counter()
    generator = random()
    for _ in range(1500):
        (example,) = learned.examples(LONG, generator)
        assert len(example.tokens) == len(example.targets) == len(words) + 1
        whole = [t if target == NOTHING else target for t, target in zip(example.tokens, example.targets, strict=True)]
        assert whole == [*words, WORDS.end] and example.targets[-1] == NOTHING
        hidden = [pair for pair in zip(example.tokens, example.targets, strict=True) if pair[1] != NOTHING]
        assert len(hidden) == round(0.15 * len(words)) > 1
        for token, target in hidden:
            fates["mask" if token == WORDS.mask else "same" if token == target else "other"] += 1
    total = fates.total()
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert fates["other"] / total == pytest.approx(0.1, abs=0.02)


def test_every_token_of_a_text_may_be_hidden_but_no_special_one(tmp_path: Path) -> None:
    words = bert(tmp_path)
    short = Sample("short", "made", b"", {"en": ["a red wall"]})
    learned = Masked(words, ["en"], 1, 40, 0.01)
    hidden = set()
    generator = random()
    for _ in range(60):
        (example,) = learned.examples(short, generator)
        assert example.tokens[0] == 2 and example.tokens[-1] == 3 and len(example.tokens) == 5
        (place,) = [place for place, target in enumerate(example.targets) if target != NOTHING]
        hidden.add(place)
    assert hidden == {1, 2, 3}
    (cut,) = Masked(words, ["en"], 1, 4, 1.0).examples(short, generator)
    assert cut.targets == [NOTHING, *words.encode(["a red"])[0], NOTHING]
    nothing = Sample("nothing", "made", b"", {"en": ["\u200b"]})
    (empty,) = learned.examples(nothing, generator)
    assert (empty.tokens, empty.targets) == ([2, 3], [NOTHING, NOTHING])


def test_captions_to_continue_begin_with_their_language() -> None:
    both = Sample("both", "made", b"", {"en": ["a red wall."], "zh": ["红色的墙。"]})
    english, chinese = Continued(WORDS, ["en", "zh"], 1, 40).examples(both, random())
    for example, code in ((english, "en"), (chinese, "zh")):
        (ids,) = WORDS.encode([clean_caption(both.captions[code][0])])
        assert example.tokens == [WORDS.languages[code], *ids] and example.targets == [*ids, WORDS.end]
    (cut,) = Continued(WORDS, ["en"], 1, 3).examples(both, random())
    ids = english.tokens[1:3]
    assert cut.tokens == [WORDS.languages["en"], *ids] and cut.targets == [*ids, NOTHING]


def test_a_start_token_before_the_language_predicts_nothing() -> None:
    special = WORDS.special | {"start": WORDS.end}
    words = Tokenizer.from_json(WORDS.to_json(), "started", special)
    (example,) = Continued(words, ["zh"], 1, 40).examples(PAIRS, random())
    assert example.tokens[:2] == [WORDS.end, WORDS.languages["zh"]]
    assert example.targets == [NOTHING, *example.tokens[2:], WORDS.end]


def test_pairs_are_drawn_unless_captions_are_parallel() -> None:
    drawn = Translated(WORDS, ["en"], 2, 40, "zh", parallel=False)
    seen: set[tuple[str, str]] = set()
    generator = random()
    for _ in range(60):
        examples = drawn.examples(PAIRS, generator)
        assert len(examples) == 2 and len({example.text for example in examples}) == 2
        for example in examples:
            assert example.tokens[0] == WORDS.languages["zh"] and example.targets[-1] == WORDS.end
            assert list(example.source) == [*WORDS.encode([example.text])[0], WORDS.end]
            assert example.references == ["红色的墙", "一面墙"]
            seen.add((example.text, WORDS.decode([example.tokens])[0]))
        assert {WORDS.decode([example.tokens])[0] for example in examples} == {"红色的墙", "一面墙"}
    assert len(seen) == 6
    parallel = Translated(WORDS, ["en"], 5, 40, "zh", parallel=True)
    found = {example.text: example.references for example in parallel.examples(PAIRS, random())}
    assert found == {"a red wall": ["红色的墙"], "it is red": ["一面墙"]}


def test_a_source_says_its_language_where_the_tokenizer_does() -> None:
    """As in mBART, whose texts end with the token of their language."""
    document = Backend.from_str(WORDS.to_json())
    special = [("<end>", WORDS.end), ("<en>", WORDS.languages["en"])]
    document.post_processor = TemplateProcessing(single="$A <end> <en>", special_tokens=special)
    words = Tokenizer.from_json(document.to_str(), "made", WORDS.special)
    (example,) = Translated(words, ["zh"], 1, 40, "en", parallel=False).examples(PAIRS, random())
    assert list(example.source) == [*WORDS.encode([example.text])[0], WORDS.end, WORDS.languages["zh"]]
    unknown = Sample("unknown", "made", b"", {"de": ["eine wand"], "en": ["a wall"]})
    (example,) = Translated(words, ["de"], 1, 40, "en", parallel=False).examples(unknown, random())
    assert list(example.source[-2:]) == [WORDS.end, WORDS.languages["en"]]


def test_a_batch_holds_all_examples_of_its_samples(tmp_path: Path) -> None:
    dataset = text_set(data(tiny.shards(tmp_path, 9), "translate"))
    items = dataset.__getitems__([Place(0, index) for index in (5, 2, 7)])
    batch = dataset.collate(items)
    examples = [example for item in items for example in item["examples"]]
    assert batch["index"].tolist() == [5, 2, 7] and len(examples) == len(batch["tokens"]) == 6
    for row, example in enumerate(examples):
        real, read = batch["padding"][row], batch["source_padding"][row]
        assert batch["tokens"][row][real].tolist() == example.tokens
        assert batch["targets"][row][real].tolist() == example.targets
        assert batch["source"][row][read].tolist() == list(example.source)
        assert batch["targets"][row][~real].eq(NOTHING).all()
        assert batch["texts"][row] == example.text and batch["references"][row] == example.references
    assert "source" not in next(iter(data(tmp_path, "continue").train_dataloader()))


def test_captions_are_drawn_anew_in_every_epoch_but_not_for_evaluation(tmp_path: Path) -> None:
    folder = tiny.shards(tmp_path, 6)
    made = data(folder, "continue", val=str(folder), captions=1, val_batch_size=4)
    dataset = text_set(made)
    assert len({dataset[Place(epoch, 0)]["examples"][0].text for epoch in range(12)}) == 2
    for _ in range(2):
        batches = list(made.val_dataloader())
        assert [index for batch in batches for index in batch["index"].tolist()] == list(range(6))
        assert [len(batch["index"]) for batch in batches] == [4, 2]
        texts = [text for batch in batches for text in batch["texts"]]
        assert texts == [example.text for index in range(6) for example in dataset[Place(0, index)]["examples"]]


def test_images_are_neither_decoded_nor_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": b"not an image", "a.txt": b"a red wall", "b.png": b"", "b.txt": b"a wall"})
    assert len(text_set(data(tmp_path, captions=1))) == 2
    manifest = Manifest.of(tmp_path)
    assert [IndexedShards(manifest, images=flag)[0].image for flag in (True, False)] == [b"not an image", b""]


def test_samples_that_lack_one_of_the_languages_are_rejected_and_listed(tmp_path: Path) -> None:
    english, chinese = {"en": ["a wall"]}, {"zh": ["一面墙"]}
    texts(tmp_path, [english | chinese, english, chinese])
    tally = data(tmp_path, "translate").ledgers["train"].tally
    assert (tally.used, tally.seen) == (1, 3) and tally.by_reason() == {"missing caption": 2}
    details = {rejection.key: rejection.detail for rejection in tally.rejections}
    assert "no caption in zh" in details["1"] and "no caption in en" in details["2"]
    assert data(tmp_path).ledgers["train"].tally.used == 3
    with pytest.raises(DataError, match=r"data.train: none of the 3 samples in .* can be used: missing caption"):
        made = TextData(str(tmp_path))
        made.attach(WORDS, "fill", ["fr"])
        made.setup("fit")


def test_words_that_the_tokenizer_loses_are_refused(tmp_path: Path) -> None:
    words = bert(tmp_path / "bert")
    folder = tiny.shards(tmp_path / "shards", 4)
    english, chinese = TextData(str(folder)), TextData(str(folder))
    english.attach(words, "fill", ["en"])
    english.setup("fit")
    assert english.ledgers["train"].tally.used == 4
    chinese.attach(words, "fill", ["zh"])
    with pytest.raises(OptionError, match=r"tokenizer doesn't know the words of data.train: 0% of the char"):
        chinese.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, not 0"),
        ({"captions": 0}, "data.captions must be at least 1, not 0"),
        ({"masked": 0.0}, "data.masked must be above 0 and at most 1, not 0.0"),
        ({"masked": 1.5}, "data.masked must be above 0 and at most 1, not 1.5"),
        ({"max_tokens": 5}, "data.max_tokens must be at least 8, not 5"),
        ({"workers": -1}, "data.workers must be at least 0"),
        ({"seed": -1}, "data.seed must be at least 0"),
    ],
)
def test_text_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TextData("unused", **options)


def test_text_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.val isn't set"):
        data("unused", stage="validate")
    with pytest.raises(UsageError, match="doesn't exist"):
        data(tmp_path / "nothing.tar")
