import json
import shutil
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def default_model(model, tmp_path, monkeypatch):
    """Puts the random model in the place of mm-tiny."""
    from mm.checkpoints import resolve

    shutil.copytree(model, tmp_path / "assets" / "mm-tiny")
    monkeypatch.setattr(resolve, "ASSETS", tmp_path / "assets")


def test_index_search_and_index_again(run, run_json, model, photos, tmp_path):
    gallery = tmp_path / "my.gallery"
    status, first = run_json("index", photos, "--gallery", gallery, "--model", model)
    assert status == 0
    assert (first["added"], first["unchanged"], first["images in the gallery"]) == (4, 0, 4)
    Image.new("RGB", (20, 20), "black").save(photos / "black.png")
    _, second = run_json("index", photos, "--gallery", gallery, "--model", model)
    assert (second["added"], second["unchanged"], second["images in the gallery"]) == (1, 4, 5)

    status, found = run_json("search", "a red wall", "--gallery", gallery, "--model", model, "-k", 3)
    assert status == 0
    assert [result["rank"] for result in found["results"]] == [1, 2, 3]
    _, same = run_json("search", "--image", photos / "green.png", "--gallery", gallery, "--model", model)
    assert same["results"][0]["image"].endswith("green.png")
    assert same["results"][0]["score"] > 0.999


def test_the_gallery_remembers_its_model(run, model, photos, tmp_path):
    gallery = tmp_path / "my.gallery"
    run("index", photos, "--gallery", gallery, "--model", model)
    assert run("index", photos, "--gallery", gallery)[0] == 0
    status, out, _ = run("search", "red", "--gallery", gallery)
    assert status == 0
    assert "red.png" in out


def test_html_results(run, model, photos, tmp_path):
    gallery, page = tmp_path / "my.gallery", tmp_path / "results.html"
    run("index", photos, "--gallery", gallery, "--model", model)
    status, out, _ = run("search", "<b>red</b>", "--gallery", gallery, "--html", page)
    assert status == 0
    assert out.splitlines()[-1] == str(page)
    html = page.read_text()
    assert "&lt;b&gt;red" in html and "<b>red</b>" not in html
    assert html.count("data:image/") == 4


def test_results_ranked_anew(run, run_json, model, photos, tmp_path):
    gallery, page = tmp_path / "g", tmp_path / "results.html"
    run("index", photos, "--gallery", gallery, "--model", model)
    search = ("search", "red", "--gallery", gallery)
    status, found = run_json(*search, "--rerank", 3)
    assert status == 0
    *scored, last = [result["match"] for result in found["results"]]
    assert scored == sorted(scored, reverse=True) and all(0 < match < 1 for match in scored)
    assert len(scored) == 3 and last is None
    _, out, _ = run(*search, "--rerank", 3, "--html", page)
    assert next(line for line in out.splitlines() if line.startswith("┃")).count(" match ") == 1
    assert page.read_text().count(" · match 0.") == 3
    for wrong, culprit in (
        (("--rerank", -1), "rerank must be at least 0"),
        (("--rerank", 3, "-k", 0), "k must be at least 1"),
        (("--rerank", 3, "--image", photos / "red.png"), "rerank is for searches in words only"),
    ):
        status, out, err = run(*search, *wrong)
        assert (status, out) == (2, "")
        assert culprit in err and err.count("\n") == 1


