import json

from PIL import Image


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
    assert same["results"][0]["uri"].endswith("green.png")
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
    by_name = {result["uri"].rsplit("/", 1)[-1]: result["captions"] for result in found["results"]}
    assert by_name["red.png"] == {"en": ["a red wall", "red paint"], "zh": ["一面墙"]}
    json.dumps(found)
