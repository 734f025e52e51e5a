"""The TLS side of a listener: certificates by name, renewed in place, and the keys of session tickets.

A server's context stays the same while it listens, and holds no certificate. At each handshake the name that
the visitor asks for (RFC 6066 section 3) selects the context that does. So a renewed certificate is used from
the next handshake on, and no connection is affected.
"""

from __future__ import annotations

import _ssl
import ctypes
import hashlib
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedproxy.errors import ConfigError, Fault

if TYPE_CHECKING:
    from fedproxy.config.model import Certificate, TlsSettings

#: What Mozilla calls intermediate, for TLS 1.2: forward secrecy and authenticated encryption only. The
#: visitor chooses, because a phone knows best whether it has AES in hardware. TLS 1.3 has no weak ones.
_CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_PEM_MAX = 1 << 20
_READINGS = 3
_SECRET_MIN = 32
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")

# openssl/ssl.h
_GET_TICKET_KEYS = 58
_SET_TICKET_KEYS = 59


@dataclass(frozen=True)
class Refreshed:
    """The result of rereading the files.

    `renewed`: key paths of the certificates that were replaced. `faults`: changed files that cannot be used.
    """

    renewed: list[str]
    faults: list[Fault]


@dataclass(frozen=True)
class _Seen:
    """The content of a pair's files. The key itself is not kept."""

    chain: bytes
    key_digest: bytes


@dataclass(frozen=True)
class _Loaded:
    """A pair that can be used. `hosts`: names in lower case, with `*.` for any one label."""

    seen: _Seen
    context: ssl.SSLContext
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    begins: float
    expires: float


@dataclass(frozen=True)
class _Source:
    """Where a pair comes from: the key path of its mapping in the config, and its files."""

    where: str
    files: Certificate
    version: ssl.TLSVersion
    http2: bool
    chosen_by_name: bool

    def load(self) -> tuple[_Seen | list[Fault], _Loaded | list[Fault]]:
        """The content of the files, and the pair or its fault.

        A directory that is swapped between two reads shows a certificate with another's key: a failure is
        checked again.
        """
        for _ in range(_READINGS):
            seen = self.look()
            outcome = self._use(seen) if isinstance(seen, _Seen) else seen
            if isinstance(outcome, _Loaded) or self.look() == seen:
                break
        return seen, outcome

    def look(self) -> _Seen | list[Fault]:
        """The current content of the files."""
        chain = _read(f"{self.where}.certificate", self.files.certificate)
        key = _read(f"{self.where}.private_key", self.files.private_key)
        if isinstance(chain, bytes) and isinstance(key, bytes):
            return _Seen(chain, hashlib.blake2b(key).digest())
        return [fault for fault in (chain, key) if isinstance(fault, Fault)]

    def _use(self, seen: _Seen) -> _Loaded | list[Fault]:
        context = _context(self.version, http2=self.http2)
        where, files = f"{self.where}.certificate", self.files
        try:
            hosts, addresses, begins, expires = _leaf(seen.chain)
        except ValueError:
            return [Fault(where, f"{files.certificate} holds no certificate, expected a PEM chain")]
        try:
            context.load_cert_chain(files.certificate, files.private_key, password=_no_passphrase)
        except _EncryptedError:
            message = f"{files.private_key} is encrypted, expected a key without a passphrase"
            return [Fault(f"{self.where}.private_key", message)]
        except ssl.SSLError as error:
            return [self._refused(error)]
        except OSError as error:
            return [Fault(self.where, f"cannot be read: {error.strerror}")]
        if self.chosen_by_name and not hosts:
            message = f"{files.certificate} names no host, expected one in its subject alternative names"
            return [Fault(where, message)]
        return _Loaded(seen, context, hosts, addresses, begins, expires)

    def _refused(self, error: ssl.SSLError) -> Fault:
        chain, key = self.files.certificate, self.files.private_key
        if error.reason in _MISMATCHES:
            return Fault(f"{self.where}.certificate", f"{chain} does not match {key}, expected its own key")
        if not error.reason:
            # OpenSSL gives no details about a key that it cannot read; the certificate was read before.
            return Fault(f"{self.where}.private_key", f"{key} holds no private key, expected one as PEM")
        reason = error.reason.replace("_", " ").lower()
        return Fault(f"{self.where}.certificate", f"{chain} is refused by OpenSSL: {reason}")


