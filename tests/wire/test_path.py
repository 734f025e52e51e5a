"""Paths as others read them: what is compared, and all that may be meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.path import canonical, normal, readings


@pytest.mark.parametrize(
    "path", [b"/", b"*", b"", b"/build/gh/user/repo/feature.x", b"/a.b/c..d/~e", b"/a:b@c"]
)
def test_path_that_everybody_reads_alike_is_compared_as_it_is(path: bytes) -> None:
    assert readings(path) == (path,)
    assert normal(path) == canonical(path) == path


@pytest.mark.parametrize(
    ("path", "compared"),
    [
        (b"/%62uild/gh", b"/build/gh"),
        (b"/%6D%65trics", b"/metrics"),
        (b"/%6d%65trics", b"/metrics"),
        (b"//metrics", b"/metrics"),
        (b"/build//gh///a", b"/build/gh/a"),
        (b"/./metrics", b"/metrics"),
        (b"/x/../metrics", b"/metrics"),
        (b"/../../metrics", b"/metrics"),
        (b"/x/%2e%2E/metrics", b"/metrics"),
        (b"/x%2F..%2fmetrics", b"/metrics"),
        (b"/x//../metrics", b"/metrics"),
        (b"/%2fmetrics", b"/metrics"),
        (b"/x\\..\\metrics", b"/metrics"),
        (b"/x%5c..%5Cmetrics", b"/metrics"),
        (b"/a/.", b"/a/"),
        (b"/a/b/..", b"/a/"),
        (b"/..", b"/"),
        (b"/.", b"/"),
        (b"/a/./", b"/a/"),
        (b"/%256detrics", b"/%6detrics"),
        (b"/%zz%", b"/%zz%"),
        (b"/%", b"/%"),
        (b"/a;b/c", b"/a;b/c"),
        (b"/%00", b"/\0"),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"/a/...", b"/a/..."),
    ],
)
def test_path_is_compared_decoded_once_merged_and_resolved(path: bytes, compared: bytes) -> None:
    assert readings(path)[0] == normal(path) == compared


@pytest.mark.parametrize(
    "path",
    [
        b"/%256detrics",
        b"/%256Detrics",
        b"/metrics%00.html",
        b"/%6detrics%3fx",
        b"/metrics%23x",
        b"/metrics;a=b",
        b"/metrics/.",
        b"/metrics/x/..",
        b"/x%252f..%252fmetrics",
    ],
)
def test_path_that_somebody_may_read_as_another_has_that_among_its_readings(path: bytes) -> None:
    assert b"/metrics" in readings(path)
    assert readings(path)[0] != b"/metrics"


@pytest.mark.parametrize(
    ("path", "reading"),
    [
        (b"/%6detrics/..%2fx", b"/metrics/..%2fx"),
        (b"/%6detrics/../x", b"/metrics/../x"),
        (b"/build/gh/a/../../..", b"/build/gh/a/../../.."),
        (b"//a", b"//a"),
    ],
)
def test_path_that_somebody_resolves_less_of_has_that_among_its_readings(path: bytes, reading: bytes) -> None:
    assert reading in readings(path)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (b"/v2/gh/a/%7Eb%2D", b"/v2/gh/a/~b-"),
        (b"/v2/gl/a%2Fb/%4dain", b"/v2/gl/a%2Fb/Main"),
        (b"/v2/git/https%3a%2F%2Fgit.test", b"/v2/git/https%3a%2F%2Fgit.test"),
        (b"/v2//gh/x/%2e./a", b"/v2/gh/a"),
        (b"/a%zz%", b"/a%zz%"),
    ],
)
def test_canonical_path_keeps_what_its_escapes_tell_apart(path: bytes, key: bytes) -> None:
    assert canonical(path) == key


PIECES = st.sampled_from(
    [
        b"/",
        b"//",
        b".",
        b"..",
        b"%2e",
        b"%2F",
        b"%252f",
        b"%25",
        b"%",
        b"%z",
        b"\\",
        b"%5c",
        b";",
        b"a",
        b"%61",
        b"%00",
    ]
)


@given(st.lists(PIECES, max_size=12).map(b"".join))
def test_any_path_has_few_readings_and_the_first_has_no_more_to_resolve(rest: bytes) -> None:
    found = readings(b"/" + rest)
    assert len(found) <= 14
    assert b"/" + rest in found
    assert len(set(found)) == len(found)
    assert b"//" not in found[0]
    assert not {b".", b".."} & set(found[0].split(b"/"))
    assert canonical(canonical(b"/" + rest)) == canonical(b"/" + rest)