def test_bad_files_are_listed(run, model, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    status, out, err = run("index", photos, "--gallery", tmp_path / "g", "--model", model)
    assert status == 1
    assert "Rejected: 1 of 5" in err and "broken.jpg" in err
    assert "added" in out


def test_wrong_use(run, model, photos, tmp_path):
    gallery = tmp_path / "my.gallery"
    cases = [
        (("search", "red", "--gallery", gallery), "my.gallery"),
        (("search", "--gallery", gallery), "words"),
        (("index", tmp_path / "nowhere", "--gallery", gallery), "nowhere"),
        (("index", photos, "--gallery", photos / "red.png" / "g", "--model", model), "red.png"),
        (("index", photos, "--gallery", gallery, "--model", "mm-huge"), "mm-huge"),
    ]
    for arguments, culprit in cases:
        status, out, err = run(*arguments)
        assert status == 2, arguments
        assert err.count("\n") == 1, err
        assert culprit in err
        assert out == ""
    assert not gallery.exists()


def test_another_model_is_refused(run, model, photos, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    weights["match_head.bias"] += 1
    save_file(weights, other / "model.safetensors")
    gallery = tmp_path / "my.gallery"
    run("index", photos, "--gallery", gallery, "--model", model)
    for command in (("index", photos), ("search", "red")):
        status, _, err = run(*command, "--gallery", gallery, "--model", other)
        assert status == 2
        assert err.count("\n") == 1
        assert "other" in err and "random" in err


def test_json_has_the_captions_of_shards(run_json, run, model, shards, tmp_path):
    gallery = tmp_path / "g"
    run("index", shards, "--gallery", gallery, "--model", model)
    _, found = run_json("search", "red", "--gallery", gallery)
    by_name = {result["image"].rsplit("/", 1)[-1]: result["captions"] for result in found["results"]}
    assert by_name["red.png"] == {"en": ["a red wall", "red paint"], "zh": ["一面墙"]}


def test_keys_are_the_columns(run, run_json, model, photos, tmp_path):
    gallery = tmp_path / "g"
    _, figures = run_json("index", photos, "--gallery", gallery, "--model", model)
    _, out, _ = run("index", photos, "--gallery", gallery)
    assert all(f"│ {name} " in out for name in figures if name != "rejections")
    _, out, _ = run("search", "red", "--gallery", gallery)
    columns = next(line for line in out.splitlines() if line.startswith("┃")).replace("┃", " ").split()
    _, found = run_json("search", "red", "--gallery", gallery)
    assert columns == ["rank", "score", "image"]
    assert all(hit.keys() >= {*columns} for hit in found["results"])


def test_captions_beside_photos_are_recorded(run, run_json, model, photos, tmp_path):
    (photos / "red.txt").write_text("a red wall")
    (photos / "blue.json").write_text(json.dumps({"captions": ["a blue wall"], "captions_zh": ["蓝墙"], "camera": "x"}))
    gallery = tmp_path / "g"
    assert run("index", photos, "--gallery", gallery, "--model", model)[0] == 0  # photos without a caption too
    _, found = run_json("search", "red", "--gallery", gallery)
    captions = {Path(hit["image"]).name: hit["captions"] for hit in found["results"]}
    assert captions == {
        "red.png": {"en": ["a red wall"]},
        "blue.png": {"en": ["a blue wall"], "zh": ["蓝墙"]},
        "green.png": {},
        "white.png": {},
    }
    (photos / "red.txt").write_text("a wall painted red")
    _, again = run_json("index", photos, "--gallery", gallery)
    assert (again["updated"], again["unchanged"]) == (1, 3)


def test_a_caption_that_is_not_utf_8_is_listed(run_json, model, photos, tmp_path):
    (photos / "red.txt").write_bytes(b"caf\xe9")
    status, result = run_json("index", photos, "--gallery", tmp_path / "g", "--model", model)
    assert status == 1
    assert result["added"] == 3
    assert [row["reason"] for row in result["rejections"]] == ["caption is not UTF-8"]


def test_a_folder_that_is_there_is_a_new_gallery(run_json, default_model, photos, tmp_path):
    gallery = tmp_path / "g"
    gallery.mkdir()
    status, result = run_json("index", photos, "--gallery", gallery)
    assert (status, result["added"]) == (0, 4)


def test_a_gallery_without_images_gets_the_default_model(run_json, default_model, photos, tmp_path):
    bad, gallery = tmp_path / "bad", tmp_path / "g"
    bad.mkdir()
    (bad / "empty.jpg").write_bytes(b"")
    status, result = run_json("index", bad, "--gallery", gallery)
    assert (status, result["rejected"], result["images in the gallery"]) == (1, 1, 0)
    status, result = run_json("index", photos, "--gallery", gallery)
    assert (status, result["added"]) == (0, 4)


def test_an_interrupted_first_run_can_be_repeated(run, run_json, default_model, photos, tmp_path, monkeypatch):
    from mm.cli import index

    def interrupt(*_):
        raise KeyboardInterrupt

    gallery = tmp_path / "g"
    with monkeypatch.context() as patch:
        patch.setattr(index, "index_samples", interrupt)
        assert run("index", photos, "--gallery", gallery)[0] == 130
    status, result = run_json("index", photos, "--gallery", gallery)
    assert (status, result["added"]) == (0, 4)


def test_a_device_is_used(run, model, photos, tmp_path, monkeypatch):
    import mm

    load, devices = mm.load, []

    def record(name="mm-tiny", device=None, precision="auto"):
        devices.append(device)
        return load(name, device, precision)

    monkeypatch.setitem(vars(mm), "load", record)
    gallery = tmp_path / "g"
    assert run("index", photos, "--gallery", gallery, "--model", model, "--device", "cpu")[0] == 0
    assert run("search", "red", "--gallery", gallery, "--device", "cpu")[0] == 0
    assert devices == ["cpu", "cpu"]


def test_a_wrong_device_ends_before_any_work(run, model, photos, tmp_path):
    gallery = tmp_path / "g"
    wrong = ("--gallery", gallery, "--device", "abacus")
    for options in (("--model", model), ()):
        status, out, err = run("index", photos, *wrong, *options)
        assert (status, out) == (2, "")
        assert "abacus" in err and err.count("\n") == 1
        assert not gallery.exists()
    run("index", photos, "--gallery", gallery, "--model", model)
    for command in (("index", photos), ("search", "red")):
        status, out, err = run(*command, *wrong)
        assert (status, out) == (2, "")
        assert "abacus" in err and err.count("\n") == 1


BAD_PHOTOS = {
    "text.jpg": (b"not an image at all", "not an image"),
    "empty.jpg": (b"", "empty file"),
    "cut.jpg": (None, "truncated"),
    "large.png": (None, "too many pixels"),
}


def test_bad_photos_among_good_ones(run_json, model, photos, tmp_path):
    for name, (content, _) in BAD_PHOTOS.items():
        (photos / name).write_bytes(content or b"")
    Image.new("RGB", (300, 300)).save(photos / "large.png")
    Image.effect_noise((200, 200), 90).convert("RGB").save(photos / "cut.jpg")
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:3000])
    arguments = ("index", photos, "--gallery", tmp_path / "g", "--max_pixels", 50_000)
    status, result = run_json(*arguments, "--model", model)
    assert status == 1
    assert (result["added"], result["rejected"], result["images in the gallery"]) == (4, 4, 4)
    reasons = {Path(row["source"]).name: row["reason"] for row in result["rejections"]}
    assert reasons == {name: reason for name, (_, reason) in BAD_PHOTOS.items()}
    status, result = run_json(*arguments)
    assert (status, result["unchanged"], result["rejected"]) == (1, 4, 4)


