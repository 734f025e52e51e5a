"""The checks below HTTP: names, addresses, connections, TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509

from fedproxy.config.address import member_address
from fedproxy.control.candidate.check import (
    DAYS_LEFT,
    FAR,
    SLOW_NAME,
    Candidate,
    Check,
    CheckOutcome,
    make,
    reason,
    show_time,
    skip,
)
from fedproxy.errors import NameFailed
from fedproxy.proxy.resolver import AddressInfo, Resolver

_MOST_ADDRESSES: Final = 8
_ROUND_TRIPS: Final = 5
_MOST_NAMES: Final = 100
_SHOWN_NAMES: Final = 4
_NO_ROUTE: Final = "this machine has no IPv6"


def judge_address(candidate: Candidate) -> Check:
    """Whether visitors' traffic to it is encrypted."""
    if candidate.address.tls:
        return make("address", CheckOutcome.OK, candidate.url)
    return make(
        "address",
        CheckOutcome.WARNING,
        f"{candidate.url} is not encrypted",
        "Serve it over https: visitors' tokens are sent to it.",
    )


def judge_membership(candidate: Candidate) -> Check:
    """Whether the federation has it already, as far as that is known."""
    name = "membership"
    own = _place(candidate.url)
    for member, url in candidate.members.items():
        if _place(url) == own:
            seen = f"it is the member {member} already"
            fix = "That is fine if you check a member again. A new one needs an address of its own."
            return make(name, CheckOutcome.WARNING, seen, fix, member=member)
    if candidate.name in candidate.members:
        seen = f"the name {candidate.name} is that of a member at {candidate.members[candidate.name]}"
        fix = "Choose another name, or let that member leave first: names are in cookies and metrics."
        return make(name, CheckOutcome.WARNING, seen, fix, member=candidate.name)
    if candidate.reference is not None and _place(candidate.reference) == own:
        seen = "the reference is this BinderHub itself"
        fix = "Give another member as the reference: a comparison with itself says nothing."
        return make(name, CheckOutcome.WARNING, seen, fix, member=None)
    if candidate.members:
        count = len(candidate.members)
        seen = f"none of the {count} members" if count > 1 else "not the only member"
        return make(name, CheckOutcome.OK, seen, member=None)
    if candidate.reference is not None:
        return make(name, CheckOutcome.OK, "it is not the reference", member=None)
    return make(name, CheckOutcome.SKIPPED, "the members are not known: there is no config and no reference")


def _place(url: str) -> tuple[str, int, str]:
    # Whether with TLS or without, one port of one host is one BinderHub.
    address = member_address(url)
    return address.host.lower().removesuffix("."), address.port, address.path


async def resolve(candidate: Candidate) -> tuple[Check, Sequence[AddressInfo]]:
    """The check of the name, and its addresses."""
    host, port = candidate.address.host, candidate.address.port
    loop = asyncio.get_running_loop()
    resolver = Resolver(loop.time)
    start = loop.time()
    try:
        async with asyncio.timeout(candidate.timeout):
            found = (await resolver.resolve(host, port))[:_MOST_ADDRESSES]
    except (NameFailed, TimeoutError) as error:
        seen = f"no answer within {candidate.timeout:g} s" if isinstance(error, TimeoutError) else str(error)
        fix = "Add an A and, if you have IPv6, an AAAA record for the name."
        return make("name", CheckOutcome.FAILED, seen, fix), ()
    finally:
        await resolver.close()
    seconds = loop.time() - start
    addresses = [info[4][0] for info in found]
    seen = f"{', '.join(addresses)} in {show_time(seconds)}"
    if host in addresses:
        return make("name", CheckOutcome.SKIPPED, "the URL has an address in it"), found
    values: dict[str, Any] = {"addresses": addresses, "seconds": seconds}
    if all(":" in address for address in addresses):
        fix = "Add an A record: an edge may have no IPv6."
        return make("name", CheckOutcome.WARNING, seen, fix, **values), found
    if seconds > SLOW_NAME:
        fix = "Check the name servers, or try again: the first answer may be slow."
        return make("name", CheckOutcome.WARNING, seen, fix, **values), found
    return make("name", CheckOutcome.OK, seen, **values), found


