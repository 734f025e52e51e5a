"""Asks a candidate as an edge would, and listens to its launches."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from fedproxy import __version__
from fedproxy.control.candidate.check import EMBED, Candidate, Redaction, reason
from fedproxy.control.fetch import FAULTS, LARGEST, Fetched, fetch, open_session
from fedproxy.decide.launch import End, FailureTable, Launch
from fedproxy.observe.access_log import MASK, mask_target
from fedproxy.wire.events import EventReader

APART: Final = 0.1  # seconds between two reads that cannot have been one write
AT_ONCE: Final = 16  # more events than a member produces at once
#: No BinderHub has a provider of this name: it refuses such a launch at once, and starts nothing.
NO_LAUNCH: Final = "fedproxy-probe/none/HEAD"
_PATIENCE: Final = 6
_LARGEST_STREAM: Final = 16 << 20
_MOST_READS: Final = 64
_MOST_EVENTS: Final = 256
_LAST: Final = ("ready", "failed")
# What llhttp says of heads that leave open where the body ends.
_FRAMING: Final = (
    ("can't be present with", "sent both Content-Length and Transfer-Encoding"),
    ("Duplicate Content-Length", "sent two Content-Length"),
)
_COMMENT: Final = re.compile(rb"[\r\n]:")


@dataclass(frozen=True)
class Silence:
    """No valid response, and why. `gone`: not even a connection. `invalid`: what came is not HTTP."""

    why: str
    gone: bool = False
    invalid: bool = False


@dataclass(frozen=True)
class Session:
    """The server that a launch has started: its URL, and the secret that opens it."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Heard:
    """A launch's stream, as far as it was read.

    reads: for each piece that arrived, seconds since the request and the number of events that ended in it;
    of many, the first ones and the last. ended: by the candidate. broken: how it broke off, if it did.
    comments: how many arrived. silence: the longest time without a byte, in seconds, after the first. count:
    of all events; `events` are the first ones and the last. launch: how it went. session: what it started.
    late: there was no more time. most: events in one read.
    """

    status: int
    headers: Mapping[str, str]
    reads: tuple[tuple[float, int], ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    ended: bool = False
    broken: str = ""
    comments: int = 0
    silence: float = 0.0
    count: int = 0
    http: str = "1.1"
    launch: Launch | None = None
    session: Session | None = None
    late: bool = False
    most: int = 0

    @property
    def apart(self) -> float:
        """Seconds between the first read and the last."""
        return self.reads[-1][0] - self.reads[0][0] if self.reads else 0.0

    @property
    def failure(self) -> Mapping[str, Any] | None:
        """The event that says that the launch failed."""
        return next((event for event in self.events if event.get("phase") == "failed"), None)

    @property
    def launch_host(self) -> str:
        """The URL that the BinderHub gives itself, by what reached it; nothing before a launch is ready."""
        said = [event.get("binder_launch_host") for event in self.events if event.get("phase") == "ready"]
        return said[0] if said and isinstance(said[0], str) else ""


class CandidateClient:
    """Sends requests as an edge would. `reused`: requests that used the connection of an earlier one.

    `busy` is told what a launch does meanwhile.
    """

    def __init__(
        self,
        candidate: Candidate,
        tls: ssl.SSLContext,
        redaction: Redaction,
        busy: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.reused = 0
        self._candidate = candidate
        self._redaction = redaction
        self._busy = busy
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(self._count)
        self._session = open_session(
            {"User-Agent": f"fedproxy-probe/{__version__}", "Accept-Encoding": "gzip, deflate, br"},
            aiohttp.TCPConnector(resolver=aiohttp.AsyncResolver(), ssl=tls),
            trace=trace,
        )

    async def __aenter__(self) -> CandidateClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _count(self, *_: object) -> None:
        self.reused += 1

    def _say(self, label: str, phase: str) -> None:
        if label:
            self._busy(f"{label}: {phase}")

    async def get(
        self,
        target: str,
        member: str | None = None,
        most: int = LARGEST,
        method: str = "GET",
        fields: Mapping[str, str] | None = None,
    ) -> Fetched | Silence:
        """One request, to the candidate or to `member`, and its whole body. Redirects are not followed."""
        url = URL((member or self._candidate.url) + target, encoded=True)
        timeout = self._candidate.timeout
        # JSON and HTML are requested uncompressed.
        headers = {"Accept-Encoding": "identity", **(fields or {})}
        try:
            return await fetch(self._session, url, timeout=timeout, most=most, headers=headers, method=method)
        except TimeoutError:
            return Silence(f"no complete response within {timeout:g} s")
        except FAULTS as error:
            return silence_of(error)

    async def ask_embed(self) -> Fetched | Silence:
        """The preflight of a page elsewhere that is about to launch. It starts nothing."""
        candidate = self._candidate
        fields = {
            "Origin": EMBED,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "cache-control",
        }
        return await self.get(
            f"{candidate.base_path}build/{candidate.launch}", method="OPTIONS", fields=fields
        )

    async def refuse(self, visitor: str = "") -> Heard | Silence:
        """A launch of a page elsewhere that is refused: it starts nothing, but counts in the rate limit.

        `visitor`: the address that it would be for.
        """
        fields = {"Origin": EMBED}
        if visitor:
            fields |= {"X-Forwarded-For": visitor, "X-Real-IP": visitor}
        target = f"{self._candidate.base_path}build/{NO_LAUNCH}"
        return await self._listen(target, fields, patience=self._candidate.timeout)

    async def listen(self, token: str = "", *, whole: bool = False, label: str = "") -> Heard | Silence:
        """Starts a launch, and leaves when its stream has delivered events, ended, or took too long.

        `token`: the build token to send, if any. It is masked in what is heard. `whole`: listen until the
        launch is ready or has failed. `label`: what this one is called.
        """
        candidate = self._candidate
        target = f"{candidate.base_path}build/{candidate.launch}"
        if token:
            target += f"{'&' if '?' in target else '?'}build_token={token}"
            self._redaction.hide(token)
        fields = {"Origin": candidate.origin}
        patience = _PATIENCE * candidate.timeout
        return await self._listen(target, fields, token, patience=patience, whole=whole, label=label)

    async def _listen(
        self,
        target: str,
        fields: Mapping[str, str],
        token: str = "",
        *,
        patience: float,
        whole: bool = False,
        label: str = "",
    ) -> Heard | Silence:
        url = URL(self._candidate.url + target, encoded=True)
        headers = {"Accept": "text/event-stream", **fields}
        loop = asyncio.get_running_loop()
        ear: _Ear | None = None
        start = time.monotonic()
        try:
            async with (
                asyncio.timeout(patience) as limit,
                self._session.get(url, headers=headers, allow_redirects=False) as response,
            ):
                ear = _Ear(response, start, token, whole, lambda phase: self._say(label, phase))
                if whole:
                    limit.reschedule(loop.time() + self._candidate.launch_timeout)
                await ear.listen()
                response.close()
        except TimeoutError:
            if ear is None:
                return Silence(f"no response head within {patience:g} s")
            ear.late = True
        except FAULTS as error:
            if ear is None:
                return silence_of(error)
            ear.broken = fault(error)
        heard = ear.heard()
        if heard.session is not None:
            self._redaction.hide(heard.session.token)
        return heard


class _Decoder:
    """Decompresses a stream that should not be compressed, so that its server can still be stopped."""

    def __init__(self, coding: str) -> None:
        known = coding.strip().lower() in ("gzip", "x-gzip", "deflate")
        self._inflate = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS) if known else None

    def feed(self, piece: bytes) -> bytes:
        """What a piece adds; of one that is far too large, and of garbage, nothing."""
        if self._inflate is None:
            return piece
        try:
            return self._inflate.decompress(piece, LARGEST)
        except zlib.error:
            return b""


class _Ear:
    """The part of a stream that arrived so far. `late`: there was no more time."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        start: float,
        secret: str,
        whole: bool,
        told: Callable[[str], None],
    ) -> None:
        self.broken = ""
        self.late = False
        self._start = start
        self._secret = secret
        self._whole = whole
        self._told = told
        self._response = response
        self._headers = CIMultiDict(
            (name, _without(secret, value)) for name, value in response.headers.items()
        )
        self._reads: list[tuple[float, int]] = []
        self._events: list[Mapping[str, Any]] = []
        self._count = self._comments = self._most = 0
        self._silence = 0.0
        self._end_of_last = b"\n"
        self._launch = Launch(FailureTable(), 0.0)
        self._session: Session | None = None
        self._answered = False
        self._ended = False

    async def listen(self) -> None:
        """Reads until it has delivered events, ended, or proved not to be a stream."""
        if self._response.status != 200:
            return
        size = 0
        most = _LARGEST_STREAM if self._whole else LARGEST
        events = EventReader()
        decoder = _Decoder(self._headers.get("Content-Encoding", ""))
        async for arrived in self._response.content.iter_any():
            piece = decoder.feed(arrived)
            now = time.monotonic() - self._start
            found = events.feed(piece)
            self._note(piece, found, now)
            if self._over(len(found)):
                return
            size += len(piece)
            if size > most:
                self.broken = f"and it was more than {most >> 20} MiB"
                return
        self._ended = True

    def _note(self, piece: bytes, found: list[bytes | None], now: float) -> None:
        if self._reads:
            self._silence = max(self._silence, now - self._reads[-1][0])
        if len(self._reads) >= _MOST_READS:
            self._reads.pop()
        self._reads.append((now, len(found)))
        self._comments += len(_COMMENT.findall(self._end_of_last + piece))
        self._end_of_last = piece[-1:]
        self._count += len(found)
        self._most = max(self._most, len(found))
        before = self._launch.phase
        for data in found:
            self._take(data, now)
        if self._launch.phase is not None and self._launch.phase != before:
            self._told(self._launch.phase)

    def _take(self, data: bytes | None, now: float) -> None:
        self._launch.event(data, now)
        # As a launch is followed, most events are lines of a log.
        if len(self._events) >= _MOST_EVENTS and self._launch.end is None:
            return
        event = _event(data, self._secret)
        phase = event.get("phase")
        self._answered = self._answered or bool(phase)
        if phase == "ready":
            # The secret goes no further than to where it is used.
            event = {name: value for name, value in event.items() if name != "token"}
            said = _event(data, "")
            if isinstance(said.get("url"), str) and isinstance(said.get("token"), str):
                self._session = Session(said["url"], said["token"])
        if len(self._events) < _MOST_EVENTS or phase in _LAST:
            del self._events[_MOST_EVENTS:]
            self._events.append(event)

    def _over(self, found: int) -> bool:
        if self._launch.end is not None and (self._whole or self._launch.end is End.FAILED):
            return True
        if self._whole:
            return False
        # Comments show that a stream moves; what a member thinks of a token only its first event says.
        answered = not self._secret or self._answered
        return answered and (self._reads[-1][0] - self._reads[0][0] >= APART or found > AT_ONCE)

    def heard(self) -> Heard:
        """The same, for the verdict."""
        now = time.monotonic() - self._start
        if self._response.status == 200:
            self._launch.close(End.LOST if self._ended or self.broken else End.ABANDONED, now)
        version = self._response.version
        return Heard(
            self._response.status,
            self._headers,
            tuple(self._reads),
            tuple(self._events),
            self._ended,
            self.broken,
            self._comments,
            self._silence,
            self._count,
            f"{version.major}.{version.minor}" if version is not None else "1.1",
            self._launch,
            self._session,
            self.late,
            self._most,
        )


def _without(secret: str, text: str) -> str:
    return text.replace(secret, MASK) if secret else text


def _event(data: bytes | None, secret: str) -> dict[str, Any]:
    try:
        event = json.loads(_without(secret, (data or b"").decode()))
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def silence_of(error: Exception) -> Silence:
    """What a failed request says."""
    gone = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError, ConnectionError))
    invalid = isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError))
    return Silence(fault(error), gone, invalid)


def fault(error: Exception) -> str:
    """Why a request failed, in words that carry nothing of it."""
    match error:
        case aiohttp.ClientConnectorError(os_error=cause):
            return f"no connection: {reason(cause)}"
        case aiohttp.ServerDisconnectedError():
            return "closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return "broke off its response"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            said = str(error)
            return next((ours for theirs, ours in _FRAMING if theirs in said), "sent no valid HTTP")
        case OSError():
            return reason(error)
        case _:
            return str(error) or type(error).__name__


def unexpected(found: Fetched | Heard | Silence) -> str:
    """What came in place of the answer that was wanted."""
    if isinstance(found, Silence):
        return found.why
    if 300 <= found.status < 400:
        place = mask_target(found.headers.get("Location", "nowhere"))
        return f"answered {found.status}, a redirect to {place}"
    return f"answered {found.status}"


def remedy(candidate: Candidate, found: Fetched | Heard | Silence, otherwise: str) -> str:
    """What to do about an unexpected answer: a redirect and an end have their own advice."""
    if isinstance(found, Silence):
        if found.gone:
            return (
                "It answered a moment ago. Does it restart, is it overloaded, or does something in front of "
                "it block this address? See its log, and try again."
            )
        return otherwise
    if not 300 <= found.status < 400:
        return otherwise
    try:
        place = URL(candidate.url).join(URL(found.headers.get("Location", "")))
    except ValueError:
        return otherwise
    if place.host != URL(candidate.url).host:
        return (
            "It sends visitors to another host, and an edge follows no redirects: probe that host if "
            "BinderHub is there, or forward the path instead."
        )
    if place.origin() != URL(candidate.url).origin():
        return "Use the URL that it redirects to: an edge follows no redirects."
    return otherwise


def is_page(found: Fetched) -> bool:
    """Whether an answer is HTML, whatever it should be."""
    kind = found.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml") or found.body.lstrip()[:1] == b"<"
