"""``mm demo``: captions and searches the sample photos, and writes a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mm.cli import common
from mm.data.samples import Sample, Tally
from mm.data.sources import iter_images, resolve_sources
from mm.errors import DataError, UsageError
from mm.files import make_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from mm.pipeline import Caption, Pipeline
    from mm.search.report import Match, Search

SAMPLES = Path(__file__).parent.parent.parent / "data" / "samples"
SEARCHES = ("a woman in a uniform", "a photographer with a camera", "stars in the night sky")
LANGUAGES = {"en": "English", "zh": "Chinese"}


@dataclass(frozen=True)
class Found:
    """What the demo found out.

    Args:
        photos: those that could be decoded.
        captions: one for each photo, by language.
        searches: in words, and the last by the first photo.
        match: how well captions fit the last photo.
    """

    photos: Sequence[tuple[Sample, Image]]
    captions: dict[str, list[Caption]]
    searches: Sequence[Search]
    match: Match

    def rows(self) -> list[dict[str, str]]:
        """Gives each photo's name with its captions, by the name of the language."""
        return [
            {
                "photo": Path(sample.source).name,
                **{LANGUAGES.get(code, code): known[row].text for code, known in self.captions.items()},
            }
            for row, (sample, _) in enumerate(self.photos)
        ]


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm demo``."""
    parser = common.Parser(prog=program, description="Caption and search photos, and write a contact sheet.")
    parser.add_argument("--photos", type=Path, default=SAMPLES, help="folder of photos; the sample photos unless given")
    parser.add_argument("--output", type=Path, default=Path("mm-demo"), help="folder for the contact sheet")
    parser.add_argument("--search", nargs="+", default=list(SEARCHES), help="what to search for")
    common.add_model(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.photos == SAMPLES and not SAMPLES.is_dir():
        raise UsageError(
            "the sample photos come with a clone of mm, not with an installed package; give --photos FOLDER"
        )
    sources = resolve_sources([options.photos])
    path = (options.output / "contact-sheet.html").absolute()
    make_folder(options.output)
    common.check_writable(path)
    with TemporaryDirectory(prefix="gallery-", dir=options.output) as folder:
        import mm

        model = mm.load(options.model, options.device, options.precision)
        model.require("match")
        tally = Tally()
        photos = list(common.decoded(iter_images(sources), tally))
        if not photos:
            common.report_rejections(tally)
            raise DataError(f"{options.photos}: none of its photos could be used; give others", "unusable photos")
        found = _find_out(model, photos, options.search, Path(folder))
    _write_sheet(path, found)
    if options.json:
        common.print_json(_result(found, tally, path))
        return common.report_rejections(tally)
    _print(found)
    status = common.report_rejections(tally)
    print(path)
    return status


def _find_out(model: Pipeline, photos: Sequence[tuple[Sample, Image]], queries: Sequence[str], folder: Path) -> Found:
    images = [image for _, image in photos]
    captions = {code: model.caption(images, language=code) for code in model.languages}
    searches = _searches(model, photos, queries, folder)
    return Found(photos, captions, searches, _match(model, photos, next(iter(captions.values()))))


def _searches(
    model: Pipeline, photos: Sequence[tuple[Sample, Image]], queries: Sequence[str], folder: Path
) -> list[Search]:
    """Searches a gallery of the photos, made in ``folder``, in words and by the first photo."""
    from mm.search import Entry, Gallery
    from mm.search.items import make_thumbnail
    from mm.search.report import Search

    sample, image = photos[0]
    with Gallery.open(folder, model, create=True) as gallery:
        gallery.add(Entry(s.image, i, s.source, s.captions, s.metadata) for s, i in photos)
        return [
            *(Search(gallery.search(query, k=3), text=query) for query in queries),
            Search(gallery.search(k=3, image=image), image=make_thumbnail(image), name=Path(sample.source).name),
        ]


def _match(model: Pipeline, photos: Sequence[tuple[Sample, Image]], captions: Sequence[Caption]) -> Match:
    """Asks which of the captions of several photos fits the last of them."""
    from mm.search.items import make_thumbnail
    from mm.search.report import Match

    sample, image = photos[-1]
    texts = list(dict.fromkeys(caption.text for caption in captions[-4:]))
    probabilities = model.match(image, texts)[0]
    choices = sorted(zip(texts, map(float, probabilities), strict=True), key=lambda choice: -choice[1])
    return Match(Path(sample.source).name, make_thumbnail(image), choices)


def _write_sheet(path: Path, found: Found) -> None:
    from mm.search import report
    from mm.search.items import make_thumbnail

    photos = [
        report.Photo(
            Path(sample.source).name,
            make_thumbnail(image),
            {code: [report.Caption(known[row].text, known[row].score)] for code, known in found.captions.items()},
        )
        for row, (sample, image) in enumerate(found.photos)
    ]
    report.write_page(path, report.contact_sheet(photos, found.searches, [found.match], "mm demo"))


def _result(found: Found, tally: Tally, path: Path) -> dict[str, Any]:
    return {
        "captions": found.rows(),
        "searches": [
            {
                "query": search.text or search.name,
                "results": [{"photo": Path(hit.uri).name, "score": round(hit.score, 4)} for hit in search.hits],
            }
            for search in found.searches
        ],
        "match": {
            "photo": found.match.name,
            "captions": [{"caption": text, "probability": round(p, 4)} for text, p in found.match.choices],
        },
        "rejections": common.rejections_json(tally),
        "contact sheet": str(path),
    }


def _print(found: Found) -> None:
    rows = found.rows()
    common.print_table("Captions", tuple(rows[0]), [tuple(row.values()) for row in rows])
    for search in found.searches:
        title = f'Search: "{search.text}"' if search.text else f"Search by image: {search.name}"
        hits = [(Path(hit.uri).name, f"{hit.score:.3f}") for hit in search.hits]
        common.print_table(title, ("photo", "score"), hits)
    choices = [(text, f"{probability:.0%}") for text, probability in found.match.choices]
    common.print_table(f"Which caption fits {found.match.name}?", ("caption", "probability"), choices)
