from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from colours import COLOURS, ColourEmbedder, encode, entry, picture
from PIL import Image

from mm.errors import DataError, GalleryError, ImageError, OptionError
from mm.search import AddReport, Entry, Gallery


@pytest.fixture
def model() -> ColourEmbedder:
    return ColourEmbedder()


@pytest.fixture
def gallery(tmp_path: Path, model: ColourEmbedder) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "colours.gallery", model, create=True) as gallery:
        yield gallery


def uris(hits: list) -> list[str]:
    return [hit.uri for hit in hits]


def test_finds_by_text_image_and_both(gallery: Gallery) -> None:
    gallery.add([entry(colour) for colour in COLOURS])
    hits = gallery.search("something red", k=3)
    assert uris(hits)[0] == "red.png"
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert hits[0].score > hits[1].score > hits[2].score
    assert uris(gallery.search(image=picture((40, 70, 200))))[0] == "blue.png"
    assert uris(gallery.search("blue", image=picture("blue")))[0] == "blue.png"


def test_both_is_the_mean_of_the_two_queries(gallery: Gallery) -> None:
    gallery.add([entry(colour) for colour in COLOURS])
    text = {hit.uri: hit.score for hit in gallery.search("red")}
    image = {hit.uri: hit.score for hit in gallery.search(image=picture("green"))}
    both = gallery.search("red", image=picture("green"))
    assert {hit.uri: hit.score for hit in both} == pytest.approx({u: (text[u] + image[u]) / 2 for u in text}, abs=1e-5)