@dataclass
class _Pair:
    """A pair in force. `seen`: what its files held when they were last read, good or not."""

    source: _Source
    loaded: _Loaded
    seen: _Seen | list[Fault]


@dataclass(frozen=True)
class _Names:
    """Which context serves which name; the first pair that has a name serves it."""

    default: ssl.SSLContext
    exact: dict[str, ssl.SSLContext] = field(default_factory=dict)
    below: dict[str, ssl.SSLContext] = field(default_factory=dict)

    def context_of(self, name: str | None) -> ssl.SSLContext:
        """The context for the name that a visitor asks for: exact, then wildcard (RFC 9525 section 6.3)."""
        if name is None:
            return self.default
        name = name.lower()
        return self.exact.get(name) or self.below.get(name.partition(".")[2]) or self.default


class Certificates:
    """The certificates of one listener, and the context that its server is given.

    `tls`: the listener's section of the config, and `where` the key path of that section, such as
    `listen.0.tls`. `http2`: it is offered. Raises ConfigError with every fault.
    """

    def __init__(self, tls: TlsSettings, where: str, *, http2: bool = True) -> None:
        self.context = _context(_VERSIONS[tls.min_version], http2=http2)
        self.context.sni_callback = self._choose
        self.replace(tls, where, http2=http2)

    def __repr__(self) -> str:
        return f"<Certificates {self._pairs[0].source.where} {' '.join(self.expiries())}>"

    def replace(self, tls: TlsSettings, where: str, *, http2: bool = True) -> None:
        """Puts another config of the same listener in force; what was negotiated stays.

        Raises ConfigError with every fault, and then changes nothing.
        """
        pairs, faults = [], []
        for source in _sources(tls, where, http2=http2):
            seen, outcome = source.load()
            if isinstance(outcome, _Loaded):
                pairs.append(_Pair(source, outcome, seen))
            else:
                faults += outcome
        if faults:
            raise ConfigError(faults)
        self.context.minimum_version = _VERSIONS[tls.min_version]
        _offer(self.context, http2=http2)
        self._pairs = pairs
        self._names = _names(pairs)

    def refresh(self) -> Refreshed:
        """Reads the files again. A pair that cannot be used leaves the old one in force, and is said once.

        Costs two small reads for each pair while nothing changes.
        """
        refreshed = Refreshed([], [])
        for pair in self._pairs:
            if pair.source.look() != pair.seen:
                self._reload(pair, refreshed)
        if refreshed.renewed:
            self._names = _names(self._pairs)
        return refreshed

    def _reload(self, pair: _Pair, refreshed: Refreshed) -> None:
        pair.seen, outcome = pair.source.load()
        if not isinstance(outcome, _Loaded):
            refreshed.faults.extend(outcome)
        elif outcome.seen != pair.loaded.seen:
            pair.loaded = outcome
            refreshed.renewed.append(f"{pair.source.where}.certificate")

    def expiries(self) -> dict[str, float]:
        """For each name, when the certificate that serves it ends (Unix time).

        A certificate that names nobody goes by its file.
        """
        ends: dict[str, float] = {}
        for pair in self._pairs:
            loaded = pair.loaded
            names = (*loaded.hosts, *loaded.addresses) or (str(pair.source.files.certificate),)
            for name in names:
                ends.setdefault(name, loaded.expires)
        return ends

    def validity(self) -> dict[str, tuple[float, float]]:
        """For each certificate, by key path, when it begins and ends (Unix time)."""
        return {
            f"{pair.source.where}.certificate": (pair.loaded.begins, pair.loaded.expires)
            for pair in self._pairs
        }

    def set_ticket_key(self, secret: bytes) -> str | None:
        """Derives the keys of session tickets from a secret, the same in every process that has the secret.

        A secret is random and at least 32 bytes long. Tickets made under the one before are not resumed:
        those visitors make a full handshake. None when it is in force, or why it cannot be done on this
        machine; then each process keeps the random keys that OpenSSL gave it.
        """
        if len(secret) < _SECRET_MIN:
            raise ValueError(f"a secret of {len(secret)} bytes, expected at least {_SECRET_MIN}")
        # OpenSSL goes by the context that a connection began with, whatever context its name chose.
        return _set_ticket_keys(self.context, secret)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._names.context_of(name)


