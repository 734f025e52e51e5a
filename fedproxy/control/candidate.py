"""Checks whether a BinderHub is fit to join: the requests that an edge sends to a member, once, from outside.

The checks go from the name to a launch, and stop at one that makes the later ones impossible. Each is
bounded in time and size, and whatever goes wrong is a verdict. One launch is started, and abandoned as soon
as its stream has shown whether it delivers events. With a reference it carries a build token from there; a
candidate that refuses the token has started nothing, and is asked again without it for the other checks.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import ssl
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from fedproxy import __version__
from fedproxy.config.address import MemberAddress, member_address
from fedproxy.config.model import HealthSettings
from fedproxy.control.fetch import FAULTS, LARGEST, Fetched, fetch, open_session
from fedproxy.decide.health import Verdict, judge_health, judge_versions
from fedproxy.errors import NameFailed
from fedproxy.observe.access_log import MASK, mask_target
from fedproxy.proxy.resolver import AddressInfo, Resolver
from fedproxy.wire.events import EventReader

_MOST_ADDRESSES: Final = 8
_ROUND_TRIPS: Final = 5
_FAR: Final = 0.25  # seconds of a round trip
_SLOW_NAME: Final = 1.0  # seconds
_DAYS_LEFT: Final = 14
_LARGEST_FILE: Final = 32 << 20
_LONGEST_WORDS: Final = 200
# BinderHub's first event can take 25 s, and its comments come every 25 s.
_PATIENCE: Final = 6
_APART: Final = 0.1  # seconds between two reads that cannot have been one write
_AT_ONCE: Final = 16  # more events than a member produces at once
# BinderHub's page has `window.pageConfig = {..., "buildToken": "TOKEN"}`; until 2024 it had
# `<meta id="build-token" data-token="TOKEN">`. The repetitions are bounded to make no page slow to search.
_JWT: Final = r"([A-Za-z0-9._~-]{1,4096})"
_TOKENS: Final = (
    re.compile(rf"""\bbuildToken["']?\s{{0,99}}:\s{{0,99}}["']{_JWT}["']"""),
    re.compile(
        rf"""<meta\b(?=[^<>]{{0,999}}\bid\s{{0,99}}=\s{{0,99}}["']?build-token\b)"""
        rf"""[^<>]{{0,999}}\bdata-token\s{{0,99}}=\s{{0,99}}["']?{_JWT}["'\s/>]""",
        re.IGNORECASE,
    ),
)
_REFUSED: Final = "Invalid build token"
_SCRIPT: Final = re.compile(r"""["'](/[^"'\s<>]+\.js(?:\?[^"'\s<>]*)?)["']""")

_EXPECTED: Final = {
    "address": "an https:// URL",
    "name": f"it resolves, within {_SLOW_NAME:g} s",
    "connection": "every address accepts a connection",
    "round trip": f"at most {_FAR * 1000:g} ms",
    "tls": "TLS 1.2 or 1.3",
    "certificate": f"from a known authority, for this name, valid for {_DAYS_LEFT} days or more",
    "versions": "200 with a JSON object, the same as the reference's if there is one",
    "keep-alive": "a second request uses the same connection",
    "health": "200 with a JSON object and every check ok",
    "pods": f"a quota, with more than {HealthSettings().pod_headroom} pods free",
    "static files": "a large file arrives whole",
    "build token": "a launch with a token from the reference's page is accepted",
    "event stream": "200, text/event-stream, no Content-Length, not compressed",
    "cors": "Access-Control-Allow-Origin: *",
    "launch": "its first events are not a failure",
    "unbuffered": "each event arrives as it is produced",
}


class CheckOutcome(StrEnum):
    """A check's result. WARNING: the member could join like this. SKIPPED: the check was not possible."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "not checked"


@dataclass(frozen=True)
class Check:
    """One check: what was seen, what was expected, and how to fix it if it is not ok.

    `values`: the same for programs, as JSON has it; times in seconds.
    """

    name: str
    outcome: CheckOutcome
    seen: str
    expected: str
    fix: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """All checks in order: each of a fixed set once, and a `health: NAME` for each check of its health."""

    url: str
    checks: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Whether nothing failed."""
        return all(check.outcome is not CheckOutcome.FAILED for check in self.checks)


