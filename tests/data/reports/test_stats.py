from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from encoding import encode, turned
from pictures import picture, some_samples, write_tar
from PIL import Image

from mm.data.reports.stats import EXAMPLES, count_shards, duplicates, figures, spread, words_of
from mm.data.samples import Sample
from mm.data.shards.writing import write_shards


def shard_of(folder: Path, samples: list[Sample]) -> Path:
    return write_shards(samples, folder).shards[0].path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A shard of four samples: two captioned, one image twice, one lying on its side."""
    wide = Image.new("RGB", (30, 20), "red")
    return shard_of(
        tmp_path / "mixed",
        [
            Sample("a", "a", encode(wide), {"en": ["A dog's ball", "a dog"], "zh": ["一只狗在跑。"]}),
            Sample("b", "b", encode(wide), {"en": ["A dog"]}),
            Sample("c", "c", turned(wide, 6), {"zh": ["一只狗在跑。"]}),
            Sample("d", "d", encode(wide, "WEBP")),
        ],
    )


def test_everything_is_counted(mixed: Path) -> None:
    found = figures(count_shards([(mixed, None)]))
    assert (found["shards"], found["samples"], found["rejected"], found["problems"]) == (1, 4, 0, {})
    assert found["bytes"] == mixed.stat().st_size and found["uncaptioned"] == 1
    images = found["images"]
    assert images["formats"] == {"PNG": 2, "JPEG": 1, "WEBP": 1}
    assert images["sizes"] == {"30 x 20": 4} and images["aspect_ratios"] == {"1.5": 4}
    assert images["width"] == {"least": 30, "median": 30, "mean": 30, "most": 30}
    assert images["kibibytes"]["most"] == 1 and images["duplicates"] == 1
    assert found["captions"]["en"] == {
        "captions": 3,
        "samples": 2,
        "per_sample": {"1": 1, "2": 1},
        "length": {"least": 2, "median": 2, "mean": 2.33, "most": 3},
        "words": 7,
        "vocabulary": 4,
        "once": 2,
        "frequent": {"a": 3, "dog": 2, "dog's": 1, "ball": 1},
        "duplicates": 0,
    }
    chinese = found["captions"]["zh"]
    assert (chinese["captions"], chinese["words"], chinese["vocabulary"], chinese["duplicates"]) == (2, 10, 5, 1)
    assert json.loads(json.dumps(found)) == found


def test_shards_add_up_whatever_reads_them(tmp_path: Path) -> None:
    shards = [(entry.path, entry) for entry in write_shards(some_samples(9), tmp_path, max_samples=2).shards]
    steps: list[int] = []
    alone = figures(count_shards(shards, steps.append, workers=1))
    assert steps == [2, 2, 2, 2, 1] and alone["samples"] == 9 and alone["shards"] == 5
    assert figures(count_shards(shards, workers=2)) == alone
    assert alone["captions"]["en"]["duplicates"] == 8  # "a plain colour"


def test_nothing_is_lost_silently(tmp_path: Path) -> None:
    entry = write_shards(some_samples(4), tmp_path).shards[0]
    content = entry.path.read_bytes()
    entry.path.write_bytes(content[: content.index(b"key003.png")])
    write_tar(tmp_path / "b.tar", {"x.png": b"no image", "y.txt": b"no image either", "z.png": picture()})
    counted = count_shards([(entry.path, entry), (tmp_path / "b.tar", None), (tmp_path / "none.tar", None)])
    assert counted.problems == {"shard cut short": 1, "not an image": 1, "no image": 1, "missing shard": 1}
    assert (counted.samples, counted.rejected) == (4, 4)


def test_examples_depend_on_keys_alone(tmp_path: Path) -> None:
    samples = some_samples(60)
    shards = [(entry.path, entry) for entry in write_shards(samples, tmp_path / "few", max_samples=25).shards]
    others = [(entry.path, entry) for entry in write_shards(samples[::-1], tmp_path / "many", max_samples=7).shards]
    shown = [[sample.key for _, sample in count_shards(some, examples=True).examples] for some in (shards, others)]
    assert len(shown[0]) == EXAMPLES and shown[0] == shown[1]
    assert shown[0] != sorted(shown[0])
    assert not count_shards(shards).examples


def test_examples_are_small_and_decodable(tmp_path: Path) -> None:
    broken = encode(Image.effect_noise((900, 600), 80), "JPEG")
    samples = [Sample("good", "good", broken), Sample("cut", "cut", broken[: len(broken) // 2])]
    counted = count_shards([(shard_of(tmp_path, samples), None)], examples=True)
    assert counted.samples == 2  # the headers are fine
    ((_, sample),) = counted.examples
    assert sample.key == "good" and len(sample.image) < 40_000


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's T-shirt, size XL!", ["a", "man's", "t-shirt", "size", "xl"]),
        ("两只dog在跑。", ["两", "只", "dog", "在", "跑"]),
        ("Ein Hündchen läuft", ["ein", "hündchen", "läuft"]),
        (" . ", []),
    ],
)
def test_words(caption: str, words: list[str]) -> None:
    assert words_of(caption) == words


def test_spread() -> None:
    assert spread(Counter()) is None
    assert spread(Counter({5: 1, 1: 2})) == {"least": 1, "median": 1, "mean": 2.33, "most": 5}
    assert spread(Counter({1: 1, 2: 1, 9: 1, 10: 1})) == {"least": 1, "median": 2, "mean": 5.5, "most": 10}
    assert duplicates([]) == 0
