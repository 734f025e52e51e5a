from __future__ import annotations

import re
from http.cookies import CookieError, SimpleCookie

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.cookie import read_stamp, set_cookie, stamp, take


def test_take_gives_all_values_and_leaves_the_others_in_order() -> None:
    assert take(b'a=1;  m="x"; b=2;m=y; m=x', b"m") == (b"x;y", b"a=1; b=2")
    assert take(b"m=x", b"m") == (b"x", b"")
    assert take(b'm="x"; a=1;b=2', b"m") == (b"x", b"a=1;b=2")
    assert take(b"a=1", b"m") == (None, b"a=1")
    assert take(b"a=1; m=; b=2", b"m") == (b"", b"a=1; b=2")
    assert take(b"m=; m=x", b"m") == (b"x", b"")


@pytest.mark.parametrize(
    ("sent", "value", "left"),
    [
        (b"m =x", b"x", b""),
        (b"m\t =x; a=1", b"x", b"a=1"),
        (b"a=1; m = x ", b"x", b"a=1"),
        (b"\xa0m=x", None, b""),
        (b"\xc2\xa0m=x; a=1", None, b"a=1"),
        (b"a=1; \xe2\x80\x83m\xe3\x80\x80=x", None, b"a=1"),
        (b"\xef\xbb\xbfm=x", None, b""),
        (b"\x85m\xa0 =x", None, b""),
        (b'"m"=x', None, b""),
        (b"m", None, b""),
        (b"a=1; m ;b=2", None, b"a=1; b=2"),
        (b"a=1 m=x", None, b"a=1"),
        (b"a=1\tm =x b=2; c=3", None, b"a=1; c=3"),
        (b"a=1, m=x", None, b"a=1"),
        (b'a="1" m=x', None, b'a="1"'),
        (b"m m=x; a=1", None, b"a=1"),
        (b"m, m =x", None, b""),
        (b"a=[m=x", None, b"a="),
        (b"m=x m=y; a=1", b"x m=y", b"a=1"),
        # Others that only look like it.
        (b"xm=1; m2=2; a=m; b=m=1; c=my m", None, b"xm=1; m2=2; a=m; b=m=1; c=my m"),
        (b"M=1; m.=2; \xe9m2=3", None, b"M=1; m.=2; \xe9m2=3"),
        (b"a=m;;b=2", None, b"a=m; ; b=2"),
    ],
)
def test_no_spelling_of_it_is_left_and_others_are(sent: bytes, value: bytes | None, left: bytes) -> None:
    assert take(sent, b"m") == (value, left)


def _tornado(text: str) -> set[str]:
    """tornado.httputil.parse_cookie."""
    return {part.partition("=")[0].strip() for part in text.split(";") if "=" in part}


def _standard(text: str) -> set[str]:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(text)
    except CookieError:
        return set()
    return set(cookies)


def _webob(text: str) -> set[str]:
    """webob.cookies.parse_cookie."""
    legal = r"[\w\d" + re.escape("~!@#$%^&*()_+=-`.?|:/(){}<>'") + "]"
    value = r'"(?:\\"|.)*?"|' + f"(?:{legal}|" + r"\\(?:[0-3][0-7][0-7]|.))*"
    return set(re.findall(rf"({legal}+?)\s*=\s*(?:{value})", text, re.ASCII))


def _go(text: str) -> set[str]:
    """net/http.readCookies."""
    return {part.strip(" \t").partition("=")[0].strip(" \t") for part in text.split(";")}


def _node(text: str) -> set[str]:
    """The package `cookie`, which trims as ECMAScript does."""
    space = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
        map(chr, range(0x2000, 0x200B))
    )
    return {part.partition("=")[0].strip(space) for part in text.split(";") if "=" in part}


READERS = [_tornado, _standard, _webob, _go, _node]
PIECES = st.sampled_from(
    [b"m", b"=", b";", b" ", b"; ", b",", b'"', b"a", b"x1", b"\t", b"\xa0", b"\x85", b"\\", b"[", b"$"]
    + [text.encode() for text in ("\xa0", "\x85", "\u2003", "\u2028", "\u3000", "\ufeff", "\u1680")]
)


@given(st.lists(PIECES, max_size=14).map(b"".join))
def test_no_reader_finds_it_in_what_is_left(sent: bytes) -> None:
    _, left = take(sent, b"m")
    for text in (left.decode("latin-1"), left.decode("utf-8", "surrogateescape")):
        for reader in READERS:
            assert "m" not in reader(text), (reader.__name__, left)


@given(st.binary(max_size=60).filter(lambda data: b"m" not in data))
def test_field_without_the_name_is_left_as_it_is(sent: bytes) -> None:
    assert take(sent, b"m") == (None, sent)


def test_set_cookie_is_the_whole_value() -> None:
    assert (
        set_cookie("fedproxy_member", b"gesis", 14400, secure=False)
        == b"fedproxy_member=gesis; Path=/; Max-Age=14400; HttpOnly; SameSite=Lax"
    )
    assert set_cookie("m", b"x", 1, secure=True).endswith(b"SameSite=Lax; Secure")


# The time at which it was set


@pytest.mark.parametrize(
    ("value", "time", "home"), [(b"a", 0, b""), (b"a~b:c", 1795934374, b"b"), (b"0f" * 16, 1, b"1f" * 16)]
)
def test_stamp_is_read_as_it_was_written(value: bytes, time: int, home: bytes) -> None:
    assert read_stamp(stamp(value, time, home)) == (value, time, home)


@pytest.mark.parametrize(
    ("stamped", "time", "home"),
    [
        (b"a", None, b""),
        (b"a!", None, b""),
        (b"a!x!b", None, b"b"),
        (b"a!-1", None, b""),
        (b"a!1!b!c", 1, b"b!c"),
    ],
)
def test_value_without_a_time_still_names_its_member(stamped: bytes, time: int | None, home: bytes) -> None:
    assert read_stamp(stamped) == (b"a", time, home)


def test_time_is_no_number_of_any_length() -> None:
    assert read_stamp(b"a!" + b"9" * 5000) == (b"a", None, b"")