@dataclass(frozen=True)
class Candidate:
    """The BinderHub to check, and how.

    url: scheme, host and port. launch: PROVIDER/SPEC as in a target. reference: the URL of a member whose
    versions must match, and whose build tokens must be accepted. origin: the federation's, as the edge will
    send it. timeout: seconds per check; a launch may take six times that. authorities: a PEM file of trusted
    CAs, instead of the system's. base_path: where both have their BinderHub, with a slash at either end.
    """

    url: str
    launch: str = "gh/binder-examples/requirements/HEAD"
    reference: str | None = None
    origin: str = "https://mybinder.org"
    timeout: float = 10.0
    authorities: Path | None = None
    base_path: str = "/"

    @property
    def address(self) -> MemberAddress:
        """`url`, parsed."""
        return member_address(self.url)


async def examine(candidate: Candidate, told: Callable[[Check], None] = lambda check: None) -> Examination:
    """Runs all checks; `told` is called with each when it is done.

    Raises OSError if `authorities` cannot be read, and nothing because of the candidate.
    """
    tls = ssl.create_default_context(cafile=candidate.authorities)
    checks = []
    async with aclosing(_checks(candidate, tls)) as found:
        async for check in found:
            told(check)
            checks.append(check)
    done = {check.name for check in checks}
    why = f"because of: {checks[-1].name}"
    for name in _EXPECTED:
        if name not in done:
            checks.append(_check(name, CheckOutcome.SKIPPED, why))
            told(checks[-1])
    return Examination(candidate.url, tuple(checks))


def _check(name: str, outcome: CheckOutcome, seen: str, fix: str = "", **values: Any) -> Check:
    return Check(name, outcome, _words(seen), _EXPECTED.get(name, "ok"), fix, values)


async def _checks(candidate: Candidate, tls: ssl.SSLContext) -> AsyncGenerator[Check, None]:
    """The checks in order; if this ends early, the rest is skipped."""
    yield _judge_address(candidate)
    name, addresses = await _resolve(candidate)
    yield name
    connection, reached = await _connect(candidate, addresses)
    if not addresses:
        return
    yield connection
    if not reached:
        return
    yield await _measure(candidate, reached)
    for check in await _handshake(candidate, reached, tls):
        yield check
        if check.outcome is CheckOutcome.FAILED:
            return
    async with _Client(candidate, tls) as client:
        async for check in _asked(candidate, client):
            yield check


async def _asked(candidate: Candidate, client: _Client) -> AsyncGenerator[Check, None]:
    """The checks over HTTP. Without an answer to `/versions`, the others are skipped."""
    base = candidate.base_path
    versions = await client.get(f"{base}versions")
    reference = await client.get(f"{base}versions", candidate.reference) if candidate.reference else None
    yield _judge_versions(versions, reference)
    if isinstance(versions, _Silence):
        return
    yield await _ask_again(client, f"{base}versions")
    for check in _judge_health(await client.get(f"{base}health")):
        yield check
    yield await _fetch_script(client, base)
    token, why = await _mint(candidate, client)
    heard = await client.listen(token)
    verdict = _judge_token(heard) if token else _check("build token", CheckOutcome.SKIPPED, why)
    yield verdict
    if verdict.outcome is CheckOutcome.FAILED:
        # Nothing was started, and what the stream would show is not known yet.
        heard = await client.listen()
    for check in _judge_stream(candidate, heard):
        yield check


# -- the network


def _judge_address(candidate: Candidate) -> Check:
    if candidate.address.tls:
        return _check("address", CheckOutcome.OK, candidate.url)
    return _check(
        "address",
        CheckOutcome.WARNING,
        f"{candidate.url} is not encrypted",
        "Serve it over https: visitors' tokens are sent to it.",
    )


async def _resolve(candidate: Candidate) -> tuple[Check, Sequence[AddressInfo]]:
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
        return _check("name", CheckOutcome.FAILED, seen, fix), ()
    finally:
        await resolver.close()
    seconds = loop.time() - start
    addresses = [info[4][0] for info in found]
    seen = f"{', '.join(addresses)} in {_time(seconds)}"
    if host in addresses:
        return _check("name", CheckOutcome.SKIPPED, "the URL has an address in it"), found
    values: dict[str, Any] = {"addresses": addresses, "seconds": seconds}
    if all(":" in address for address in addresses):
        fix = "Add an A record: an edge may have no IPv6."
        return _check("name", CheckOutcome.WARNING, seen, fix, **values), found
    if seconds > _SLOW_NAME:
        fix = "Check the name servers, or try again: the first answer may be slow."
        return _check("name", CheckOutcome.WARNING, seen, fix, **values), found
    return _check("name", CheckOutcome.OK, seen, **values), found


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
        return _reason(error)
    return transport