def test_bad_members_of_a_shard(run_json, model, shards, tmp_path):
    from mm.data.samples import Sample
    from mm.data.shards.reading import read_shard
    from mm.data.shards.writing import write_shards

    bad = tmp_path / "bad"
    good = [sample for sample in read_shard(next(shards.glob("*.tar"))) if isinstance(sample, Sample)]
    large = tmp_path / "large.png"
    Image.new("RGB", (300, 300)).save(large)
    write_shards([*good, Sample("large", "made", large.read_bytes(), {"en": ["large"]})], bad)
    shard = next(bad.glob("*.tar"))
    image = good[0].image
    whole = shard.read_bytes()
    assert whole.count(image) == 1
    shard.write_bytes(whole.replace(image, b"x" * len(image)))
    status, result = run_json("index", bad, "--gallery", tmp_path / "g", "--model", model, "--max_pixels", 50_000)
    assert status == 1
    assert (result["added"], result["rejected"]) == (3, 2)
    reasons = {row["key"]: row["reason"] for row in result["rejections"]}
    assert reasons == {good[0].key: "not an image", "large": "too many pixels"}


@pytest.mark.parametrize("known", [True, False], ids=["manifest", "no-manifest"])
def test_a_corrupt_tar_header(run_json, model, shards, tmp_path, known):
    shard = next(shards.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[content.index(b"blue.png") + 150] ^= 0xFF  # within the checksum of the third sample's header
    shard.write_bytes(content)
    if not known:
        (shards / "manifest.json").unlink()
    status, result = run_json("index", shards, "--gallery", tmp_path / "g", "--model", model)
    assert status == 1
    assert result["added"] == 2
    assert result["rejected"] == (2 if known else 1)  # without a manifest nobody knows how many there were
    (row,) = result["rejections"]
    assert (row["source"], row["reason"]) == (str(shard), "corrupt tar header")


@pytest.mark.parametrize("known", [True, False], ids=["manifest", "no-manifest"])
def test_a_tar_cut_anywhere(run_json, model, shards, tmp_path, known):
    shard = next(shards.glob("*.tar"))
    whole = shard.read_bytes()
    if not known:
        (shards / "manifest.json").unlink()
    gallery, added = tmp_path / "g", 0
    end = len(whole.rstrip(b"\0"))
    for cut in [*range(0, end, 1111), end - 1]:  # from shorter to longer: what was indexed stays
        shard.write_bytes(whole[:cut])
        status, result = run_json("index", shard, "--gallery", gallery, "--model", model)
        assert status == 1, cut
        added += result["added"]
        assert result["images in the gallery"] == added == result["added"] + result["unchanged"]
        (row,) = result["rejections"]
        assert (row["source"], row["reason"]) == (str(shard), "shard cut short" if cut else "empty shard")
        assert result["rejected"] == (4 - added if known else 1)
    assert added >= 3


def test_wrong_use_of_other_options(run, model, photos, tmp_path):
    gallery, empty = tmp_path / "g", tmp_path / "empty"
    empty.mkdir()
    cases = [
        (("index", empty), "empty: holds no images"),
        (("index", photos, "--batch_size", 0), "--batch_size must be at least 1"),
        (("index", photos, "--max_pixels", 0), "--max_pixels must be at least 1"),
        (("index", photos, "--max_pixels", -5), "--max_pixels must be at least 1"),
    ]
    for arguments, culprit in cases:
        status, out, err = run(*arguments, "--gallery", gallery, "--model", model)
        assert status == 2, arguments
        assert err.count("\n") == 1 and culprit in err, err
        assert out == ""
    assert not gallery.exists()


def test_a_page_that_can_not_be_written_ends_before_any_work(run, model, photos, tmp_path):
    gallery = tmp_path / "g"
    run("index", photos, "--gallery", gallery, "--model", model)
    for page in (photos / "red.png" / "page.html", tmp_path / "no" / "folder" / "page.html", photos):
        status, out, err = run("search", "red", "--gallery", gallery, "--html", page, "--model", "mm-huge")
        assert (status, out) == (2, "")
        assert str(page) in err and err.count("\n") == 1  # not a word of the model: it wasn't looked for yet
    assert (photos / "red.png").is_file()
