from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from colours import picture
from PIL import Image

from mm.errors import OutputError
from mm.search import Hit
from mm.search.items import make_thumbnail
from mm.search.report import Caption, Match, Photo, Search, contact_sheet, results_page, write_page

VOID = {"meta", "img", "br", "hr", "input", "link"}
NASTY = "</style><script>alert('x')</script>\"'&amp;<img src=http://example.org/x onerror=y>"


class Page(HTMLParser):
    """Parses a page, insisting that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def styled(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


def hit(rank: int, uri: str = "photos/a.jpg", caption: str = "a dog") -> Hit:
    captions = {"en": [caption, "second", "third"], "zh": ["一只狗"]}
    return Hit("0" * 64, uri, captions, {}, make_thumbnail(picture("red")), score=1 / rank, rank=rank)


def sheet(text: str) -> str:
    thumbnail = make_thumbnail(picture("green"))
    return contact_sheet(
        [Photo(text, thumbnail, {"en": [Caption(text, -12.345)], text: [Caption("无分数")]})],
        [
            Search([hit(1, text, text), hit(2)], text=text),
            Search([hit(1)], image=thumbnail, name=text),
            Search([], text="nothing like it"),
        ],
        [Match(text, thumbnail, [(text, 0.031), ("a better caption", 0.9), ("out of range", 1.7)])],
        text,
    )


@pytest.mark.parametrize("html", [sheet(NASTY), results_page(NASTY, NASTY, [hit(1, NASTY, NASTY)])])
def test_text_stays_text(html: str) -> None:
    page = Page(html)
    assert page.all("script") == []
    assert page.text.count(NASTY) >= 4
    allowed = {"alt", "src", "class", "style", "title", "lang", "charset", "name", "content", "scope"}
    assert {name for _, attributes in page.elements for name in attributes} <= allowed


@pytest.mark.parametrize("html", [sheet("plain"), results_page("plain", "plain", [hit(1), hit(2)])])
def test_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    for attributes in page.all("img"):
        source = attributes["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        Image.open(BytesIO(base64.b64decode(source.split(",")[1], validate=True))).load()
        assert attributes["alt"]
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^']*", "", html))
    assert page.all("link") == []


def test_results_page_shows_rank_score_name_and_captions() -> None:
    page = Page(results_page("Results", "a dog on grass", [hit(1), hit(2, "x.tar/狗.jpg")]))
    assert "2 results for a dog on grass" in page.text
    assert re.search(r"1 a\.jpg1\.000.*a dog.*second.*一只狗.*2 狗\.jpg0\.500", page.text)
    assert "third" not in page.text
    assert "1 result for" in results_page("Results", "q", [hit(1)]).replace("<strong>", "")
    assert "Nothing was found." in Page(results_page("Results", "q", [])).text


def test_contact_sheet_shows_everything() -> None:
    page = Page(sheet("river"))
    assert "1 photo, 3 searches, 1 match" in page.text
    assert "-12.35" in page.text or "-12.34" in page.text
    assert "None" not in page.text
    assert "Images like river" in page.text
    assert "Nothing was found." in page.text
    assert [bar["style"] for bar in page.styled("fill")] == ["width: 100.0%", "width: 90.0%", "width: 3.1%"]
    assert len(page.styled("best")) == 1
    assert page.text.index("out of range") < page.text.index("a better caption")


def test_an_empty_contact_sheet_is_a_page() -> None:
    assert Page(contact_sheet([], [], [], "Nothing")).all("h2") == []


@pytest.mark.parametrize(("kind", "mime"), [("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp"), ("JPEG", "jpeg")])
def test_thumbnails_of_other_kinds(kind: str, mime: str) -> None:
    buffer = BytesIO()
    picture("red").save(buffer, kind)
    (image,) = Page(contact_sheet([Photo("a", buffer.getvalue(), {})], [], [], "t")).all("img")
    assert (image["src"] or "").startswith(f"data:image/{mime};")


def test_light_and_dark_and_narrow() -> None:
    html = results_page("t", "q", [])
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_write_page(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(path, "old")
    write_page(str(path), "一只狗 \udcff")
    assert path.read_text(encoding="utf-8") == "一只狗 \\udcff"
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "page.html", tmp_path / "folder", Path("/proc/page.html")):
        with pytest.raises(OutputError, match=f"{path} can't be written"):
            write_page(path, "html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
