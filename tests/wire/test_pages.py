"""Finished pages: which one a request gets by its languages, and what is put into it."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.pages import AUTO, LINK, NONE, SLOTS, Page, Pages, Translations, key, preferred, slot

VALUES = dict.fromkeys(SLOTS, "x")
TAG = st.sampled_from(("en", "DE-ch", "zh-Hant-TW", "x", "abcdefgh-12345678"))
WEIGHT = st.integers(0, 1000)


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (b"", []),
        (b"de", [b"de"]),
        (b"de-CH, DE;q=0.9,en; q=0.8 ,*;q=0.1", [b"de-ch", b"de", b"en"]),
        (b"en;q=0.5, de;q=0.50, fr;Q=1.000", [b"fr", b"en", b"de"]),
        (b"de;q=0, fr;q=0.000, en;q=0.001", [b"en"]),
        (b"de;q=2, en;q=1.1, fr;q=0.1234, it;q=, es;level=1, d\xc3\xa9, x_y, ,;q=1, pt", [b"pt"]),
        (b"toolongtag, de-toolongtag, 1de, de-, -de, en\t;\tq=1", [b"en"]),
    ],
)
def test_languages_are_in_the_order_of_their_weights(field: bytes, found: list[bytes]) -> None:
    assert preferred(field) == found


@given(st.lists(st.tuples(TAG, WEIGHT), max_size=8), st.sampled_from(("", " ", "\t ")))
def test_every_range_that_is_not_refused_is_read_and_equals_stay_in_order(
    ranges: list[tuple[str, int]], space: str
) -> None:
    field = f"{space},{space}".join(
        f"{tag}{space};{space}q={weight / 1000:.3f}" for tag, weight in ranges
    ).encode()
    wanted = sorted((each for each in ranges if each[1]), key=lambda each: -each[1])
    assert preferred(field) == [tag.lower().encode() for tag, _ in wanted]


@given(st.binary(max_size=2000))
def test_no_field_is_an_error(field: bytes) -> None:
    found = preferred(field)
    assert all(each == each.lower() and b" " not in each for each in found)
    assert len(found) <= 512
    Translations([("en", b"")]).find(field)


def test_of_a_field_without_an_end_only_the_beginning_is_read() -> None:
    assert preferred(b"de," * 340 + b" fr, it") == [b"de"] * 340 + [b"fr"][:1]


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        (b"", b"en"),
        (b"*", b"en"),
        (b"sv", b"en"),
        (b"de", b"de"),
        (b"DE-ch-1996, fr", b"de"),
        (b"zh-Hant-TW", b"zh-Hant"),
        (b"zh-Hant-x-private", b"zh-Hant"),
        (b"zh", b"en"),  # lookup makes a range shorter, never longer
        (b"sv, fr;q=0.5, de;q=0.7", b"de"),
        (b"en, de;q=0.9", b"en"),
        (b"de;q=0, en;q=0.1", b"en"),
        (b"*, fr;q=0.5", b"fr"),
    ],
)
def test_language_is_found_by_lookup(accepted: bytes, language: bytes) -> None:
    pages = Translations([(tag, b"") for tag in ("en", "de", "fr", "zh-Hant")])
    assert pages.several
    assert pages.find(accepted).language == language


def test_usual_page_goes_before_another_of_its_language() -> None:
    pages = Translations([("de", b"usual"), ("DE", b"other")])
    assert not pages.several
    assert pages.find(b"de").fill({}) == pages.find(b"fr").fill({}) == b"usual"


@given(st.lists(st.tuples(st.text(st.characters(codec="ascii")), st.sampled_from(SLOTS))), st.text())
def test_slots_are_filled_and_everything_else_stays(parts: list[tuple[str, str]], value: str) -> None:
    text = "".join(literal + slot(name) for literal, name in parts)
    value = value.encode("utf-8", "ignore").decode()
    page = Page("en", text.encode())
    filled = "".join(literal + html.escape(value) for literal, _ in parts)
    for _ in range(2):  # the page itself is as it was
        assert page.fill(dict.fromkeys(SLOTS, value)) == filled.encode()


def test_what_is_put_in_is_no_markup_and_no_slot() -> None:
    page = Page("en", f'<a href="{slot("start")}">{slot("detail")}</a>'.encode())
    filled = page.fill({**VALUES, "start": '"><script>', "detail": slot("start")})
    assert filled == f'<a href="&quot;&gt;&lt;script&gt;">{slot("start")}</a>'.encode()


def test_page_is_found_by_what_happened() -> None:
    keys = [
        key(situation, launch, retry)
        for situation in ("down", "error")
        for launch in (False, True)
        for retry in (NONE, LINK, AUTO)
    ]
    pages = Pages(b"default-src 'none'", {each: [("en", each.encode())] for each in keys})
    assert len(set(keys)) == 12
    assert pages.policy == b"default-src 'none'"
    assert pages.find("down", True, AUTO).find(b"").fill({}) == b"down.launch.auto"
    assert pages.find("error", False, NONE).find(b"").fill({}) == b"error.page.none"
