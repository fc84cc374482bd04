import re
from html.parser import HTMLParser
from pathlib import Path

import pytest


@pytest.mark.slow
def test_golden_run_with_mm_tiny(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("demo")
    assert status == 0, err
    page = Path(out.splitlines()[-1])
    assert page == tmp_path / "mm-demo" / "contact-sheet.html"
    assert out.count("Search: ") == 3
    assert out.count("Search by image: ") == 1
    assert out.count("Which caption fits ") == 1
    for photo in ("astronaut.jpg", "cat.jpg", "coffee.jpg", "photographer.jpg"):
        assert photo in out
    assert re.search("[\u4e00-\u9fff]{2}", out)  # Chinese captions
    html = page.read_text()
    HTMLParser().feed(html)
    assert "http" not in re.sub(r"data:image/[^\"')]*", "", html).replace("http-equiv", "")
    assert html.count("data:image/") >= 8 + 3 * 3 + 3


def test_own_photos_and_json(run_json, model, photos, tmp_path):
    out = tmp_path / "out"
    status, result = run_json("demo", "--photos", photos, "--output", out, "--model", model, "--search", "red")
    assert status == 0
    assert [row["photo"] for row in result["captions"]] == ["blue.png", "green.png", "red.png", "white.png"]
    assert all({"en", "zh"} <= row.keys() for row in result["captions"])
    assert [search["query"] for search in result["searches"]] == ["red", "blue.png"]
    assert result["searches"][1]["results"][0]["photo"] == "blue.png"
    assert Path(result["contact sheet"]).is_file()


def test_twice_into_the_same_folder(run, model, photos, tmp_path):
    for _ in range(2):
        assert run("demo", "--photos", photos, "--output", tmp_path / "out", "--model", model)[0] == 0


def test_no_photos(run, tmp_path):
    status, _, err = run("demo", "--photos", tmp_path / "nowhere")
    assert status == 2
    assert "nowhere" in err and err.count("\n") == 1
