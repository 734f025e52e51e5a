"""Durations, sizes and addresses: what is read, what is refused, and the way back."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from fedproxy.config import address as addr
from fedproxy.config import units
from fedproxy.config.address import Address, member_address


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250ms", 0.25),
        ("15s", 15.0),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("4h", 14400.0),
        ("1d", 86400.0),
        ("4 h", 14400.0),
        (15, 15.0),
        (0.5, 0.5),
        ("15", 15.0),
        ("0.5", 0.5),
    ],
)
def test_duration_is_seconds(written: object, seconds: float) -> None:
    assert units.duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "s", "4 hours", "4H", "1h30m", "1e3", "１５s", True, None, [], {}, float("nan")]
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    assert units.duration(written) is None


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("64KiB", 65536),
        ("2MiB", 2 << 20),
        ("1GiB", 1 << 30),
        ("1TiB", 1 << 40),
        ("10B", 10),
        ("1.5KiB", 1536),
        (1024, 1024),
        ("1024", 1024),
        (1024.0, 1024),
    ],
)
def test_size_is_bytes(written: object, size: int) -> None:
    assert units.size(written) == size


@pytest.mark.parametrize(
    "written", ["", "64KB", "64kib", "0.3KiB", 1.5, True, None, [], 10**30, float("inf")]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    assert units.size(written) is None


@settings(deadline=None)
@given(st.one_of(st.integers(0, 10**8), st.floats(0, 10**8), st.integers(0, 10**7).map(lambda n: n / 1000)))
def test_formatted_duration_reads_back_as_itself(seconds: float) -> None:
    assert units.duration(units.format_duration(seconds)) == seconds


@settings(deadline=None)
@given(st.one_of(st.integers(0, 1 << 49), st.integers(0, 1 << 20).map(lambda n: n << 10)))
def test_formatted_size_reads_back_as_itself(size: int) -> None:
    assert units.size(units.format_size(size)) == size


def test_values_are_formatted_as_an_operator_writes_them() -> None:
    assert [units.format_duration(value) for value in (14400.0, 75.0, 0.25, 600.0, 0.0)] == [
        "4h",
        "75s",
        "250ms",
        "600s",
        "0s",
    ]
    assert [units.format_size(value) for value in (65536, 512 << 20, 1000, 0)] == ["64KiB", "512MiB", 1000, 0]


@pytest.mark.parametrize(
    ("written", "flag"), [(True, True), (False, False), ("Yes", True), ("off", False), ("1", None), (1, None)]
)
def test_flag_is_a_truth_value_or_its_word(written: object, flag: bool | None) -> None:
    assert units.flag(written) is flag


def test_values_that_are_parsed_already_stay() -> None:
    expression = re.compile("x")
    assert units.pattern(expression) is expression
    assert units.network(ip_network("10.0.0.0/8")) == ip_network("10.0.0.0/8")
    assert addr.address(Address("a", 1)) == Address("a", 1)
    assert units.SECRET(SecretStr("x")) == SecretStr("x")
    assert units.FILE(Path(__file__)) == Path(__file__)


def test_expression_that_python_warns_about_is_taken() -> None:
    assert units.pattern("[[a]") is not None


@pytest.mark.parametrize("written", ["(", "", "a{99999999999999999999}", "(" * 5000 + ")" * 5000, 5])
def test_what_is_no_expression_is_refused(written: object) -> None:
    assert units.pattern(written) is None


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("0.0.0.0:8080", Address("0.0.0.0", 8080)),
        ("localhost:0", Address("localhost", 0)),
        ("[::]:8080", Address("::", 8080)),
        ("[::1]:80", Address("::1", 80)),
        ("unix:/run/fedproxy.sock", Address(path="/run/fedproxy.sock")),
    ],
)
def test_address_reads_and_writes_back(written: str, address: Address) -> None:
    assert addr.address(written) == address
    assert str(address) == written


@pytest.mark.parametrize(
    "written",
    [
        ":8080",
        "8080",
        8080,
        "::1:8080",
        "[::1:80",
        "[1.2.3.4]:80",
        "a:65536",
        "a:-1",
        "256.0.0.1:80",
        "a b:80",
        "-a:80",
        "unix:",
        "unix:relative",
        "unix:/" + "x" * 108,
        "unix:/a\nb",
        None,
    ],
)
def test_what_is_no_address_is_refused(written: object) -> None:
    assert addr.address(written) is None


@pytest.mark.parametrize(
    ("url", "tls", "host", "port", "authority", "path"),
    [
        ("https://2i2c.mybinder.org", True, "2i2c.mybinder.org", 443, "2i2c.mybinder.org", ""),
        ("http://localhost:8001", False, "localhost", 8001, "localhost:8001", ""),
        ("http://[::1]:80", False, "::1", 80, "[::1]", ""),
        ("https://[::1]:8443", True, "::1", 8443, "[::1]:8443", ""),
        ("unix:/run/hub.sock", False, "localhost", 80, "localhost", "/run/hub.sock"),
    ],
)
def test_member_address_is_what_the_url_says(
    url: str, tls: bool, host: str, port: int, authority: str, path: str
) -> None:
    found = member_address(url)
    assert (found.tls, found.host, found.port, found.authority, found.path) == (
        tls,
        host,
        port,
        authority,
        path,
    )


def test_member_address_of_no_url_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a member's URL"):
        member_address("gesis")


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("https://x.org/", "https://x.org"),
        ("HTTPS://X.org:443", "https://x.org"),
        ("http://x:8000", "http://x:8000"),
        ("http://[::1]:80/", "http://[::1]"),
        ("unix:/a.sock", "unix:/a.sock"),
    ],
)
def test_member_url_is_brought_to_one_form(written: str, url: str) -> None:
    assert addr.member_url(written) == url


@pytest.mark.parametrize(
    "written",
    [
        "ftp://x",
        "https://x/path",
        "https://x?q",
        "https://u:p@x",
        "https://",
        "x.org",
        "https://x:0",
        "https://x:99999",
        "https://x y",
        "https://ü.org",
        "https://x\n",
        "unix:x",
        5,
    ],
)
def test_what_is_no_member_url_is_refused(written: object) -> None:
    assert addr.member_url(written) is None


@pytest.mark.parametrize("written", ["https://x.org/a?b=c#d", "http://x", "https://x.org:8443/%20"])
def test_link_is_taken(written: str) -> None:
    assert addr.link(written) == written


@pytest.mark.parametrize(
    "written", ["javascript:alert(1)", 'https://x/"onload', "https://x/<b>", "//x", "https://u@x/", 5]
)
def test_link_that_could_harm_a_page_is_refused(written: object) -> None:
    assert addr.link(written) is None


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("Gesis.MyBinder.org", "gesis.mybinder.org"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("x:80", None),
        ("a..b", None),
        ("1.2.3", None),
        ("", None),
        (5, None),
        ("a" * 300, None),
    ],
)
def test_hostname_is_lower_case_and_without_port(written: object, host: str | None) -> None:
    assert addr.hostname(written) == host


@pytest.mark.parametrize(
    ("written", "host"),
    [("Pin.Example.org.", "pin.example.org"), ("[2001:DB8::1]", "2001:db8::1"), (".", None)],
)
def test_host_of_requests_is_without_the_last_dot(written: str, host: str | None) -> None:
    assert addr.HOSTNAME.parse(written) == host