async def _open(
    candidate: Candidate, address: str, tls: ssl.SSLContext | None = None
) -> asyncio.Transport | str:
    """A connection, or the reason for its failure. Raises SSLCertVerificationError."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(candidate.timeout):
            transport, _ = await loop.create_connection(
                asyncio.Protocol,
                address,
                candidate.address.port,
                ssl=tls,
                server_hostname=candidate.address.host if tls else None,
            )
    except TimeoutError:
        return f"nothing within {candidate.timeout:g} s"
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLError as error:
        return (error.reason or "it ended").lower().replace("_", " ")
    except OSError as error:
        return reason(error)
    return transport


async def connect(candidate: Candidate, addresses: Sequence[AddressInfo]) -> tuple[list[Check], str]:
    """The checks of all addresses and of IPv6, and an address that accepts connections, or nothing."""
    names = [info[4][0] for info in addresses]
    found = await asyncio.gather(*(_open(candidate, name) for name in names))
    refused = {}
    reached = ""
    for name, result in zip(names, found, strict=True):
        if isinstance(result, str):
            refused[name] = result
        else:
            result.abort()
            reached = reached or name
    sixes = [name for name in names if ":" in name]
    here = any(map(_has_route, sixes))
    # That this machine has no IPv6 is no fault of the candidate, if it can be reached otherwise.
    faults = [f"{name}: {why}" for name, why in refused.items() if here or name not in sixes or not reached]
    return [
        _judge_connection(candidate, names, faults, reached),
        judge_ipv6(sixes, refused, here=here, literal=candidate.address.host in names),
    ], reached


def _judge_connection(candidate: Candidate, names: Sequence[str], refused: list[str], reached: str) -> Check:
    seen = "; ".join(refused) or f"{', '.join(names)} port {candidate.address.port}"
    values: dict[str, Any] = {"refused": refused}
    if not reached:
        fix = "Is it running, is the port right, does a firewall block others?"
        return make("connection", CheckOutcome.FAILED, seen, fix, **values)
    if refused:
        fix = "Remove addresses that do not answer from the name."
        return make("connection", CheckOutcome.WARNING, seen, fix, **values)
    return make("connection", CheckOutcome.OK, seen, **values)


def _has_route(address: str) -> bool:
    """Whether this machine has a route there. Nothing is sent: a datagram's connection is local."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 9))
    except OSError:
        return False
    return True


def judge_ipv6(
    sixes: Sequence[str], refused: Mapping[str, str], *, here: bool, literal: bool = False
) -> Check:
    """The check of IPv6 addresses. `refused`: why each failed. `here`: this machine has a route there.

    `literal`: the URL has an address in place of a name.
    """
    values: dict[str, Any] = {"addresses": list(sixes), "here": here if sixes else None}
    if not sixes:
        seen = (
            "the URL has an IPv4 address in it" if literal else "no AAAA record: it is reached by IPv4 only"
        )
        outcome = CheckOutcome.SKIPPED if literal else CheckOutcome.OK
        return make("ipv6", outcome, seen, **values, reached=False)
    if not here:
        return make(
            "ipv6", CheckOutcome.SKIPPED, f"{', '.join(sixes)}, but {_NO_ROUTE}", **values, reached=None
        )
    faults = [f"{name}: {refused[name]}" for name in sixes if name in refused]
    if faults:
        fix = "Let it listen on IPv6, or remove the AAAA record: whoever has IPv6 tries it first."
        return make(
            "ipv6", CheckOutcome.WARNING, "; ".join(faults), fix, **values, reached=len(faults) < len(sixes)
        )
    return make("ipv6", CheckOutcome.OK, f"{', '.join(sixes)} accepts connections", **values, reached=True)


async def measure(candidate: Candidate, address: str) -> Check:
    """The time that a connection takes."""
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(_ROUND_TRIPS):
        start = loop.time()
        result = await _open(candidate, address)
        if isinstance(result, str):
            fix = (
                "It accepts some connections and not others: is it overloaded, or does it limit each address?"
            )
            return make("round trip", CheckOutcome.WARNING, result, fix)
        times.append(loop.time() - start)
        result.abort()
    median = statistics.median(times)
    seen = f"{show_time(median)}, the median of {len(times)} connections"
    values: dict[str, Any] = {"seconds": median, "least": min(times), "most": max(times)}
    if median > FAR:
        fix = "This adds to every request of a visitor: is it far away, or is the route bad?"
        return make("round trip", CheckOutcome.WARNING, seen, fix, **values)
    return make("round trip", CheckOutcome.OK, seen, **values)


