from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm.data.samples import (
    Rejection,
    Sample,
    Tally,
    caption_document,
    caption_language,
    parse_captions,
    printable,
    rejection_line,
)
from mm.errors import DataError


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def test_json_wins_over_text() -> None:
    document = as_json({"captions": ["one", "two"], "captions_zh": ["三"], "width": 7})
    captions, metadata = parse_captions(b"other", document, "k")
    assert captions == {"en": ["one", "two"], "zh": ["三"]}
    assert metadata == {"width": 7}


def test_numbers_that_json_can_not_hold_are_null() -> None:
    document = b'{"captions": ["a dog"], "a": NaN, "b": [-Infinity, 1e999], "c": 1.5, "d": 3}'
    assert parse_captions(None, document, "k") == (
        {"en": ["a dog"]},
        {"a": None, "b": [None, None], "c": 1.5, "d": 3},
    )


def test_text_is_used_where_json_has_only_metadata() -> None:
    assert parse_captions(b"\xef\xbb\xbf a dog \n", as_json({"width": 7}), "k") == ({"en": ["a dog"]}, {"width": 7})


def test_empty_captions_are_dropped() -> None:
    document = as_json({"captions": ["", " \n", "x "], "captions_zh": ["", ""]})
    assert parse_captions(None, document, "k") == ({"en": ["x"]}, {})
    assert parse_captions(b" \n", None, "k") == ({}, {})
    assert parse_captions(None, None, "k") == ({}, {})


def test_only_language_codes_are_captions() -> None:
    document = as_json({"captions_pt-BR": ["sim"], "captions_model_name": "blip", "captions_": 1})
    assert parse_captions(None, document, "k") == ({"pt-BR": ["sim"]}, {"captions_model_name": "blip", "captions_": 1})


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("captions", "en"),
        ("captions_en", "en"),
        ("captions_pt-BR", "pt-BR"),
        ("caption", None),
        ("captions_", None),
        ("captions_model_name", None),
    ],
)
def test_fields_that_hold_captions(name: str, language: str | None) -> None:
    assert caption_language(name) == language


@pytest.mark.parametrize(
    ("text", "document", "reason"),
    [
        (b"caf\xe9", None, "caption is not UTF-8"),
        (None, b'{"captions": ["caf\xe9"]}', "caption is not UTF-8"),
        (None, b'{"captions": ["\\ud800"]}', "caption is not UTF-8"),
        (None, b"{", "caption file is not JSON"),
        (None, b"", "caption file is not JSON"),
        (None, b"[" * 100_000, "caption file is not JSON"),
        (None, b"[1]", "caption file is not a JSON object"),
        (None, as_json({"captions": "one"}), "captions are not a list of strings"),
        (None, as_json({"captions": [1]}), "captions are not a list of strings"),
        (None, as_json({"captions_zh": {"a": 1}}), "captions are not a list of strings"),
        (b"good", as_json({"captions": None}), "captions are not a list of strings"),
    ],
)
def test_reasons(text: bytes | None, document: bytes | None, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_captions(text, document, "x.tar/k")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("x.tar/k.") and "\n" not in str(caught.value)


CAPTIONS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@given(
    st.dictionaries(st.sampled_from(["en", "zh", "de", "pt-BR"]), st.lists(CAPTIONS, min_size=1)),
    st.dictionaries(
        st.sampled_from(["a", "b", "width"]),
        st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    ),
)
def test_captions_read_back_as_written(captions: dict[str, list[str]], metadata: dict[str, object]) -> None:
    sample = Sample("k", "k", b"", captions, metadata)
    assert parse_captions(None, caption_document(sample), "k") == (captions, metadata)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (Sample("k", "s", b"", {"English": ["x"]}), "unknown caption language"),
        (Sample("k", "s", b"", {"en": ["\ud800"]}), "caption is not UTF-8"),
        (Sample("k", "s", b"", {}, {"a": {1, 2}}), "metadata is not JSON"),
        (Sample("k", "s", b"", {"en": ["x"]}, {"captions": "y"}), "metadata named like captions"),
        (Sample("k", "s", b"", {"zh": ["x"]}, {"captions_zh": ["y"]}), "metadata named like captions"),
        (Sample("k", "s", b"", {}, {"captions_en": ["y"]}), "metadata named like captions"),
    ],
)
def test_captions_that_cannot_be_written(sample: Sample, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        caption_document(sample)
    assert caught.value.reason == reason


def test_a_number_that_json_can_not_hold_is_not_written() -> None:
    with pytest.raises(DataError) as caught:
        caption_document(Sample("a", "a.png", b"", metadata={"area": float("nan")}))
    assert caught.value.reason == "metadata is not JSON" and "a.png" in str(caught.value)


@pytest.mark.parametrize("name", ["图片/b.jpg", "b\n.jpg", "b\udcff.jpg"])
def test_a_rejection_is_a_line_of_json(name: str) -> None:
    rejection = Rejection("x.tar", name, "truncated", f"{name}: truncated", offset=512)
    line = rejection_line(rejection)
    assert line.endswith("\n") and line.count("\n") == 1
    assert Rejection(**json.loads(line.encode("utf-8", "backslashreplace"))) == rejection


def test_tally_accounts_for_everything() -> None:
    tally = Tally()
    items = [Sample("a", "a", b""), Rejection("b", "b", "damaged"), Sample("c", "c", b""), Sample("d", "d", b"")]
    for sample in tally.accept(items):
        if sample.key == "c":
            tally.reject(Rejection("c", "c", "truncated"))
    tally.reject(Rejection("x.tar", "", "shard cut short", samples=5))
    tally.reject(Rejection("e", "e", "damaged"))
    assert (tally.used, tally.rejected, tally.seen) == (2, 8, 10)
    assert tally.by_reason() == {"damaged": 2, "truncated": 1, "shard cut short": 1}
    assert not tally.ok and Tally(used=3).ok


def test_printable_names_stay_on_one_line() -> None:
    assert printable("图片/ä b.jpg") == "图片/ä b.jpg"
    assert printable("a\nb\x1b[31m\udcff") == "a\\nb\\x1b[31m\\udcff"


def test_captions_that_lost_characters_are_not_taken() -> None:
    with pytest.raises(DataError, match=r"U\+FFFD") as caught:
        parse_captions(b"a caf\xef\xbf\xbd", None, "x")
    assert caught.value.reason == "caption with lost characters"
