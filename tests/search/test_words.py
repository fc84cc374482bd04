from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from colours import ColourEmbedder, entry

from mm.search import Gallery

CAPTIONS = {
    "running": {"en": ["a brown dog is running on the grass"], "zh": ["一只棕色的狗在草地上奔跑"]},
    "sleeping": {"en": ["a dog sleeps on a sofa", "two dogs sleeping"], "zh": ["沙发上有两只狗在睡觉"]},
    "cafe": {"en": ["people at a café in Zürich"], "zh": ["人们坐在咖啡馆里"]},
    "boat": {"en": ["a boat on a lake"], "zh": ["湖上有一条船"]},
    "mixed": {"en": ["a sign that says 北京大学 in red"]},
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    path: Path = tmp_path_factory.mktemp("words") / "g"
    with Gallery.open(path, ColourEmbedder(), create=True) as gallery:
        gallery.add([entry((place, 0, 0), name, captions=CAPTIONS[name]) for place, name in enumerate(CAPTIONS)])
        yield gallery


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dog", {"running", "sleeping"}),
        ("DOGS run", {"running", "sleeping"}),
        ("sleep", {"sleeping"}),
        ("cafe zurich", {"cafe"}),
        ("café", {"cafe"}),
        ("狗", {"running", "sleeping"}),
        ("草地", {"running"}),
        ("草地上", {"running"}),
        ("棕色的狗在水里", {"running"}),
        ("咖啡馆", {"cafe"}),
        ("北京大学", {"mixed"}),
        ("boat 狗", {"boat", "running", "sleeping"}),
        ("unicorn 独角兽", set()),
        ("", set()),
        ("!!! ??? 。，", set()),
        ('" OR text:* NEAR( -dog* AND', {"running", "sleeping"}),
        ("'; DROP TABLE caption_words; --", set()),
        ("\0", set()),
        ("dog " + "word " * 3000, {"running", "sleeping"}),
    ],
)
def test_which_images_are_found(gallery: Gallery, words: str, expected: set[str]) -> None:
    assert {hit.uri for hit in gallery.text_search(words)} == expected


def test_more_and_rarer_words_come_first(gallery: Gallery) -> None:
    hits = gallery.text_search("dog grass")
    assert [hit.uri for hit in hits] == ["running", "sleeping"]
    assert hits[0].score > hits[1].score > 0
    assert [hit.uri for hit in gallery.text_search("草地上的狗", k=1)] == ["running"]


def test_k_limits(gallery: Gallery) -> None:
    assert len(gallery.text_search("a", k=2)) == 2