def test_results_carry_the_whole_item(gallery: Gallery) -> None:
    captions = {"en": ["a red square"], "zh": ["一个红色的方块"]}
    item = entry("red", captions=captions, metadata={"camera": "none", "size": [40, 30]})
    gallery.add([item])
    (hit,) = gallery.search("red")
    assert hit.captions == captions
    assert hit.metadata == {"camera": "none", "size": [40, 30]}
    assert Image.open(BytesIO(hit.thumbnail)).size == (40, 30)
    assert hit.sha256 in gallery


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1024, 512), (256, 128)), ((30, 900), (9, 256)), ((5000, 2), (256, 1)), ((20, 10), (20, 10))],
)
def test_thumbnails_are_small_and_never_enlarged(
    gallery: Gallery, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    gallery.add([Entry(b"x", picture("red", size), "x.png")])
    thumbnail = Image.open(BytesIO(gallery.search("red")[0].thumbnail))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", expected)


def test_only_what_is_new_is_embedded(gallery: Gallery, model: ColourEmbedder) -> None:
    assert gallery.add([entry("red"), entry("green")]) == AddReport(added=2)
    assert gallery.add([entry("red"), entry("green")]) == AddReport(unchanged=2)
    assert gallery.add([entry("red"), entry("blue")]) == AddReport(added=1, unchanged=1)
    assert model.images_seen == 3
    assert len(gallery) == 3


def test_known_content_is_not_even_decoded(gallery: Gallery) -> None:
    data = encode(picture("red"))
    gallery.add([Entry(data, lambda: picture("red"), "red.png")])

    def fail() -> Image.Image:
        raise AssertionError("decoded again")

    assert gallery.add([Entry(data, fail, "red.png")]) == AddReport(unchanged=1)


def test_plain_tuples_and_a_repeat_within_a_batch(gallery: Gallery, model: ColourEmbedder) -> None:
    data = encode(picture("red"))
    plain = (data, picture("red"), "red.png", {"en": ["red"]}, {})
    assert gallery.add([plain, plain]) == AddReport(added=1, unchanged=1)
    assert model.images_seen == 1


def test_a_moved_file_keeps_its_vector(gallery: Gallery, model: ColourEmbedder) -> None:
    gallery.add([entry("red", "old/red.png")])
    assert gallery.add([entry("red", "new/red.png")]) == AddReport(updated=1)
    assert model.images_seen == 1
    assert uris(gallery.search("red")) == ["new/red.png"]


def test_two_copies_of_a_file_are_one_image_and_stay_unchanged(gallery: Gallery) -> None:
    copies = [entry("red", "a.png"), entry("red", "b.png")]
    gallery.add(copies)
    assert gallery.add(copies) == AddReport(unchanged=2)
    assert len(gallery) == 1
    assert gallery.uris() == ["a.png", "b.png"]
    assert gallery.remove("b.png")
    assert uris(gallery.search("red")) == ["a.png"]
    assert gallery.remove("a.png")
    assert len(gallery) == 0


def test_a_file_with_new_content_replaces_the_old(gallery: Gallery) -> None:
    gallery.add([entry("red", "photo.png", captions={"en": ["scarlet"]}), entry("green")])
    assert gallery.search("red")[0].uri == "photo.png"
    assert gallery.add([entry("blue", "photo.png")]) == AddReport(added=1, replaced=1)
    assert len(gallery) == 2
    assert uris(gallery.search("blue")) == ["photo.png", "green.png"]
    assert gallery.text_search("scarlet") == []


def test_an_image_whose_uri_is_taken_within_a_batch_lives_on_elsewhere(gallery: Gallery) -> None:
    gallery.add([entry("red", "a.png")])
    assert gallery.add([entry("blue", "a.png"), entry("red", "b.png")]) == AddReport(added=1, updated=1)
    assert uris(gallery.search("red", k=1)) == ["b.png"]


def test_new_captions_and_metadata_update_without_embedding(gallery: Gallery, model: ColourEmbedder) -> None:
    gallery.add([entry("red", captions={"en": ["old words"]}, metadata={"a": 1})])
    assert gallery.add([entry("red", captions={"en": ["new words"]}, metadata={"a": 1})]) == AddReport(updated=1)
    assert gallery.add([entry("red", metadata={"a": 2})]) == AddReport(updated=1)
    assert gallery.add([entry("red")]) == AddReport(unchanged=1)
    (hit,) = gallery.search("red")
    assert (hit.captions, hit.metadata) == ({"en": ["new words"]}, {"a": 2})
    assert uris(gallery.text_search("new")) == ["red.png"]
    assert gallery.text_search("old") == []
    assert model.images_seen == 1


def test_remove(gallery: Gallery) -> None:
    gallery.add([entry("red", captions={"en": ["red"]}), entry("green")])
    gallery.search("red")
    assert gallery.remove("red.png")
    assert not gallery.remove("red.png")
    assert uris(gallery.search("red", k=1)) == ["green.png"]
    assert gallery.text_search("red") == []
    assert gallery.add([entry("red")]) == AddReport(added=1)
    assert uris(gallery.search("red", k=1)) == ["red.png"]


def test_what_is_gone_takes_no_place_among_the_results(gallery: Gallery) -> None:
    gallery.add([entry("red", captions={"en": ["red red"]}), entry("green", captions={"en": ["red, not really"]})])
    assert uris(gallery.search("red", k=1)) == uris(gallery.text_search("red", k=1)) == ["red.png"]
    assert gallery.add([entry("green", "red.png")]) == AddReport(updated=1, replaced=1)
    assert uris(gallery.search("red", k=1)) == uris(gallery.text_search("red", k=1)) == ["red.png"]
    assert gallery.search("red", k=1)[0].captions == {"en": ["red, not really"]}


def test_progress_after_each_batch(gallery: Gallery) -> None:
    seen: list[AddReport] = []
    gallery.add((entry((level, 0, 0)) for level in range(10)), batch_size=4, progress=seen.append)
    assert [report.total for report in seen] == [4, 8, 10]


def test_an_interruption_keeps_finished_batches(gallery: Gallery) -> None:
    def interrupted() -> Iterator[Entry]:
        for level in range(10):
            if level == 7:
                raise KeyboardInterrupt
            yield entry((level * 20, 0, 0))

    with pytest.raises(KeyboardInterrupt):
        gallery.add(interrupted(), batch_size=3)
    assert len(gallery) == 6
    assert len(gallery.search("red")) == 6


def test_undecodable_images_are_rejected_one_by_one(gallery: Gallery) -> None:
    def bad() -> Image.Image:
        raise ImageError("x: not an image", "not an image")

    rejected: list[str] = []
    items = [entry("red"), Entry(b"1", bad, "one"), Entry(b"1", bad, "two"), entry("green")]
    report = gallery.add(items, on_reject=lambda item, error: rejected.append(f"{item.uri}: {error.reason}"))
    assert report == AddReport(added=2, rejected=2)
    assert rejected == ["one: not an image", "two: not an image"]
    with pytest.raises(ImageError):
        gallery.add(items)


def test_another_model_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    gallery.add([entry("red")])
    path = gallery.path
    other = ColourEmbedder("better-colours")
    with pytest.raises(GalleryError, match=r"built with colours .*not with better-colours .*new gallery"):
        Gallery.open(path, other)
    retrained = ColourEmbedder("colours", fingerprint="0" * 64)
    with pytest.raises(GalleryError, match=r"weights 000000000000"):
        Gallery.open(path, retrained)
    resized = ColourEmbedder()
    resized.preprocessing = "mean colour of the centre"
    with pytest.raises(GalleryError, match="centre"):
        Gallery.open(path, resized)


def test_the_first_of_two_models_wins(tmp_path: Path) -> None:
    with (
        Gallery.open(tmp_path / "g", ColourEmbedder("one"), create=True) as first,
        Gallery.open(tmp_path / "g", ColourEmbedder("two")) as second,
    ):
        first.add([entry("red")])
        with pytest.raises(GalleryError, match="built with one"):
            second.add([entry("green")])
        with pytest.raises(GalleryError, match="built with one"):
            second.search("red")
        assert len(first) == 1


def test_the_recorded_model_is_loaded_when_needed(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    import mm

    loaded: list[str] = []

    def load(name: str, device: str | None = None, precision: str = "auto") -> ColourEmbedder:
        loaded.append(name)
        if name != "colours":
            raise GalleryError(f"no model {name}")
        return ColourEmbedder(name)

    monkeypatch.setitem(vars(mm), "load", load)
    gallery.add([entry("red", captions={"en": ["red"]})])
    for named in (None, "colours"):
        with Gallery.open(gallery.path, named) as again:
            again.text_search("red")
            again.add([entry("red")])
            assert loaded == []
            assert uris(again.search("red", k=1)) == ["red.png"]
            again.add([entry("green")])
        assert loaded == ["colours"]
        loaded.clear()
    with pytest.raises(GalleryError, match="no model typo"):
        Gallery.open(gallery.path, "typo")
    with pytest.raises(GalleryError, match="no model typo"):
        Gallery.open(gallery.path.parent / "new", "typo", create=True)
    assert not (gallery.path.parent / "new").exists()


def test_an_empty_gallery_finds_nothing(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", create=True) as gallery:
        assert gallery.search("red") == []
        assert gallery.text_search("red") == []
        assert list(gallery.items()) == []
        assert gallery.verify() == []
        assert gallery.model is None


def loading(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Makes ``mm.load`` give a model of colours, and return a list of what it will be called with."""
    import mm

    calls: list[tuple[str, str | None]] = []

    def load(name: str = "default", device: str | None = None, precision: str = "auto") -> ColourEmbedder:
        calls.append((name, device))
        if device == "abacus":
            raise OptionError("device 'abacus' can't be used")
        return ColourEmbedder(name)

    monkeypatch.setitem(vars(mm), "load", load)
    return calls


def test_an_empty_gallery_takes_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = loading(monkeypatch)
    for _ in range(2):
        with Gallery.open(tmp_path / "g", create=True) as gallery:
            assert gallery.model is None
    with Gallery.open(tmp_path / "g") as gallery:
        assert calls == []
        gallery.add([entry("red")])
        assert gallery.model is not None and gallery.model.name == "default"
    assert calls == [("default", None)]


def test_a_device_goes_to_the_model_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = loading(monkeypatch)
    for name in ("colours", None):
        with pytest.raises(OptionError, match="abacus"):
            Gallery.open(tmp_path / "g", name, create=True, device="abacus")
        assert not (tmp_path / "g").exists()
    with Gallery.open(tmp_path / "g", "colours", create=True, device="cpu") as gallery:
        gallery.add([entry("red")])
    calls.clear()
    with Gallery.open(tmp_path / "g", device="cpu"):
        assert calls == [("colours", "cpu")]
    for name in ("colours", None):
        with pytest.raises(OptionError, match="abacus"):
            Gallery.open(tmp_path / "g", name, device="abacus")


def test_a_wrong_name_is_found_at_once_in_an_empty_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = loading(monkeypatch)
    for _ in range(2):
        Gallery.open(tmp_path / "g", "colours", create=True).close()
    assert calls == [("colours", None)] * 2


def test_a_gallery_emptied_again_finds_nothing(gallery: Gallery) -> None:
    gallery.add([entry("red")])
    gallery.remove("red.png")
    assert gallery.search("red") == []


def test_wrong_use(gallery: Gallery) -> None:
    with pytest.raises(OptionError, match="k must be at least 1"):
        gallery.search("red", k=0)
    with pytest.raises(OptionError, match="k must be at least 1"):
        gallery.text_search("red", k=-1)
    for text in (None, "", "  "):
        with pytest.raises(OptionError, match="nothing to search for"):
            gallery.search(text)
    with pytest.raises(OptionError, match="batch_size"):
        gallery.add([], batch_size=0)
    with pytest.raises(DataError, match=r"red\.png: captions and metadata"):
        gallery.add([entry("red", metadata={"a": object()})])
    with pytest.raises(DataError, match="list of captions"):
        gallery.add([entry("red", captions={"en": "not a list"})])
    gallery.close()
    with pytest.raises(GalleryError, match="is closed"):
        gallery.search("red")


@pytest.mark.parametrize("fault", ["shape", "nan", "length"])
def test_unusable_vectors_are_refused(gallery: Gallery, model: ColourEmbedder, fault: str) -> None:
    def embed(images: list[Image.Image]) -> np.ndarray:
        good = ColourEmbedder.embed_images(model, images)
        return {"shape": good[:, :3], "nan": good * math.nan, "length": good * 3}[fault]

    model.embed_images = embed  # type: ignore[method-assign, assignment]
    with pytest.raises(GalleryError, match="colours gave vectors"):
        gallery.add([entry("red")])
    assert len(gallery) == 0


@pytest.mark.parametrize(
    "uri", ["a/b 'c' \"d\".png", "照片/红.jpg", "\udcff\udcfe.jpg", "x" * 5000, "a\0b", "'); DROP TABLE image; --"]
)
def test_any_uri_and_caption(gallery: Gallery, uri: str) -> None:
    item = entry("red", uri, captions={"en": [uri, ""], uri: ["red"]}, metadata={uri: uri})
    assert gallery.add([item]) == AddReport(added=1)
    assert gallery.add([item]) == AddReport(unchanged=1)
    (hit,) = gallery.text_search("red")
    assert hit.metadata == {uri: uri}
    hit.uri.encode()
    assert gallery.remove(uri)


def test_images_without_a_uri_do_not_replace_each_other(gallery: Gallery) -> None:
    gallery.add([entry("red", ""), entry("green", "")])
    assert len(gallery) == 2
    assert all(uri.startswith("sha256:") for uri in gallery.uris())


def test_more_results_than_one_statement_can_name(gallery: Gallery) -> None:
    gallery.add([entry((r, g, 0)) for r in range(0, 250, 8) for g in range(0, 250, 8)], batch_size=200)
    hits = gallery.search("red", k=10_000)
    assert len(hits) == len(gallery) == 1024
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len({hit.sha256 for hit in hits}) == len(list(gallery.items())) == 1024


def test_reading_while_another_connection_writes(gallery: Gallery, model: ColourEmbedder) -> None:
    gallery.add([entry("red")])
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            with Gallery.open(gallery.path, ColourEmbedder()) as reader:
                seen = 0
                while not done.is_set() or seen < 101:
                    hits = reader.search("red", k=1000)
                    assert hits[0].uri == "red.png"
                    assert len(hits) >= seen
                    seen = len(hits)
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        gallery.add((entry((0, level * 2, 255)) for level in range(100)), batch_size=3)
    finally:
        done.set()
        reader.join(timeout=30)
    assert not failures
    assert not reader.is_alive()


def test_two_writers_at_once(gallery: Gallery) -> None:
    gallery.add([entry("white")])
    failures: list[BaseException] = []

    def write(red: int) -> None:
        try:
            with Gallery.open(gallery.path, ColourEmbedder()) as writer:
                writer.add((entry((red, level, 0)) for level in range(0, 250, 2)), batch_size=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(red,)) for red in (10, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(gallery) == len(gallery.search("red", k=1000)) == 251


def test_one_gallery_in_several_threads(gallery: Gallery) -> None:
    gallery.add([entry(colour) for colour in COLOURS])
    found: list[str] = []

    def ask(colour: str) -> None:
        found.extend(gallery.search(colour, k=1)[0].uri.removesuffix(".png") == colour for _ in range(20))

    threads = [threading.Thread(target=ask, args=(colour,)) for colour in COLOURS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20 * len(COLOURS)