def ignore_unreadable_names() -> None:
    """Suppresses tracebacks, in this process, for visitors who ask for a name that is not ASCII.

    Python ends such a handshake by itself, and would write a traceback for each one to standard error.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not (
            isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes)
        ):
            before(unraisable)

    sys.unraisablehook = hook


def _sources(tls: TlsSettings, where: str, *, http2: bool) -> Iterator[_Source]:
    version = _VERSIONS[tls.min_version]
    yield _Source(where, tls, version, http2, chosen_by_name=False)
    for index, files in enumerate(tls.certificates):
        yield _Source(f"{where}.certificates.{index}", files, version, http2, chosen_by_name=True)


def _names(pairs: list[_Pair]) -> _Names:
    names = _Names(pairs[0].loaded.context)
    for pair in pairs:
        for host in pair.loaded.hosts:
            table, name = (names.below, host[2:]) if host.startswith("*.") else (names.exact, host)
            table.setdefault(name, pair.loaded.context)
    return names


def _context(version: ssl.TLSVersion, *, http2: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = version
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    _offer(context, http2=http2)
    return context


def _offer(context: ssl.SSLContext, *, http2: bool) -> None:
    """Says what is spoken (RFC 7301), the first first. What RFC 9113 section 9.2 asks of TLS holds anyway."""
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])


def _read(where: str, path: Path) -> bytes | Fault:
    try:
        with path.open("rb") as file:
            data = file.read(_PEM_MAX + 1)
    except OSError as error:
        return Fault(where, f"{path} cannot be read: {error.strerror}")
    if not data:
        return Fault(where, f"{path} is empty, expected PEM")
    if len(data) > _PEM_MAX:
        return Fault(where, f"{path} is larger than {_PEM_MAX >> 20} MiB, expected PEM")
    return data


def _leaf(chain: bytes) -> tuple[tuple[str, ...], tuple[str, ...], float, float]:
    """Host names, addresses, begin and end of the first certificate. Raises ValueError if there is none."""
    # Imported here, because it takes several MiB, which a worker without TLS does not need.
    from cryptography import x509

    leaf = x509.load_pem_x509_certificates(chain)[0]
    begins, expires = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), (), begins, expires
    hosts = tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    return hosts, tuple(map(str, names.get_values_for_type(x509.IPAddress))), begins, expires


class _EncryptedError(Exception):
    """A private key asks for a passphrase."""


def _no_passphrase() -> NoReturn:
    # Without this OpenSSL would prompt on the terminal.
    raise _EncryptedError


def _set_ticket_keys(context: ssl.SSLContext, secret: bytes) -> str | None:
    """Sets them in OpenSSL itself, because Python's ssl cannot. None, or why it is not possible."""
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} does not show its OpenSSL contexts"
    try:
        # Through Python's own module, so that it is the OpenSSL which Python uses, and no other.
        library = ctypes.CDLL(_ssl.__file__)
        control, options = library.SSL_CTX_ctrl, library.SSL_CTX_get_options
    except (AttributeError, OSError):
        return "this Python's OpenSSL cannot be called"
    control.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
    control.restype = ctypes.c_long
    options.argtypes, options.restype = (ctypes.c_void_p,), ctypes.c_uint64
    # The first field of CPython's object, behind its header.
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    if not pointer or options(pointer) != int(context.options):
        return "this Python keeps its OpenSSL contexts in another place"
    size = control(pointer, _GET_TICKET_KEYS, 0, None)
    if size <= 0:
        return "this OpenSSL takes no ticket keys"
    # Name, MAC key and cipher key in one, whatever size this OpenSSL wants.
    keys = hashlib.shake_256(b"fedproxy session tickets\0" + secret).digest(size)
    found = ctypes.create_string_buffer(size)
    if not control(pointer, _SET_TICKET_KEYS, size, keys) or not control(
        pointer, _GET_TICKET_KEYS, size, found
    ):
        return "this OpenSSL takes no ticket keys"
    return None if found.raw == keys else "this OpenSSL does not keep ticket keys as they were set"
