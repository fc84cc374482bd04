"""Pages of statistics and of leaks: whole, safe, and showing what was counted."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from encoding import encode
from pictures import some_samples
from PIL import Image

from mm.data.reports.leaks import NEAR, Leak
from mm.data.reports.leaks_page import PAIRS, leaks_page
from mm.data.reports.page import frame, histogram, ranking
from mm.data.reports.stats import count_shards
from mm.data.reports.stats_page import LONGEST, in_units, stats_page
from mm.data.samples import Sample
from mm.data.shards.writing import write_shards

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Reader(HTMLParser):
    """Collects the elements of a page, their attributes and the text, and makes sure that they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    """Reads a page, which must hold nothing that runs or that is fetched."""
    reader = Reader(page)
    assert not {"script", "iframe", "link", "object", "a"} & reader.tags.keys()
    names = {name for name, _ in reader.attributes}
    assert not {name for name in names if name.startswith("on")} and "href" not in names
    assert all(str(value).startswith("data:image/jpeg;base64,") for name, value in reader.attributes if name == "src")
    assert "default-src 'none'" in page and "url(" not in page and "@import" not in page
    return reader


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [entry.path for entry in write_shards(some_samples(5), tmp_path / "shards", max_samples=3).shards]


def test_statistics_are_drawn(shards: list[Path]) -> None:
    counted = count_shards([(path, None) for path in shards], examples=True)
    reader = read(stats_page("my photos", counted))
    assert reader.tags["img"] == 5 and reader.tags["svg"] == 3 + 2 * 2
    for text in ("my photos", "Captions: English", "Captions: Chinese", "colour", "图片 3", "key003", "Most frequent"):
        assert text in reader.text
    assert "Problems" not in reader.text


def test_hostile_captions_and_names_stay_text(tmp_path: Path) -> None:
    captions = {"en": [HOSTILE], "zh-Hans": [HOSTILE]}
    sample = Sample("<b>key", "key", encode(Image.new("RGB", (9, 9))), captions)
    counted = count_shards([(write_shards([sample], tmp_path).shards[0].path, None)], examples=True)
    counted.problems[HOSTILE] += 1
    reader = read(stats_page(HOSTILE, counted))
    assert reader.text.count(HOSTILE) == 5  # twice as the title, once as a problem, in two captions
    assert "<b>key" in reader.text and reader.tags["img"] == 1
    leak = Leak((tmp_path / "<u>.tar", "<b>key"), (tmp_path / "<u>.tar", "<b>key"), NEAR, 0, 1.0)
    assert read(leaks_page(HOSTILE, [leak])).text.count("<u>.tar/<b>key") == 2


def test_long_captions_are_cut(tmp_path: Path) -> None:
    sample = Sample("key", "key", encode(Image.new("RGB", (9, 9))), {"en": ["word " * 200]})
    counted = count_shards([(write_shards([sample], tmp_path).shards[0].path, None)], examples=True)
    caption = next(line for line in stats_page("x", counted).splitlines() if "<figcaption" in line)
    assert "…" in caption and len(re.findall("word", caption)) <= LONGEST / 5


def test_problems_are_listed_even_where_nothing_is_left(tmp_path: Path) -> None:
    reader = read(stats_page("x", count_shards([(tmp_path / "none.tar", None)])))
    assert "missing shard" in reader.text and reader.tags["svg"] == 0


def test_leaks_are_shown_side_by_side(shards: list[Path]) -> None:
    leak = Leak((shards[0], "key000"), (shards[1], "key003"), NEAR, 7, 0.951, 2)
    reader = read(leaks_page("train and test", [leak]))
    assert reader.tags["img"] == 2
    for text in ("1 pair", "shard-000000.tar/key000", "shard-000001.tar/key003", "7 of 64 bits", "0.951", "2 more"):
        assert text in reader.text
    many = read(leaks_page("train and test", [leak] * (PAIRS + 1)))
    assert many.tags["img"] == 2 * PAIRS and f"{PAIRS + 1} pairs, the first {PAIRS}" in many.text


def bars(chart: str) -> list[tuple[str, int]]:
    found = re.findall(r"<title>(.*?): ([\d,]+)</title>", chart)
    return [(label, int(count.replace(",", ""))) for label, count in found]


def test_a_histogram_has_a_bar_for_each_value() -> None:
    chart = histogram("Length", Counter({1: 5, 4: 1000}))
    assert bars(chart) == [("1", 5), ("2", 0), ("3", 0), ("4", 1000)]
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"', chart)]
    assert heights[0] == pytest.approx(heights[3] / 200, abs=0.06) and heights[1] == 0


def test_a_histogram_of_many_values_adds_up() -> None:
    counts = Counter({value: value % 7 + 1 for value in range(3, 5000)})
    drawn = bars(histogram("Side", counts))
    assert 10 < len(drawn) < 40 and sum(count for _, count in drawn) == counts.total()


def test_rare_large_values_share_the_last_bar() -> None:
    drawn = bars(histogram("Length", Counter({10: 500, 11: 499, 90_000: 1})))
    assert drawn == [("10", 500), ("11+", 500)]
    ratios = bars(histogram("Ratio", Counter({0.7: 1, 1.0: 2, 1.3: 3}), step=0.1))
    assert ratios == [("0.7", 1), ("0.8", 0), ("0.9", 0), ("1", 2), ("1.1", 0), ("1.2", 0), ("1.3", 3)]


def test_a_ranking_scales_its_bars() -> None:
    chart = ranking("Words", {HOSTILE: 4, "dog": 1})
    assert re.findall(r"width: ([\d.]+)%", chart) == ["100.0", "25.0"]
    assert HOSTILE in read(frame("x", [chart])).text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (2048, "2 KiB"), (123402240, "118 MiB"), (3 << 41, "6.0 TiB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert in_units(size) == text
