import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

SAMPLES = ("astronaut.jpg", "cat.jpg", "coffee.jpg", "photographer.jpg")


@pytest.mark.slow
def test_golden_run_with_mm_tiny(run_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, result = run_json("demo")
    assert status == 0 and result["rejections"] == []
    rows = {row["photo"]: row for row in result["captions"]}
    assert rows.keys() >= {*SAMPLES}
    for row in rows.values():
        assert faults_of_english(row["English"]) == [], row
        assert faults_of_chinese(row["Chinese"]) == [], row
    for language in ("English", "Chinese"):
        assert len({row[language] for row in rows.values()}) >= len(rows) / 2, rows

    *in_words, by_image = result["searches"]
    assert len(in_words) == 3
    assert all(len(search["results"]) == 3 for search in result["searches"])
    assert len({search["results"][0]["photo"] for search in in_words}) > 1  # what is found depends on the words
    (first, score), (_, second) = [tuple(hit.values()) for hit in by_image["results"][:2]]
    assert first == by_image["query"]
    assert score == pytest.approx(1, abs=1e-3) and second < 0.99

    choices = result["match"]["captions"]
    assert all(0 <= choice["probability"] <= 1 for choice in choices)
    assert rows[result["match"]["photo"]]["English"] in [choice["caption"] for choice in choices]

    page = Path(result["contact sheet"])
    assert page == tmp_path / "mm-demo" / "contact-sheet.html"
    html = page.read_text()
    HTMLParser().feed(html)
    assert "http" not in re.sub(r"data:image/[^\"')]*", "", html).replace("http-equiv", "")
    assert html.count("data:image/") >= 8 + 3 * 3 + 3


def faults_of_english(caption: str) -> list[str]:
    """What tells a caption from an English sentence, going by its letters and words alone."""
    words = re.findall("[a-z]+", caption.lower())
    found = []
    if not re.fullmatch(r"""[A-Za-z0-9 ,.;:!()'"-]+""", caption):
        found.append("characters")
    if len(words) < 4:
        found.append("too few words")
    if any(a == b == c for (a, b), (_, c) in pairwise(pairwise(words))):
        found.append("a word three times in a row")
    if not any(len(word) > 2 for word in words):
        found.append("no words")
    return found


def faults_of_chinese(caption: str) -> list[str]:
    """What tells a caption from a Chinese sentence, going by its characters alone."""
    found = []
    if re.search("[A-Za-z]", re.sub("T[恤台]", "", caption)):  # a T-shirt and a catwalk are written with a T
        found.append("Latin letters")
    if len(re.findall("[\u4e00-\u9fff]", caption)) < 4:
        found.append("too few characters")
    if re.search(r"(.)\1\1", caption):
        found.append("a character three times in a row")
    return found


@pytest.mark.parametrize(
    "caption",
    ["", "dog", "a dog dog dog runs", "a a a a a", "a dog 在草地上", "z . q , b", "a dog \ufffd in the grass"],
)
def test_nonsense_is_no_english(caption):
    assert faults_of_english(caption)
    assert not faults_of_english("two dogs run through the grass .")


@pytest.mark.parametrize("caption", ["", "狗", "一只dog在草地上", "狗狗狗狗狗", "two dogs run through the grass"])
def test_nonsense_is_no_chinese(caption):
    assert faults_of_chinese(caption)
    assert not faults_of_chinese("穿着T恤的女人和两只狗在草地上奔跑。")


def test_own_photos_and_json(run_json, model, photos, tmp_path):
    out = tmp_path / "out"
    status, result = run_json("demo", "--photos", photos, "--output", out, "--model", model, "--search", "red")
    assert status == 0
    assert [row["photo"] for row in result["captions"]] == ["blue.png", "green.png", "red.png", "white.png"]
    assert all(row.keys() == {"photo", "English", "Chinese"} for row in result["captions"])
    assert [search["query"] for search in result["searches"]] == ["red", "blue.png"]
    assert result["searches"][1]["results"][0]["photo"] == "blue.png"
    assert all(choice.keys() == {"caption", "probability"} for choice in result["match"]["captions"])
    assert result["rejections"] == []
    assert Path(result["contact sheet"]).is_file()


def test_tables(run, model, photos, tmp_path):
    status, out, _ = run("demo", "--photos", photos, "--output", tmp_path, "--model", model, "--search", "red", "sky")
    assert status == 0
    assert out.count('Search: "') == 2
    assert out.count("Search by image: blue.png") == 1
    assert out.count("Which caption fits white.png?") == 1
    assert re.search("photo .*English .*Chinese", out)
    assert Path(out.splitlines()[-1]) == tmp_path / "contact-sheet.html"


def photos_found(result: dict) -> set[str]:
    return {hit["photo"] for search in result["searches"] for hit in search["results"]}


def test_the_gallery_is_new_each_time(run_json, model, photos, tmp_path):
    out, others = tmp_path / "out", tmp_path / "others"
    others.mkdir()
    Image.new("RGB", (48, 40), "black").save(others / "black.png")
    _, first = run_json("demo", "--photos", photos, "--output", out, "--model", model)
    assert photos_found(first) <= {"blue.png", "green.png", "red.png", "white.png"}
    status, second = run_json("demo", "--photos", others, "--output", out, "--model", model)
    assert status == 0
    assert photos_found(second) == {"black.png"}
    assert [path.name for path in out.iterdir()] == ["contact-sheet.html"]


def test_another_model_into_the_same_folder(run, model, photos, tmp_path):
    from mm.checkpoints import load_directory, save_directory

    other, loaded = tmp_path / "other", load_directory(model)
    loaded.model.logit_scale.data += 1
    save_directory(other, loaded.model, loaded.tokenizer, loaded.architecture, "# other\n")
    for name in (model, other):
        status, _, err = run("demo", "--photos", photos, "--output", tmp_path / "out", "--model", name)
        assert status == 0, err


def test_a_gallery_in_the_output_folder_is_left_alone(run, run_json, model, photos, tmp_path):
    out, gallery = tmp_path / "out", tmp_path / "out" / "gallery"
    run("index", photos / "red.png", "--gallery", gallery, "--model", model)
    assert run("demo", "--photos", photos, "--output", out, "--model", model)[0] == 0
    _, found = run_json("search", "red", "--gallery", gallery)
    assert [Path(hit["image"]).name for hit in found["results"]] == ["red.png"]


def test_bad_photos_among_good_ones(run, run_json, model, photos, tmp_path):
    (photos / "empty.jpg").write_bytes(b"")
    arguments = ("demo", "--photos", photos, "--output", tmp_path / "out", "--model", model)
    status, result = run_json(*arguments)
    assert status == 1
    assert len(result["captions"]) == 4
    assert [(Path(row["source"]).name, row["reason"]) for row in result["rejections"]] == [("empty.jpg", "empty file")]
    status, out, err = run(*arguments)
    assert status == 1
    assert "Rejected: 1 of 5" in err and "empty.jpg" in err
    assert out.splitlines()[-1].endswith("contact-sheet.html")


def test_only_bad_photos(run, model, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "text.png").write_text("not an image")
    status, out, err = run("demo", "--photos", bad, "--output", tmp_path / "out", "--model", model)
    assert status == 1
    assert out == ""
    assert "Rejected: 2 of 2" in err and "empty file" in err and "not an image" in err
    assert err.splitlines()[-1].startswith(f"mm demo: {bad}: none of its photos could be used")
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_use(run, model, photos, tmp_path):
    for arguments, culprit in [
        (("--photos", tmp_path / "nowhere"), "nowhere"),
        (("--photos", photos, "--output", photos / "red.png" / "out"), "red.png"),
        (("--photos", photos, "--output", tmp_path / "out", "--device", "abacus"), "abacus"),
    ]:
        status, out, err = run("demo", *arguments, "--model", model)
        assert status == 2
        assert out == ""
        assert culprit in err and err.count("\n") == 1
