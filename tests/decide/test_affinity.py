from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.decide.affinity import KEYS, cookie_value, path_key, repository_key


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (b"gh/user/repo/HEAD", b"gh/user/repo"),
        (b"gh/User/Repo/feature/x", b"gh/user/repo"),
        (b"gh/user/repo/feature%2Fx", b"gh/user/repo"),
        (b"gh/user%2Frepo/HEAD", b"gh/user/repo"),
        (b"gh/user/repo/", b"gh/user/repo"),
        (b"gh/user/repo", b"gh/user/repo"),
        (b"gh//user/repo/HEAD", b"gh/user/repo"),
        (b"gl/group%2Fsub%2FRepo/main", b"gl/group%2fsub%2frepo"),
        (b"gl/group%2frepo/feature/x", b"gl/group%2frepo"),
        (b"git/https%3A%2F%2Fexample.org%2Frepo.git/v1", b"git/https%3a%2f%2fexample.org%2frepo.git"),
        (b"gist/user/0a1b2c/HEAD", b"gist/user/0a1b2c"),
        (b"gist/user/0a1b2c", b"gist/user/0a1b2c"),
        (b"zenodo/10.5281/zenodo.123", b"zenodo/10.5281/zenodo.123"),
        (b"zenodo/10.5281%2Fzenodo.123/", b"zenodo/10.5281/zenodo.123"),
        (b"figshare/10.6084/m9.figshare.9782777.v1", b"figshare/10.6084/m9.figshare.9782777.v1"),
        (b"hydroshare/10.4211/hs.b8f6eae9", b"hydroshare/10.4211/hs.b8f6eae9"),
        (b"dataverse/10.7910/DVN/TJCLKP", b"dataverse/10.7910/dvn/tjclkp"),
        (b"ckan/https%3A%2F%2Fexample.org%2Fdata", b"ckan/https%3a//example.org/data"),
        (b"other/one/two/ref", b"other/one/two"),
        (b"other/one", b"other/one"),
    ],
)
def test_page_and_build_of_a_repository_have_one_key_without_the_ref(spec: bytes, key: bytes) -> None:
    expected = b"/build/" + key
    assert repository_key(b"/build/" + spec) == expected
    assert repository_key(b"/v2/" + spec) == expected


@pytest.mark.parametrize(
    "path",
    [b"/", b"", b"/build", b"/build/", b"/build/gh", b"/v2/gh/", b"/build//", b"/api/repoproviders", b"*"],
)
def test_path_of_no_repository_has_no_key(path: bytes) -> None:
    assert repository_key(path) is None


@given(st.binary(max_size=60))
def test_any_path_gives_a_key_or_none(path: bytes) -> None:
    for prefix in (b"", b"/build/", b"/v2/gl/"):
        key = repository_key(prefix + path)
        assert key is None or key == key.lower()


def test_key_of_a_key_is_itself() -> None:
    key = repository_key(b"/v2/gh/User/Repo/feature/x")
    assert key is not None
    assert repository_key(key) == key


def test_path_key_is_the_path_in_lower_case() -> None:
    assert path_key(b"/A/b") == b"/a/b"
    assert {"repository": repository_key, "path": path_key} == KEYS


def test_cookie_is_the_name_without_a_secret() -> None:
    assert cookie_value("hetzner-2i2c", None) == b"hetzner-2i2c"


def test_cookie_value_has_cookie_octets_only() -> None:
    assert cookie_value('a b;"é,\\%', None) == b"a%20b%3B%22%C3%A9%2C%5C%25"


def test_cookie_with_a_secret_does_not_tell_the_name() -> None:
    value = cookie_value("gesis", "secret")
    assert len(value) == 32
    assert value != cookie_value("gesis", "other") != cookie_value("ovh", "other")
    assert value == cookie_value("gesis", "secret")