async def handshake(candidate: Candidate, address: str) -> list[Check]:
    """The checks of TLS. Raises OSError if the authorities cannot be read."""
    if not candidate.address.tls:
        return skip("the URL is http://", "tls", "http2", "certificate")
    fault = ""
    known = ssl.create_default_context(cafile=candidate.authorities)
    # The version is checked regardless of who signed the certificate.
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    for context in known, anybody:
        context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        result = await _open(candidate, address, known)
    except ssl.SSLCertVerificationError as error:
        fault = error.verify_message
        result = await _open(candidate, address, anybody)
    if isinstance(result, str):
        fix = "Does this port speak TLS, version 1.2 or newer?"
        return [make("tls", CheckOutcome.FAILED, f"no handshake: {result}", fix)]
    connection = result.get_extra_info("ssl_object")
    version, chosen = connection.version(), connection.selected_alpn_protocol()
    certificate, encoded = connection.getpeercert(), connection.getpeercert(binary_form=True)
    result.abort()
    offered = chosen == "h2"
    found = [
        make("tls", CheckOutcome.OK, str(version).replace("TLSv", "TLS "), version=version),
        make("http2", CheckOutcome.OK, "offered" if offered else "not offered", offered=offered),
    ]
    if fault:
        return [*found, judge_foreign(candidate, fault, encoded)]
    return [*found, judge_certificate(certificate, time.time())]


def judge_certificate(certificate: Mapping[str, Any], now: float) -> Check:
    """The check of a verified certificate. `now`: seconds since the epoch."""
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((ends - now) // 86400)
    # Directory names are no text.
    names = [value for _, value in certificate.get("subjectAltName", ()) if isinstance(value, str)]
    end = datetime.fromtimestamp(ends, UTC)
    seen = f"for {_some(names)}, {days} days left, until {end:%Y-%m-%d %H:%M} UTC"
    values: dict[str, Any] = {"names": names[:_MOST_NAMES], "days": days, "not_after": _iso(end)}
    if days < DAYS_LEFT:
        fix = "Renew it, and find out why it was not renewed automatically."
        return make("certificate", CheckOutcome.WARNING, seen, fix, **values)
    return make("certificate", CheckOutcome.OK, seen, **values)


def judge_foreign(candidate: Candidate, fault: str, encoded: bytes | None) -> Check:
    """The check of a certificate that does not verify. `encoded`: as DER."""
    values = _read_certificate(encoded or b"")
    seen = fault
    if "mismatch" in fault.lower():
        fix = f"It shows the certificate of another name: is {candidate.address.host} set up where TLS ends?"
        if values["names"]:
            seen = f"{fault.rstrip('.')}; it is for {_some(values['names'])}"
    elif "expired" in fault:
        fix = "Renew it, and find out why it was not renewed automatically."
        if values["not_after"]:
            seen = f"{fault}: on {values['not_after'][:10]}"
    elif "self" in fault and "signed" in fault:
        fix = "Get one from an authority that everybody knows, such as Let's Encrypt."
    else:
        fix = "Serve it with all intermediate certificates, from an authority that everybody knows."
    return make("certificate", CheckOutcome.FAILED, seen, fix, **values)


def _read_certificate(encoded: bytes) -> dict[str, Any]:
    """Names and end of a certificate that nobody vouches for; as much as can be read."""
    names: list[str] = []
    end = ""
    try:
        certificate = x509.load_der_x509_certificate(encoded)
        end = _iso(certificate.not_valid_after_utc)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [str(name.value) for name in found if isinstance(name, (x509.DNSName, x509.IPAddress))]
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        pass
    return {"names": names[:_MOST_NAMES], "not_after": end}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{', '.join(names[:_SHOWN_NAMES])}{more}"


def _iso(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global