async def _connect(candidate: Candidate, addresses: Sequence[AddressInfo]) -> tuple[Check, str]:
    """The check, and an address that accepts connections, or None."""
    names = [info[4][0] for info in addresses]
    found = await asyncio.gather(*(_open(candidate, name) for name in names))
    refused = []
    reached = ""
    for name, result in zip(names, found, strict=True):
        if isinstance(result, str):
            refused.append(f"{name}: {result}")
        else:
            result.abort()
            reached = reached or name
    seen = "; ".join(refused) or f"{', '.join(names)} port {candidate.address.port}"
    values: dict[str, Any] = {"refused": refused}
    if not reached:
        fix = "Is it running, is the port right, does a firewall block others?"
        return _check("connection", CheckOutcome.FAILED, seen, fix, **values), ""
    if refused:
        fix = "Remove addresses that do not answer from the name. Or does this machine have no IPv6?"
        return _check("connection", CheckOutcome.WARNING, seen, fix, **values), reached
    return _check("connection", CheckOutcome.OK, seen, **values), reached


async def _measure(candidate: Candidate, address: str) -> Check:
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(_ROUND_TRIPS):
        start = loop.time()
        result = await _open(candidate, address)
        if isinstance(result, str):
            fix = "It accepts some connections and not others: is it overloaded, or limited by address?"
            return _check("round trip", CheckOutcome.WARNING, result, fix)
        times.append(loop.time() - start)
        result.abort()
    median = statistics.median(times)
    seen = f"{_time(median)}, the median of {len(times)} connections"
    if median > _FAR:
        fix = "This adds to every request of a visitor: is it far away, or is the route bad?"
        return _check("round trip", CheckOutcome.WARNING, seen, fix, seconds=median)
    return _check("round trip", CheckOutcome.OK, seen, seconds=median)


async def _handshake(candidate: Candidate, address: str, tls: ssl.SSLContext) -> list[Check]:
    if not candidate.address.tls:
        return [_check(name, CheckOutcome.SKIPPED, "the URL is http://") for name in ("tls", "certificate")]
    fault = ""
    try:
        result = await _open(candidate, address, tls)
    except ssl.SSLCertVerificationError as error:
        fault = error.verify_message
        # The version is checked regardless of who signed the certificate.
        anybody = ssl.create_default_context()
        anybody.check_hostname = False
        anybody.verify_mode = ssl.CERT_NONE
        result = await _open(candidate, address, anybody)
    if isinstance(result, str):
        fix = "Does this port speak TLS, version 1.2 or newer?"
        return [_check("tls", CheckOutcome.FAILED, f"no handshake: {result}", fix)]
    connection = result.get_extra_info("ssl_object")
    version, certificate = connection.version(), connection.getpeercert()
    result.abort()
    spoken = _check("tls", CheckOutcome.OK, str(version).replace("TLSv", "TLS "), version=version)
    if fault:
        fix = "Renew it for this name, and serve it with all intermediate certificates."
        return [spoken, _check("certificate", CheckOutcome.FAILED, fault, fix)]
    return [spoken, judge_certificate(certificate, time.time())]


