from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from colours import ColourEmbedder, entry
from PIL import Image

import mm
from mm.checkpoints import save_directory
from mm.data.images import decode_image
from mm.data.samples import Sample
from mm.data.shards.writing import write_shards
from mm.data.sources import iter_images
from mm.errors import CapabilityError, OptionError
from mm.pipeline import Pipeline
from mm.search import Gallery, Hit
from mm.search.indexing import index_samples
from mm.search.reranking import read_hit

TEXT = "a red wall"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder, words = tmp_path_factory.mktemp("model"), tiny.tokenizer()
    net = tiny.model(words)
    assert net.match_head is not None
    with torch.no_grad():
        net.match_head.weight.mul_(3)  # probabilities that are far apart
    save_directory(folder, net, words, tiny.ARCHITECTURE, "")
    return mm.load(folder, "cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures of noise, larger than a thumbnail."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(tiny.COLOURS):
        noise = np.random.default_rng(number).integers(-99, 99, (280, 300, 3))
        pixels = (noise + tiny.COLOURS[colour][0]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{colour}.png")
    return folder


@pytest.fixture
def gallery(tmp_path: Path, model: Pipeline, photos: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "g", model, create=True) as gallery:
        index_samples(gallery, iter_images([photos]))
        yield gallery


def thumbnail(hit: Hit) -> Image.Image:
    return Image.open(BytesIO(hit.thumbnail))


def test_the_first_are_sorted_by_match_and_the_others_follow(gallery: Gallery, model: Pipeline) -> None:
    nearest = gallery.search(TEXT)
    images = [Path(hit.uri) for hit in nearest]
    probability = dict(zip([hit.uri for hit in nearest], model.match(images, TEXT)[:, 0].tolist(), strict=True))
    best = sorted(nearest[:5], key=lambda hit: -probability[hit.uri])
    assert best != nearest[:5]

    found = gallery.search(TEXT, rerank=5)
    assert [hit.uri for hit in found] == [hit.uri for hit in [*best, *nearest[5:]]]
    assert [hit.rank for hit in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [hit.match for hit in found[:5]] == pytest.approx([probability[hit.uri] for hit in best], abs=1e-5)
    assert [hit.match for hit in found[5:]] == [None] * 3
    assert {hit.uri: hit.score for hit in found} == {hit.uri: hit.score for hit in nearest}


def test_candidates_may_be_more_than_results(gallery: Gallery) -> None:
    assert gallery.search(TEXT, k=2, rerank=6) == gallery.search(TEXT, k=6, rerank=6)[:2]
    assert gallery.search(TEXT, k=2, rerank=100) == gallery.search(TEXT, k=8, rerank=8)[:2]


def test_without_rerank_nothing_is_matched(gallery: Gallery) -> None:
    assert {hit.match for hit in gallery.search(TEXT)} == {None}


def test_images_that_are_gone_are_matched_by_their_thumbnails(gallery: Gallery, model: Pipeline, photos: Path) -> None:
    before = gallery.search(TEXT, rerank=8)
    for path in photos.iterdir():
        path.unlink()
    after = gallery.search(TEXT, rerank=8)
    expected = model.match([thumbnail(hit) for hit in after], TEXT)[:, 0].tolist()
    assert [hit.match for hit in after] == pytest.approx(expected, abs=1e-5)
    assert {hit.uri: hit.match for hit in after} != {hit.uri: hit.match for hit in before}


def test_another_image_in_its_place_is_not_read(gallery: Gallery, photos: Path) -> None:
    (hit, *_) = gallery.search(TEXT, k=1)
    assert read_hit(hit).size == (300, 280)
    Image.new("RGB", (300, 280), "black").save(hit.uri)
    assert read_hit(hit).size == thumbnail(hit).size == (256, 239)


def test_members_of_shards_are_read(tmp_path: Path, model: Pipeline, photos: Path) -> None:
    images = {path.stem: path.read_bytes() for path in photos.iterdir()}
    folder = tmp_path / "shards"
    samples = [Sample(f"in/{name}", name, image, tiny.captions(name)) for name, image in images.items()]
    write_shards(samples, folder, max_samples=3)
    with Gallery.open(tmp_path / "of-shards", model, create=True) as gallery:
        index_samples(gallery, iter_images([folder]))
        found = gallery.search(TEXT, rerank=8)
    assert len(found) == 8
    for hit in found:
        assert read_hit(hit).tobytes() == decode_image(images[Path(hit.uri).stem]).tobytes()
    for shard in folder.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:100])
    assert all(read_hit(hit).tobytes() == thumbnail(hit).tobytes() for hit in found)


def test_options_out_of_range(gallery: Gallery) -> None:
    with pytest.raises(OptionError, match="rerank must be at least 0, not -1"):
        gallery.search(TEXT, rerank=-1)
    with pytest.raises(OptionError, match="k must be at least 1, not 0"):
        gallery.search(TEXT, k=0, rerank=4)
    with pytest.raises(OptionError, match="rerank is for searches in words only"):
        gallery.search(TEXT, image=tiny.picture("red"), rerank=4)


def test_a_model_that_can_not_match_is_refused_before_any_work(
    gallery: Gallery, model: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "capabilities", ("embed",))
    monkeypatch.setattr(model, "embed_text", lambda texts: pytest.fail("embedded"))
    with pytest.raises(CapabilityError, match="can't match"):
        gallery.search(TEXT, rerank=4)


def test_an_embedder_alone_is_refused(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "colours", ColourEmbedder(), create=True) as gallery:
        gallery.add([entry("red")])
        with pytest.raises(CapabilityError, match="colours can't match; search without rerank"):
            gallery.search("red", rerank=1)
