"""``mm demo``: captions and searches the sample photos, and writes a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.cli import common
from mm.data.samples import Sample, Tally
from mm.data.sources import iter_images, resolve_sources
from mm.errors import OutputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mm.pipeline import Caption, Pipeline
    from mm.search import Gallery
    from mm.search.report import Match, Search

SAMPLES = Path(__file__).parent.parent.parent / "data" / "samples"
SEARCHES = ("a smiling woman", "a man with a camera", "an animal in the leaves")
LANGUAGES = {"en": "English", "zh": "Chinese"}


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm demo``."""
    parser = common.Parser(prog=program, description="Caption and search photos, and write a contact sheet.")
    parser.add_argument("--photos", type=Path, default=SAMPLES, help="folder of photos; the sample photos unless given")
    parser.add_argument("--output", type=Path, default=Path("mm-demo"), help="folder for the gallery and the sheet")
    parser.add_argument("--search", nargs="+", default=list(SEARCHES), help="what to search for")
    common.add_model(parser)
    common.add_json(parser)
    options = common.parse(parser, arguments)
    if options.photos == SAMPLES and not SAMPLES.is_dir():
        raise UsageError(
            "the sample photos come with a clone of mm, not with an installed package; give --photos FOLDER"
        )
    sources = resolve_sources([options.photos])
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{options.output}: can't be made ({error.strerror})") from error

    import mm
    from mm.search import Gallery
    from mm.search.indexing import index_samples
    from mm.search.items import make_thumbnail
    from mm.search.report import Caption, Photo, contact_sheet, write_page

    model = mm.load(options.model, options.device)
    model.require("match")
    tally = Tally()
    photos = list(common.decoded(iter_images(sources), tally))
    images = [image for _, image in photos]
    captions = {name: model.caption(images, language=name) for name in LANGUAGES if name in model.languages}
    with Gallery.open(options.output / "gallery", model, create=True) as gallery:
        index_samples(gallery, iter_images(sources))
        searches = [_search(gallery, query) for query in options.search]
        searches.append(_search_image(gallery, photos[0]))
    match = _match(model, photos, next(iter(captions.values())))
    sheet = contact_sheet(
        [
            Photo(
                Path(sample.source).name,
                make_thumbnail(image),
                {name: [Caption(found[row].text, found[row].score)] for name, found in captions.items()},
            )
            for row, (sample, image) in enumerate(photos)
        ],
        searches,
        [match],
        "mm demo",
    )
    path = (options.output / "contact-sheet.html").absolute()
    write_page(path, sheet)
    if options.json:
        common.print_json(_result(photos, captions, searches, match, path))
    else:
        _print(photos, captions, searches, match)
        status = common.report_rejections(tally)
        print(path)
        return status
    return common.report_rejections(tally)


def _search(gallery: Gallery, query: str) -> Search:
    from mm.search.report import Search

    return Search(gallery.search(query, k=3), text=query)


def _search_image(gallery: Gallery, photo: tuple[Sample, Image]) -> Search:
    from mm.search.items import make_thumbnail
    from mm.search.report import Search

    sample, image = photo
    return Search(gallery.search(k=3, image=image), image=make_thumbnail(image), name=Path(sample.source).name)


def _match(model: Pipeline, photos: Sequence[tuple[Sample, Image]], captions: Sequence[Caption]) -> Match:
    """Asks which of the captions of several photos fits the last of them."""
    from mm.search.items import make_thumbnail
    from mm.search.report import Match

    sample, image = photos[-1]
    texts = list(dict.fromkeys(caption.text for caption in captions[-4:]))
    probabilities = model.match(image, texts)[0]
    choices = sorted(zip(texts, map(float, probabilities), strict=True), key=lambda choice: -choice[1])
    return Match(Path(sample.source).name, make_thumbnail(image), choices)


def _result(
    photos: Sequence[tuple[Sample, Image]],
    captions: dict[str, list[Caption]],
    searches: Sequence[Search],
    match: Match,
    path: Path,
) -> dict[str, Any]:
    return {
        "captions": [
            {"photo": Path(sample.source).name, **{name: found[row].text for name, found in captions.items()}}
            for row, (sample, _) in enumerate(photos)
        ],
        "searches": [
            {
                "query": search.text or search.name,
                "results": [{"photo": Path(hit.uri).name, "score": round(hit.score, 4)} for hit in search.hits],
            }
            for search in searches
        ],
        "match": {"photo": match.name, "captions": {text: round(p, 4) for text, p in match.choices}},
        "contact sheet": str(path),
    }


def _print(
    photos: Sequence[tuple[Sample, Image]],
    captions: dict[str, list[Caption]],
    searches: Sequence[Search],
    match: Match,
) -> None:
    rows = [
        (Path(sample.source).name, *(found[row].text for found in captions.values()))
        for row, (sample, _) in enumerate(photos)
    ]
    common.print_table("Captions", ("photo", *(LANGUAGES[name] for name in captions)), rows)
    for search in searches:
        title = f'Search: "{search.text}"' if search.text else f"Search by image: {search.name}"
        hits = [(Path(hit.uri).name, f"{hit.score:.3f}") for hit in search.hits]
        common.print_table(title, ("photo", "score"), hits)
    common.print_table(
        f"Which caption fits {match.name}?", ("caption", "probability"), [(t, f"{p:.0%}") for t, p in match.choices]
    )