def judge_certificate(certificate: Mapping[str, Any], now: float) -> Check:
    """The check of a verified certificate. `now`: seconds since the epoch."""
    days = int((ssl.cert_time_to_seconds(certificate["notAfter"]) - now) // 86400)
    names = [value for _, value in certificate.get("subjectAltName", ())]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    seen = f"for {', '.join(names[:4])}{more}, {days} days left"
    values: dict[str, Any] = {"names": names[:100], "days": days}
    if days < _DAYS_LEFT:
        fix = "Renew it, and find out why it was not renewed automatically."
        return _check("certificate", CheckOutcome.WARNING, seen, fix, **values)
    return _check("certificate", CheckOutcome.OK, seen, **values)


# -- HTTP


@dataclass(frozen=True)
class _Silence:
    """No valid response, and why."""

    why: str


@dataclass(frozen=True)
class Heard:
    """A launch's stream, as far as it was read.

    reads: for each piece that arrived, seconds since the request and the number of events that ended in it.
    ended: by the candidate. broken: how it broke off, if it did.
    """

    status: int
    headers: Mapping[str, str]
    reads: tuple[tuple[float, int], ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    ended: bool = False
    broken: str = ""

    @property
    def apart(self) -> float:
        """Seconds between the first read and the last."""
        return self.reads[-1][0] - self.reads[0][0] if self.reads else 0.0


class _Client:
    """Sends requests as an edge would. `reused`: requests that used the connection of an earlier one."""

    def __init__(self, candidate: Candidate, tls: ssl.SSLContext) -> None:
        self.reused = 0
        self._candidate = candidate
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(self._count)
        self._session = open_session(
            {"User-Agent": f"fedproxy-probe/{__version__}", "Accept-Encoding": "gzip, deflate, br"},
            aiohttp.TCPConnector(resolver=aiohttp.AsyncResolver(), ssl=tls),
            trace=trace,
        )

    async def __aenter__(self) -> _Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _count(self, *_: object) -> None:
        self.reused += 1

    async def get(
        self, target: str, member: str | None = None, most: int = LARGEST, **fields: str
    ) -> Fetched | _Silence:
        """One GET, of the candidate or of `member`, and its whole body. Redirects are not followed."""
        url = URL((member or self._candidate.url) + target, encoded=True)
        timeout = self._candidate.timeout
        # JSON and HTML are requested uncompressed.
        headers = {"Accept-Encoding": "identity", **fields}
        try:
            return await fetch(self._session, url, timeout=timeout, most=most, headers=headers)
        except TimeoutError:
            return _Silence(f"no complete response within {timeout:g} s")
        except FAULTS as error:
            return _Silence(_fault(error))

    async def listen(self, token: str = "") -> Heard | _Silence:
        """Starts a launch, and leaves when its stream has delivered events, ended, or took too long.

        `token`: the build token to send, if any. It is masked in what is heard.
        """
        candidate = self._candidate
        patience = _PATIENCE * candidate.timeout
        target = f"{candidate.base_path}build/{candidate.launch}"
        if token:
            target += f"{'&' if '?' in target else '?'}build_token={token}"
        url = URL(candidate.url + target, encoded=True)
        headers = {"Accept": "text/event-stream", "Origin": candidate.origin}
        ear: _Ear | None = None
        start = time.monotonic()
        try:
            async with (
                asyncio.timeout(patience),
                self._session.get(url, headers=headers, allow_redirects=False) as response,
            ):
                ear = _Ear(response, start, token)
                await ear.listen()
                response.close()
        except TimeoutError:
            if ear is None:
                return _Silence(f"no response head within {patience:g} s")
        except FAULTS as error:
            if ear is None:
                return _Silence(_fault(error))
            ear.broken = _fault(error)
        return ear.heard()


class _Ear:
    """The part of a stream that arrived so far."""

    def __init__(self, response: aiohttp.ClientResponse, start: float, secret: str) -> None:
        self.broken = ""
        self._start = start
        self._secret = secret
        self._response = response
        self._headers = CIMultiDict(
            (name, _without(secret, value)) for name, value in response.headers.items()
        )
        self._reads: list[tuple[float, int]] = []
        self._events: list[Mapping[str, Any]] = []
        self._ended = False

    async def listen(self) -> None:
        """Reads until it has delivered events, ended, or proved not to be a stream."""
        if self._response.status != 200:
            return
        size = 0
        events = EventReader()
        async for piece in self._response.content.iter_any():
            found = events.feed(piece)
            self._events += [_event(data, self._secret) for data in found]
            self._reads.append((time.monotonic() - self._start, len(found)))
            size += len(piece)
            # Comments show that a stream moves; what a member thinks of a token only its first event says.
            answered = not self._secret or any(event.get("phase") for event in self._events)
            if answered and (self.heard().apart >= _APART or len(found) > _AT_ONCE):
                return
            if size > LARGEST:
                self.broken = f"and it was more than {LARGEST >> 20} MiB"
                return
        self._ended = True

    def heard(self) -> Heard:
        """The same, for the verdict."""
        return Heard(
            self._response.status,
            self._headers,
            tuple(self._reads),
            tuple(self._events),
            self._ended,
            self.broken,
        )


def _without(secret: str, text: str) -> str:
    return text.replace(secret, MASK) if secret else text


def _event(data: bytes | None, secret: str) -> Mapping[str, Any]:
    try:
        event = json.loads(_without(secret, (data or b"").decode()))
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _fault(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError(os_error=fault):
            return f"no connection: {_reason(fault)}"
        case aiohttp.ServerDisconnectedError():
            return "closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return "broke off its response"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return "sent no valid HTTP"
        case OSError():
            return _reason(error)
        case _:
            return str(error) or type(error).__name__


# -- verdicts on the answers


def _judge_versions(found: Fetched | _Silence, reference: Fetched | _Silence | None) -> Check:
    fix = "This is what BinderHub serves there: does what stands before it pass it on?"
    if isinstance(found, _Silence) or found.status != 200:
        return _check("versions", CheckOutcome.FAILED, _unexpected(found), fix)
    own = judge_versions(found.body, None)
    if not own.ok:
        return _check("versions", CheckOutcome.FAILED, "; ".join(own.details), fix)
    versions = json.loads(found.body)
    seen = json.dumps(versions)
    if reference is None:
        return _check("versions", CheckOutcome.OK, seen, versions=versions)
    if isinstance(reference, _Silence) or reference.status != 200:
        fix = "Try again when the reference answers."
        seen = f"the reference: {_unexpected(reference)}"
        return _check("versions", CheckOutcome.WARNING, seen, fix, versions=versions)
    same = judge_versions(found.body, reference.body)
    if not same.ok:
        fix = "Deploy the versions of the reference: an edge treats a member with others as unhealthy."
        return _check("versions", CheckOutcome.FAILED, "; ".join(same.details), fix, versions=versions)
    return _check("versions", CheckOutcome.OK, f"same as the reference: {seen}", versions=versions)


def _unexpected(found: Fetched | Heard | _Silence) -> str:
    if isinstance(found, _Silence):
        return found.why
    if 300 <= found.status < 400:
        place = mask_target(found.headers.get("Location", "nowhere"))
        return f"answered {found.status}, a redirect to {place}"
    return f"answered {found.status}"


async def _ask_again(client: _Client, target: str) -> Check:
    before = client.reused
    again = await client.get(target)
    if isinstance(again, _Silence):
        fix = (
            "It answered the first request but not the second: does it, or a proxy in front, limit requests?"
        )
        return _check("keep-alive", CheckOutcome.FAILED, again.why, fix)
    if client.reused == before:
        fix = "Allow keep-alive for 75 s or more: otherwise each request costs a connection and a handshake."
        return _check("keep-alive", CheckOutcome.WARNING, "it closed the connection after one response", fix)
    return _check("keep-alive", CheckOutcome.OK, f"the second response took {_time(again.seconds)}")


def _judge_health(found: Fetched | _Silence) -> list[Check]:
    fix = "This is what BinderHub serves there: does what stands before it pass it on?"
    if isinstance(found, _Silence) or found.status not in (200, 503):
        return [_check("health", CheckOutcome.FAILED, _unexpected(found), fix), _pods_unknown()]
    verdict = judge_health(found.status, found.body, HealthSettings().pod_headroom)
    parts = [_judge_part(label, ok) for label, ok in verdict.checks.items() if label != "Pod quota"]
    return [_whole_health(found.status, verdict), *parts, _judge_pods(verdict)]


def _judge_part(label: str, passed: bool) -> Check:
    name = f"health: {label}"
    if passed:
        return _check(name, CheckOutcome.OK, "ok")
    return _check(name, CheckOutcome.FAILED, "not ok", "Fix this service; see BinderHub's log.")


def _whole_health(status: int, verdict: Verdict) -> Check:
    # A full quota is reported by the check of the pods: it passes here.
    reasons = [reason for reason in verdict.reasons if reason != "quota"]
    if reasons:
        seen = f"{status}: {'; '.join(verdict.details)}"
        fix = "An edge sends no visitors to a member whose health is not ok; see BinderHub's log."
        return _check("health", CheckOutcome.FAILED, seen, fix)
    return _check("health", CheckOutcome.OK, f"{status}, {len(verdict.checks)} checks")


def _pods_unknown() -> Check:
    return _check("pods", CheckOutcome.SKIPPED, "not in its health")


def _judge_pods(verdict: Verdict) -> Check:
    if "health" in verdict.reasons and not verdict.checks:
        return _pods_unknown()
    values: dict[str, Any] = {"pods": dict(verdict.pods), "quota": verdict.quota}
    if verdict.quota is None:
        fix = "Set BinderHub.pod_quota, so that an edge sees when it is full."
        return _check("pods", CheckOutcome.WARNING, "no quota", fix, **values)
    seen = f"{verdict.pods.get('total', 'an unknown number')} of {verdict.quota}"
    if "quota" in verdict.reasons:
        fix = "It is full for now. If it often is, ask for a smaller weight, or raise the quota."
        return _check("pods", CheckOutcome.WARNING, seen, fix, **values)
    return _check("pods", CheckOutcome.OK, seen, **values)


async def _fetch_script(client: _Client, base: str) -> Check:
    page = await client.get(base)
    if isinstance(page, _Silence) or page.status != 200:
        fix = f"BinderHub's page is at {base}: does a proxy in front forward it?"
        return _check("static files", CheckOutcome.FAILED, f"{base}: {_unexpected(page)}", fix)
    names = [html.unescape(name) for name in _SCRIPT.findall(page.body.decode("utf-8", "replace"))]
    if not names:
        return _check("static files", CheckOutcome.SKIPPED, f"its page at {base} references no script")
    name = next((name for name in names if "bundle" in name), names[0])
    script = await client.get(name, most=_LARGEST_FILE)
    if isinstance(script, _Silence) or script.status != 200:
        fix = "Pages stay empty without it: does a proxy in front limit sizes or times?"
        return _check("static files", CheckOutcome.FAILED, f"{name}: {_unexpected(script)}", fix)
    size = len(script.body)
    seen = f"{name}: {size / 1e6:.1f} MB in {_time(script.seconds)}"
    return _check("static files", CheckOutcome.OK, seen, bytes=size, seconds=script.seconds)


async def _mint(candidate: Candidate, client: _Client) -> tuple[str, str]:
    """A build token from the reference's page of the launch, or else the reason why there is none."""
    if candidate.reference is None:
        return "", "there is no reference"
    # BinderHub binds the token to the Origin, or without one to the Host, which differs between members.
    target = f"{candidate.base_path}v2/{candidate.launch}"
    page = await client.get(target, candidate.reference, Origin=candidate.origin)
    if isinstance(page, _Silence) or page.status != 200:
        return "", f"the reference's page: {_unexpected(page)}"
    token = find_token(page.body.decode("utf-8", "replace"))
    return token, "the reference's page has no build token"


def find_token(page: str) -> str:
    """The build token in a BinderHub's page of a launch, or nothing."""
    return next((found[1] for pattern in _TOKENS if (found := pattern.search(page))), "")


def _judge_token(heard: Heard | _Silence) -> Check:
    name = "build token"
    if isinstance(heard, _Silence) or heard.status != 200:
        return _check(name, CheckOutcome.SKIPPED, _unexpected(heard))
    first = next((event for event in heard.events if event.get("phase")), None)
    if first is None:
        return _check(name, CheckOutcome.SKIPPED, "no event arrived")
    if first["phase"] != "failed":
        return _check(name, CheckOutcome.OK, "accepted")
    message = str(first.get("message", ""))
    if message.startswith(_REFUSED):
        fix = (
            "Set BINDERHUB_BUILD_TOKEN_SECRET to the same value on all members: by default it is random, and "
            "launches that move to another member fail. If it is, compare the clocks, and let Origin through."
        )
        return _check(name, CheckOutcome.FAILED, f"refused: {message}", fix)
    return _check(name, CheckOutcome.SKIPPED, f"the launch failed: {message}")


def _judge_stream(candidate: Candidate, heard: Heard | _Silence) -> list[Check]:
    if isinstance(heard, _Silence):
        fix = "A build's first event comes within 25 s. Does a proxy in front hold the response back?"
        return [_check("event stream", CheckOutcome.FAILED, heard.why, fix)]
    head = _judge_head(heard)
    if heard.status != 200:
        return [head]
    return [head, _judge_cors(candidate, heard), _judge_launch(heard), judge_moves(heard)]


def _judge_head(heard: Heard) -> Check:
    headers = heard.headers
    kind, coding = headers.get("Content-Type", ""), headers.get("Content-Encoding", "identity")
    wrong, fix = "", ""
    if heard.status != 200:
        wrong = _unexpected(heard)
        fix = "BinderHub reports failures within the stream: a proxy in front must forward /build/."
    elif kind.partition(";")[0].strip().lower() != "text/event-stream":
        wrong = f"Content-Type {kind or 'is missing'}"
        fix = "Is /build/ forwarded to BinderHub, with its Accept header?"
    elif "Content-Length" in headers:
        wrong = f"Content-Length {headers['Content-Length']}"
        fix = "A proxy read the stream to its end before sending it: disable buffering in front of BinderHub."
    elif coding.lower() != "identity":
        wrong = f"Content-Encoding {coding}"
        fix = "Disable compression for text/event-stream: it delays events."
    values: dict[str, Any] = {"status": heard.status}
    if wrong:
        return _check("event stream", CheckOutcome.FAILED, wrong, fix, **values)
    return _check("event stream", CheckOutcome.OK, f"200, {kind}", **values)


def _judge_cors(candidate: Candidate, heard: Heard) -> Check:
    allowed = heard.headers.get("Access-Control-Allow-Origin")
    if allowed in ("*", candidate.origin):
        return _check("cors", CheckOutcome.OK, f"Access-Control-Allow-Origin: {allowed}")
    seen = f"Access-Control-Allow-Origin: {allowed}" if allowed else "no Access-Control-Allow-Origin"
    fix = 'Set BinderHub.cors_allow_origin to "*": pages elsewhere (thebe, Jupyter Book) launch, too.'
    return _check("cors", CheckOutcome.WARNING, seen, fix)


def _judge_launch(heard: Heard) -> Check:
    phases = list(dict.fromkeys(str(phase)[:32] for event in heard.events if (phase := event.get("phase"))))
    values: dict[str, Any] = {"phases": phases}
    failed = next((event for event in heard.events if event.get("phase") == "failed"), None)
    if failed is not None:
        fix = "See BinderHub's log for the reason, or use another --repository."
        return _check("launch", CheckOutcome.WARNING, f"failed: {failed.get('message', '')}", fix, **values)
    if not heard.events:
        return _check("launch", CheckOutcome.SKIPPED, "no event arrived", **values)
    return _check(
        "launch", CheckOutcome.OK, f"started: {', '.join(phases) or 'no phase yet'}; abandoned", **values
    )


def judge_moves(heard: Heard) -> Check:
    """Whether a stream's events arrived as they were produced."""
    fix = "Disable response buffering in front of BinderHub (nginx: proxy_buffering off)."
    if not heard.reads:
        seen = heard.broken or ("it ended without an event" if heard.ended else "nothing arrived")
        return _check("unbuffered", CheckOutcome.FAILED, seen, fix)
    first, count = heard.reads[0]
    values: dict[str, Any] = {"first": first, "apart": heard.apart, "events": len(heard.events)}
    if count > _AT_ONCE:
        seen = f"the first {count} events arrived at once, after {_time(first)}"
        return _check("unbuffered", CheckOutcome.FAILED, seen, fix, **values)
    if heard.apart >= _APART:
        seen = f"the first bytes after {_time(first)}, more {_time(heard.apart)} later"
        return _check("unbuffered", CheckOutcome.OK, seen, **values)
    if any(event.get("phase") == "failed" for event in heard.events):
        return _check("unbuffered", CheckOutcome.SKIPPED, "the launch failed at once", **values)
    how = heard.broken or ("then it ended" if heard.ended else "then nothing more arrived")
    seen = f"all {len(heard.events)} events arrived at once, {how}"
    return _check("unbuffered", CheckOutcome.FAILED, seen, fix, **values)


# -- texts


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number and number > 0 else str(error) or type(error).__name__


def _words(text: str) -> str:
    """Another program's text, shortened to one line."""
    line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return line if len(line) <= _LONGEST_WORDS else f"{line[: _LONGEST_WORDS - 3]}..."
