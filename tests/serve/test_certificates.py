"""Certificates of a listener: which one a visitor is shown, and what happens when the files change."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec

from fedproxy.config.model import Certificate
from fedproxy.errors import ConfigError, Fault
from fedproxy.serve.tls import Certificates, Refreshed, ignore_unreadable_names
from tests.rig import guard
from tests.rig.visitor import END, Visitor, listening, pair, section, trusting, visit

NOTHING = Refreshed([], [])
# uvloop closes a connection without the alert that says why.
REFUSED = "ALERT|EOF|reset"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def visitor(authority: trustme.CA) -> ssl.SSLContext:
    return trusting(authority)


@pytest.fixture
def first(authority: trustme.CA, tmp_path: Path) -> Certificate:
    return pair(tmp_path / "first", authority.issue_cert("first.test", "127.0.0.1", not_after=END))


# Which certificate


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("first.test", "first.test"),
        ("second.test", "second.test"),
        ("SECOND.Test", "second.test"),
        ("hub.wild.test", "*.wild.test"),
        ("exact.wild.test", "exact.wild.test"),
        ("a.hub.wild.test", "first.test"),
        ("wild.test", "first.test"),
        ("unknown.test", "first.test"),
        ("twice.test", "second.test"),
        (None, "first.test"),
    ],
)
async def test_name_chooses_the_certificate(
    authority: trustme.CA,
    visitor: ssl.SSLContext,
    first: Certificate,
    tmp_path: Path,
    asked: str | None,
    shown: str,
) -> None:
    second = pair(tmp_path / "second", authority.issue_cert("second.test", "twice.test"))
    wild = pair(tmp_path / "wild", authority.issue_cert("*.wild.test"))
    exact = pair(tmp_path / "exact", authority.issue_cert("exact.wild.test", "twice.test"))
    certificates = Certificates(section(first, second, wild, exact), "listen.0.tls")
    async with listening(certificates) as port:
        assert (await visit(port, visitor, asked)).names[0] == shown


@pytest.mark.parametrize("http2", [True, False])
async def test_versions_and_protocol_are_the_modern_ones(
    authority: trustme.CA, first: Certificate, tmp_path: Path, http2: bool
) -> None:
    rsa = pair(
        tmp_path / "rsa", authority.issue_cert("rsa.test", key_type=trustme.KeyType.RSA, not_after=END)
    )
    certificates = Certificates(section(first, rsa), "listen.0.tls", http2=http2)
    async with listening(certificates) as port:
        for version, label in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            context = trusting(authority, version)
            context.set_alpn_protocols(["h2", "http/1.1"])
            for name in ("first.test", "rsa.test"):
                seen = await visit(port, context, name)
                assert (seen.version, seen.protocol) == (label, "h2" if http2 else "http/1.1")
                assert "GCM" in seen.cipher or "CHACHA20" in seen.cipher


async def test_visitor_chooses_among_the_ciphers(authority: trustme.CA, first: Certificate) -> None:
    context = trusting(authority, ssl.TLSVersion.TLSv1_2)
    async with listening(Certificates(section(first), "listen.0.tls")) as port:
        for cipher in ("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES256-GCM-SHA384"):
            context.set_ciphers(f"{cipher}:ECDHE-ECDSA-AES128-GCM-SHA256")
            assert (await visit(port, context)).cipher == cipher


@pytest.mark.parametrize(
    ("version", "ciphers", "min_version"),
    [
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", "1.2"),
        (ssl.TLSVersion.TLSv1_2, "ALL:@SECLEVEL=0", "1.3"),
        (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256", "1.2"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256", "1.2"),
    ],
)
async def test_old_version_or_cipher_is_refused(
    authority: trustme.CA, first: Certificate, version: ssl.TLSVersion, ciphers: str, min_version: str
) -> None:
    context = trusting(authority, version)
    context.set_ciphers(ciphers)
    certificates = Certificates(section(first, min_version=min_version), "listen.0.tls")
    async with listening(certificates) as port:
        with pytest.raises(OSError, match=REFUSED):
            await visit(port, context, "first.test")


def test_context_neither_compresses_nor_renegotiates(first: Certificate) -> None:
    options = Certificates(section(first), "listen.0.tls").context.options
    assert options & ssl.OP_NO_COMPRESSION
    assert options & ssl.OP_NO_RENEGOTIATION


async def test_name_that_is_not_ascii_ends_the_handshake_in_silence(
    authority: trustme.CA, first: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    ignore_unreadable_names()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="first.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    async with listening(Certificates(section(first), "listen.0.tls")) as port, guard():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(outgoing.read().replace(b"first.test", b"f\xff\xfest.test"))
        assert (await reader.read(1))[:1] in (b"", b"\x15")
        writer.close()
    assert said == []
    another: Any = SimpleNamespace(exc_value=ValueError(), object=None)
    sys.unraisablehook(another)
    assert said == [another]


# When each ends


def test_expiries_are_by_name(authority: trustme.CA, first: Certificate, tmp_path: Path) -> None:
    other = datetime(2091, 1, 1, tzinfo=UTC)
    second = pair(tmp_path / "second", authority.issue_cert("first.test", "*.second.test", not_after=other))
    certificates = Certificates(section(first, second), "listen.0.tls")
    assert certificates.expiries() == {
        "first.test": END.timestamp(),
        "127.0.0.1": END.timestamp(),
        "*.second.test": other.timestamp(),
    }
    assert repr(certificates) == "<Certificates listen.0.tls first.test 127.0.0.1 *.second.test>"


def test_certificate_that_names_nobody_goes_by_its_file(first: Certificate) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old.test")])
    begin = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    valid = begin.not_valid_before(datetime(2020, 1, 1)).not_valid_after(END.replace(tzinfo=None))
    issued = valid.public_key(key.public_key()).sign(key, hashes.SHA256())
    first.certificate.write_bytes(issued.public_bytes(pem.Encoding.PEM))
    plain = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    first.private_key.write_bytes(plain)
    certificates = Certificates(section(first), "listen.0.tls")
    assert certificates.expiries() == {str(first.certificate): END.timestamp()}


# Files that change


async def test_renewed_certificate_is_shown_and_connections_stay(
    authority: trustme.CA, visitor: ssl.SSLContext, first: Certificate, tmp_path: Path
) -> None:
    second = pair(tmp_path / "second", authority.issue_cert("second.test"))
    certificates = Certificates(section(first, second), "listen.0.tls")
    context = certificates.context
    async with listening(certificates) as port, guard():
        staying = await asyncio.to_thread(Visitor, port, visitor, "second.test")
        assert certificates.refresh() == NOTHING
        pair(tmp_path / "second", authority.issue_cert("second.test", "more.test", not_after=END))
        assert (await visit(port, visitor, "more.test")).names == ["first.test", "127.0.0.1"]
        assert certificates.refresh() == Refreshed(["listen.0.tls.certificates.0.certificate"], [])
        assert certificates.refresh() == NOTHING
        assert (await visit(port, visitor, "more.test")).names == ["second.test", "more.test"]
        assert await asyncio.to_thread(staying.say, b"still here") == b"still here"
        staying.close()
    assert certificates.context is context
    assert certificates.expiries()["more.test"] == END.timestamp()


async def test_swapped_symlink_of_a_mounted_secret_is_followed(
    authority: trustme.CA, visitor: ssl.SSLContext, tmp_path: Path
) -> None:
    pair(tmp_path / "..2026_01", authority.issue_cert("old.test"))
    (tmp_path / "..data").symlink_to("..2026_01")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    mounted = Certificate(certificate=tmp_path / "tls.crt", private_key=tmp_path / "tls.key")
    certificates = Certificates(section(mounted), "listen.0.tls")
    pair(tmp_path / "..2026_02", authority.issue_cert("new.test"))
    (tmp_path / "..data_tmp").symlink_to("..2026_02")
    assert certificates.refresh() == NOTHING
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert certificates.refresh() == Refreshed(["listen.0.tls.certificate"], [])
    async with listening(certificates) as port:
        assert (await visit(port, visitor)).names == ["new.test"]


async def test_pair_half_written_keeps_the_old_one_and_is_said_once(
    authority: trustme.CA, visitor: ssl.SSLContext, first: Certificate
) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    issued = authority.issue_cert("renewed.test")
    first.certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    message = f"{first.certificate} does not match {first.private_key}, expected its own key"
    async with listening(certificates) as port:
        assert certificates.refresh() == Refreshed([], [Fault("listen.0.tls.certificate", message)])
        assert certificates.refresh() == NOTHING
        assert (await visit(port, visitor)).names[0] == "first.test"
        first.private_key.write_bytes(issued.private_key_pem.bytes())
        assert certificates.refresh() == Refreshed(["listen.0.tls.certificate"], [])
        assert (await visit(port, visitor)).names[0] == "renewed.test"


def test_file_that_is_gone_is_said_once_and_again_when_it_goes_again(first: Certificate) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    fault = Fault(
        "listen.0.tls.private_key", f"{first.private_key} cannot be read: No such file or directory"
    )
    for _ in range(2):
        kept = first.private_key.read_bytes()
        first.private_key.unlink()
        assert certificates.refresh() == Refreshed([], [fault])
        assert certificates.refresh() == NOTHING
        first.private_key.write_bytes(kept)
        assert certificates.refresh() == NOTHING


def test_swap_between_two_reads_is_no_fault(
    authority: trustme.CA, first: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    old_key = first.private_key.read_bytes()
    pair(tmp_path / "first", authority.issue_cert("new.test"))
    new_key = first.private_key.read_bytes()
    first.private_key.write_bytes(old_key)
    load = ssl.SSLContext.load_cert_chain

    def load_then_swap(self: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        try:
            load(self, *args, **kwargs)
        finally:
            first.private_key.write_bytes(new_key)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_then_swap)
    assert certificates.refresh() == Refreshed(["listen.0.tls.certificate"], [])


def test_files_that_never_rest_are_looked_at_again_later(
    first: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    kept = first.private_key.read_bytes()
    load = ssl.SSLContext.load_cert_chain

    def load_then_write(self: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        try:
            load(self, *args, **kwargs)
        finally:
            first.private_key.write_bytes(first.private_key.read_bytes() + b"x")

    first.private_key.write_bytes(b"x")
    with monkeypatch.context() as patched:
        patched.setattr(ssl.SSLContext, "load_cert_chain", load_then_write)
        assert [fault.path for fault in certificates.refresh().faults] == ["listen.0.tls.private_key"]
    first.private_key.write_bytes(kept)
    assert certificates.refresh() == NOTHING


# Another config


async def test_replaced_config_is_in_force_on_the_same_context(
    authority: trustme.CA, visitor: ssl.SSLContext, first: Certificate, tmp_path: Path
) -> None:
    second = pair(tmp_path / "second", authority.issue_cert("second.test"))
    certificates = Certificates(section(first, second), "listen.0.tls")
    async with listening(certificates) as port:
        certificates.replace(section(second, min_version="1.3"), "listen.1.tls")
        assert (await visit(port, visitor, "first.test")).names == ["second.test"]
        with pytest.raises(OSError, match=REFUSED):
            await visit(port, trusting(authority, ssl.TLSVersion.TLSv1_2))
        certificates.replace(section(second, min_version="1.2"), "listen.1.tls")
        assert (await visit(port, trusting(authority, ssl.TLSVersion.TLSv1_2))).names == ["second.test"]


async def test_replacement_that_is_wrong_changes_nothing_and_says_every_fault(
    visitor: ssl.SSLContext, first: Certificate, tmp_path: Path
) -> None:
    certificates = Certificates(section(first), "listen.0.tls")
    gone = Certificate.model_construct(certificate=tmp_path / "a", private_key=tmp_path / "b")
    with pytest.raises(ConfigError) as caught:
        certificates.replace(section(first, gone, gone, min_version="1.3"), "listen.0.tls")
    assert [fault.path for fault in caught.value.faults] == [
        f"listen.0.tls.certificates.{index}.{key}"
        for index in (0, 1)
        for key in ("certificate", "private_key")
    ]
    async with listening(certificates) as port:
        assert (await visit(port, visitor, "first.test")).names[0] == "first.test"
    assert certificates.context.minimum_version is ssl.TLSVersion.TLSv1_2


# Files that cannot be used


def encrypted(files: Certificate) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    secret = pem.BestAvailableEncryption(b"passphrase")
    files.private_key.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, secret))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


Break = Callable[[Certificate], object]


@pytest.mark.parametrize(
    ("broken", "key", "message"),
    [
        (lambda files: files.certificate.write_bytes(b""), "certificate", "{crt} is empty, expected PEM"),
        (lambda files: files.private_key.write_bytes(b""), "private_key", "{key} is empty, expected PEM"),
        (
            lambda files: files.certificate.write_text("x"),
            "certificate",
            "{crt} holds no certificate, expected a PEM chain",
        ),
        (
            lambda files: files.certificate.write_bytes(files.private_key.read_bytes()),
            "certificate",
            "{crt} holds no certificate, expected a PEM chain",
        ),
        (
            lambda files: os.truncate(files.certificate, 300),
            "certificate",
            "{crt} holds no certificate, expected a PEM chain",
        ),
        (
            lambda files: os.truncate(files.private_key, 100),
            "private_key",
            "{key} holds no private key, expected one as PEM",
        ),
        (
            lambda files: files.private_key.write_bytes(files.certificate.read_bytes()),
            "private_key",
            "{key} holds no private key, expected one as PEM",
        ),
        (
            lambda files: files.certificate.write_bytes(bytes((1 << 20) + 1)),
            "certificate",
            "{crt} is larger than 1 MiB, expected PEM",
        ),
        (encrypted, "private_key", "{key} is encrypted, expected a key without a passphrase"),
        (
            lambda files: directory(files.certificate),
            "certificate",
            "{crt} cannot be read: Is a directory",
        ),
    ],
)
def test_file_that_cannot_be_used_is_named(first: Certificate, broken: Break, key: str, message: str) -> None:
    tls = section(first)
    broken(first)
    with pytest.raises(ConfigError) as caught:
        Certificates(tls, "listen.3.tls")
    shown = message.format(crt=first.certificate, key=first.private_key)
    assert caught.value.faults == [Fault(f"listen.3.tls.{key}", shown)]


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_key_of_another_certificate_is_a_fault_that_names_both(
    authority: trustme.CA, first: Certificate, tmp_path: Path, key_type: trustme.KeyType
) -> None:
    other = pair(tmp_path / "other", authority.issue_cert("other.test", key_type=key_type))
    mixed = Certificate(certificate=first.certificate, private_key=other.private_key)
    with pytest.raises(ConfigError) as caught:
        Certificates(section(mixed), "listen.0.tls")
    message = f"{first.certificate} does not match {other.private_key}, expected its own key"
    assert caught.value.faults == [Fault("listen.0.tls.certificate", message)]


def test_file_without_permission_is_named(first: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may read everything, so the refusal is played.
    tls, opened = section(first), Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == first.private_key:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError) as caught:
        Certificates(tls, "listen.0.tls")
    message = f"{first.private_key} cannot be read: Permission denied"
    assert caught.value.faults == [Fault("listen.0.tls.private_key", message)]


def test_file_that_goes_while_it_is_read_is_a_fault(
    first: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", gone)
    with pytest.raises(ConfigError) as caught:
        Certificates(section(first), "listen.0.tls")
    assert caught.value.faults == [Fault("listen.0.tls", "cannot be read: No such file or directory")]


def test_key_that_openssl_finds_too_weak_is_a_fault(
    first: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which keys those are is for the system's OpenSSL to say.
    def refuse(*args: object, **kwargs: object) -> None:
        error = ssl.SSLError(1, "ee key too small")
        error.reason = "EE_KEY_TOO_SMALL"
        raise error

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", refuse)
    with pytest.raises(ConfigError) as caught:
        Certificates(section(first), "listen.0.tls")
    message = f"{first.certificate} is refused by OpenSSL: ee key too small"
    assert caught.value.faults == [Fault("listen.0.tls.certificate", message)]


def test_further_certificate_that_names_no_host_is_a_fault(
    authority: trustme.CA, first: Certificate, tmp_path: Path
) -> None:
    nobody = pair(tmp_path / "nobody", authority.issue_cert("127.0.0.1"))
    with pytest.raises(ConfigError) as caught:
        Certificates(section(first, nobody), "listen.0.tls")
    message = f"{nobody.certificate} names no host, expected one in its subject alternative names"
    assert caught.value.faults == [Fault("listen.0.tls.certificates.0.certificate", message)]
