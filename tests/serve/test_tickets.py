"""Session tickets: resumed by every process that has the secret, and by no other."""

from __future__ import annotations

import _ssl
import ctypes
import ssl
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from fedproxy.config.model import Certificate
from fedproxy.serve.tls import Certificates
from tests.rig.visitor import listening, pair, section, trusting, visit

SECRET, OTHER = bytes(range(32)), bytes(32)
BOTH = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def first(authority: trustme.CA, tmp_path: Path) -> Certificate:
    return pair(tmp_path / "first", authority.issue_cert("first.test"))


@pytest.fixture
def second(authority: trustme.CA, tmp_path: Path) -> Certificate:
    return pair(tmp_path / "second", authority.issue_cert("second.test"))


def with_secret(secret: bytes, *pairs: Certificate) -> Certificates:
    certificates = Certificates(section(*pairs), "listen.0.tls")
    assert certificates.set_ticket_key(secret) is None
    return certificates


@BOTH
@pytest.mark.parametrize("name", ["first.test", "second.test"])
async def test_session_goes_on_in_another_process_with_the_secret_and_in_no_other(
    authority: trustme.CA, first: Certificate, second: Certificate, version: ssl.TLSVersion, name: str
) -> None:
    context = trusting(authority, version)
    async with (
        listening(with_secret(SECRET, first, second)) as here,
        listening(with_secret(SECRET, first, second)) as there,
        listening(with_secret(OTHER, first, second)) as elsewhere,
    ):
        begun = await visit(here, context, name)
        assert not begun.resumed
        for port, resumed in ((here, True), (there, True), (elsewhere, False)):
            again = await visit(port, context, name, begun.session)
            assert (again.resumed, again.names) == (resumed, [name])


@BOTH
async def test_session_outlives_a_renewed_certificate_but_not_a_new_secret(
    authority: trustme.CA, first: Certificate, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = trusting(authority, version)
    certificates = with_secret(SECRET, first)
    async with listening(certificates) as port:
        begun = await visit(port, context, "first.test")
        pair(tmp_path / "first", authority.issue_cert("first.test"))
        assert certificates.refresh().renewed
        assert (await visit(port, context, "first.test", begun.session)).resumed
        assert certificates.set_ticket_key(OTHER) is None
        again = await visit(port, context, "first.test", begun.session)
        assert not again.resumed
        assert (await visit(port, context, "first.test", again.session)).resumed


def test_secret_that_is_short_is_refused(first: Certificate) -> None:
    with pytest.raises(ValueError, match="a secret of 31 bytes, expected at least 32"):
        Certificates(section(first), "listen.0.tls").set_ticket_key(bytes(31))


class Foreign:
    """An OpenSSL that answers as it is told: `size` of the keys, and what setting and reading them says."""

    def __init__(self, options: int, size: int = 80, put: int = 1) -> None:
        self.size, self.put = size, put
        self.SSL_CTX_get_options: Any = lambda pointer: options
        self.SSL_CTX_ctrl: Any = lambda pointer, command, length, data: (
            self.put if command == 59 else 1 if length else self.size
        )


OPTIONS = int(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).options)


@pytest.mark.parametrize(
    ("size", "put", "why"),
    [
        (0, 1, "this OpenSSL takes no ticket keys"),
        (80, 0, "this OpenSSL takes no ticket keys"),
        (80, 1, "this OpenSSL does not keep ticket keys as they were set"),
    ],
)
async def test_openssl_that_takes_no_keys_leaves_tickets_to_each_process(
    authority: trustme.CA, first: Certificate, monkeypatch: pytest.MonkeyPatch, size: int, put: int, why: str
) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    foreign = Foreign(int(certificates.context.options), size, put)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: foreign)
    assert certificates.set_ticket_key(SECRET) == why
    async with listening(certificates) as port:
        context = trusting(authority)
        begun = await visit(port, context)
        assert (await visit(port, context, None, begun.session)).resumed


def test_python_that_keeps_its_contexts_elsewhere_is_left_alone(
    first: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Foreign(0))
    assert certificates.set_ticket_key(SECRET) == "this Python keeps its OpenSSL contexts in another place"


def test_openssl_that_cannot_be_called_is_left_alone(
    first: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    monkeypatch.delattr(_ssl, "__file__")
    assert certificates.set_ticket_key(SECRET) == "this Python's OpenSSL cannot be called"


def test_other_python_is_left_alone(first: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    monkeypatch.setattr(
        sys, "implementation", SimpleNamespace(name="pypy", cache_tag=sys.implementation.cache_tag)
    )
    assert certificates.set_ticket_key(SECRET) == "pypy does not show its OpenSSL contexts"
