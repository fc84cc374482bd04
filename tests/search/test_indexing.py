from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from colours import ColourEmbedder, encode, picture
from PIL import Image

from mm.data.samples import Rejection, Sample
from mm.search import AddReport, Gallery
from mm.search.indexing import IndexTally, index_samples


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "g", ColourEmbedder(), create=True) as gallery:
        yield gallery


def sample(colour: str, **rest: object) -> Sample:
    return Sample(colour, f"shards/x.tar/{colour}.png", encode(picture(colour)), **rest)  # type: ignore[arg-type]


def test_samples_become_searchable(gallery: Gallery) -> None:
    tally = index_samples(gallery, [sample("red", captions={"en": ["scarlet"]}, metadata={"n": 1}), sample("green")])
    assert (tally.used, tally.rejected, tally.ok) == (2, 0, True)
    assert tally.report == AddReport(added=2)
    (hit,) = gallery.text_search("scarlet")
    assert (hit.uri, hit.metadata) == (str(Path.cwd() / "shards/x.tar/red.png"), {"n": 1})


def test_every_sample_is_used_or_rejected_with_its_reason(gallery: Gallery) -> None:
    good = encode(picture("red", (300, 200)))
    noise = encode(Image.effect_noise((40, 30), 50))
    samples = [
        sample("green"),
        Sample("empty", "x.tar/empty", b""),
        Sample("also-empty", "x.tar/also-empty", b""),
        Sample("text", "x.tar/text", b"this is no image at all"),
        Sample("cut", "x.tar/cut", noise[: len(noise) // 2]),
        Sample("big", "x.tar/big", good),
        Rejection("y.tar", "", "damaged tar header", samples=3),
        sample("red"),
    ]
    seen: list[int] = []
    tally = index_samples(gallery, iter(samples), 3, max_pixels=10_000, progress=lambda tally: seen.append(tally.used))
    assert isinstance(tally, IndexTally)
    assert (tally.used, tally.rejected, tally.seen) == (2, 8, 10)
    assert [rejection.key for rejection in tally.rejections if rejection.source.startswith("x.tar")] == [
        "empty",
        "also-empty",
        "text",
        "cut",
        "big",
    ]
    assert tally.by_reason()["empty file"] == 2
    assert {"not an image", "truncated", "too many pixels"} <= set(tally.by_reason())
    assert seen == [1, 1, 2]
    assert len(gallery) == 2


def test_again_only_what_is_new(gallery: Gallery) -> None:
    index_samples(gallery, [sample("red"), sample("green")])
    tally = index_samples(gallery, [sample("red"), sample("green"), sample("blue"), Sample("bad", "bad", b"bad")])
    assert tally.report == AddReport(added=1, unchanged=2, rejected=1)
    assert (tally.used, tally.rejected) == (3, 1)


def test_the_same_relative_name_in_two_folders_is_two_images(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for colour in ("red", "green"):
        (tmp_path / colour).mkdir()
        monkeypatch.chdir(tmp_path / colour)
        index_samples(gallery, [Sample("a", "photos/a.png", encode(picture(colour)))])
    assert len(gallery) == 2
