"""The server of a trial launch: whether it answers, and WebSockets reach it. Then it is stopped.

A candidate chooses the server's URL. A server of the internet that names a private address would have this
machine ask its own neighbours, so that is refused.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from fedproxy import __version__
from fedproxy.config.address import LINK
from fedproxy.control.candidate.check import EMBED, Candidate, Check, CheckOutcome, make, show_time, skip
from fedproxy.control.candidate.client import Session, Silence, silence_of, unexpected
from fedproxy.control.candidate.network import is_public
from fedproxy.control.fetch import FAULTS, Fetched, fetch, open_session

_TRIES: Final = 3
_PAUSE: Final = 0.5  # seconds; what routes to a new server may be a moment behind
_STARTS: Final = 3  # times as long as another answer may take, until a kernel has started
_STOPS: Final = 10.0  # seconds at most for the last request, also after Ctrl-C
_CLOSES: Final = 1.0  # seconds at most for the end of a WebSocket
_MOST_FRAMES: Final = 100
_LARGEST_FRAME: Final = 1 << 20
_STRIPPED: Final = 'Can "Upgrade" only to "WebSocket"'
_FORWARD: Final = (
    "Forward upgrades to JupyterHub (nginx: proxy_http_version 1.1, and the headers Upgrade and Connection; "
    "Apache: mod_proxy_wstunnel; a CDN: allow WebSockets)."
)


class _Guarded(AbstractResolver):
    """Resolves names, and knows no private address unless it is told that these are allowed."""

    def __init__(self, private: bool) -> None:
        self._private = private
        self._inner = aiohttp.AsyncResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        good = [each for each in found if self._private or is_public(each["host"])]
        if not good:
            raise OSError("its name has a private address")
        return good

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True)
class SessionChecks:
    """What was found out: the two checks, and whether the server took the order to stop."""

    checks: tuple[Check, ...]
    stopped: bool


class _Server:
    """Requests to one server, with its token and as a page of another site."""

    def __init__(self, candidate: Candidate, session: Session, tls: ssl.SSLContext, private: bool) -> None:
        self._candidate = candidate
        self._base = session.url
        self._fields = {"Authorization": f"token {session.token}"}
        # A handshake would follow redirects, to any address.
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_refuse_redirect)
        self._http = open_session(
            {"User-Agent": f"fedproxy-probe/{__version__}", "Accept-Encoding": "identity"},
            aiohttp.TCPConnector(resolver=_Guarded(private), ssl=tls),
            trace=trace,
        )

    async def close(self) -> None:
        await self._http.close()

    async def ask(
        self, method: str, path: str, content: object = None, *, times: float = 1.0, **fields: str
    ) -> Fetched | Silence:
        """One request below the server's URL, and its whole answer."""
        timeout = times * self._candidate.timeout
        try:
            return await fetch(
                self._http,
                URL(self._base + path, encoded=True),
                timeout=timeout,
                headers={**self._fields, **fields},
                method=method,
                content=content,
            )
        except TimeoutError:
            return Silence(f"no complete response within {timeout:g} s")
        except FAULTS as error:
            return silence_of(error)

    async def exchange(self, path: str, message: object, wanted: str) -> str:
        """Sends a message over a WebSocket, and waits for `wanted` in an answer: why it failed, if so."""
        timeout = self._candidate.timeout
        url = URL(self._base + path, encoded=True)
        closing = aiohttp.ClientWSTimeout(ws_close=_CLOSES)
        opened: aiohttp.ClientWebSocketResponse | None = None
        try:
            async with asyncio.timeout(timeout):
                opened = await self._http.ws_connect(
                    url, headers=self._fields, max_msg_size=_LARGEST_FRAME, timeout=closing
                )
                await opened.send_json(message)
                return await _answer(opened, wanted)
        except TimeoutError:
            return f"no {'message came back' if opened else 'answer'} within {timeout:g} s"
        except aiohttp.WSServerHandshakeError as error:
            return await self._why_not(path, error.status)
        except FAULTS as error:
            return silence_of(error).why
        finally:
            # Its own answer to that is not waited for as long as a message.
            if opened is not None:
                await opened.close()

    async def _why_not(self, path: str, status: int) -> str:
        """What a refused handshake means: the server says if it saw no upgrade."""
        plain = await self.ask("GET", path)
        body = "" if isinstance(plain, Silence) else plain.body[:1000].decode("utf-8", "replace")
        if status == 400 and _STRIPPED in body:
            return f"answered {status}: the server saw no upgrade, so something on the way removed it"
        return f"answered {status} instead of 101"


async def _refuse_redirect(_: object, __: object, found: aiohttp.TraceRequestRedirectParams) -> None:
    answer = found.response
    answer.close()
    raise aiohttp.WSServerHandshakeError(answer.request_info, answer.history, status=answer.status)


async def try_session(
    candidate: Candidate,
    session: Session,
    tls: ssl.SSLContext,
    reached: str,
    busy: Callable[[str], None],
    *,
    only_stop: bool = False,
) -> SessionChecks:
    """Uses the server that is ready, and tells it to stop; also if this is cancelled.

    `reached`: an address of the candidate. `only_stop`: nothing but that.
    """
    private = not is_public(reached)
    wrong = judge_url(session.url, private=private)
    if wrong and only_stop:
        return SessionChecks((), False)
    if wrong:
        fix = "Set BinderHub.hub_url to the URL at which visitors reach JupyterHub."
        failed = make("session", CheckOutcome.FAILED, wrong, fix)
        return SessionChecks((failed, *skip("because of: session", "websocket")), False)
    server = _Server(candidate, session, tls, private)
    checks: list[Check] = []
    stopped = False
    try:
        if not only_stop:
            busy("using the server that was started")
            checks.append(await _answers(candidate, session, server))
            if checks[0].outcome is CheckOutcome.FAILED:
                checks += skip("because of: session", "websocket")
            else:
                checks.append(await _socket(server))
    finally:
        # Nobody is coming to use it.
        try:
            async with asyncio.timeout(_STOPS):
                answer = await server.ask("POST", "api/shutdown")
            stopped = not isinstance(answer, Silence) and 200 <= answer.status < 300
        except TimeoutError:
            stopped = False
        finally:
            await server.close()
    return SessionChecks(tuple(checks), stopped)


def judge_url(url: str, *, private: bool) -> str:
    """Why the URL of a server cannot be used; nothing if it can. `private`: private addresses are allowed."""
    if LINK.parse(url) is None:
        return "its URL is not an http:// or https:// URL"
    parsed = URL(url, encoded=True)
    host = parsed.host or ""
    if not url.endswith("/") or parsed.query_string or parsed.fragment:
        return "its URL has no path that ends with a slash"
    try:
        public = is_public(host)
    except ValueError:
        return ""
    return "" if public or private else "its URL has a private address"


async def _answers(candidate: Candidate, session: Session, server: _Server) -> Check:
    """Whether the server answers with its token, and to pages of other sites."""
    found: Fetched | Silence = Silence("nothing")
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(_PAUSE)
        found = await server.ask("GET", "api/status", Origin=EMBED)
        if not isinstance(found, Silence) and found.status == 200:
            break
    host = URL(session.url).host
    values: dict[str, Any] = {"host": host}
    if isinstance(found, Silence) or found.status != 200:
        fix = (
            "The launch said ready, but visitors would see an error: is JupyterHub's proxy reachable at "
            "BinderHub.hub_url?"
        )
        return make("session", CheckOutcome.FAILED, f"{host}: {unexpected(found)}", fix, **values)
    allowed = found.headers.get("Access-Control-Allow-Origin")
    values |= {"cors": allowed, "seconds": found.seconds}
    if candidate.address.tls and session.url.startswith("http:"):
        fix = "Set BinderHub.hub_url to an https:// URL: the token of the session is sent to it."
        return make("session", CheckOutcome.WARNING, f"{host}: not encrypted", fix, **values)
    if allowed not in ("*", EMBED):
        said = f"Access-Control-Allow-Origin: {allowed}" if allowed else "no Access-Control-Allow-Origin"
        seen = f"{host}: {said}"
        fix = "Set BinderSpawner.cors_allow_origin: pages elsewhere (thebe, Jupyter Book) use servers, too."
        return make("session", CheckOutcome.WARNING, seen, fix, **values)
    seen = f"{host}: answers with its token in {show_time(found.seconds)}"
    return make("session", CheckOutcome.OK, seen, **values)


async def _socket(server: _Server) -> Check:
    """The check of WebSockets: with a kernel, or else with a terminal."""
    kernel = _named(await server.ask("POST", "api/kernels", {}, times=_STARTS), "id")
    if kernel:
        number = uuid.uuid4().hex
        path = f"api/kernels/{kernel}/channels?session_id={number}"
        check = await _exchanged(server, "a kernel", path, _kernel_info(number), number)
        await server.ask("DELETE", f"api/kernels/{kernel}")
        return check
    terminal = _named(await server.ask("POST", "api/terminals", {}), "name")
    if terminal:
        check = await _exchanged(
            server, "a terminal", f"terminals/websocket/{terminal}", ["stdin", "echo $((6*7))\r"], "42"
        )
        await server.ask("DELETE", f"api/terminals/{terminal}")
        return check
    return make("websocket", CheckOutcome.SKIPPED, "the server starts neither a kernel nor a terminal")


async def _exchanged(server: _Server, what: str, path: str, message: object, wanted: str) -> Check:
    start = time.monotonic()
    why = await server.exchange(path, message, wanted)
    seconds = time.monotonic() - start
    values: Mapping[str, Any] = {"with": what, "seconds": seconds}
    if why:
        return make("websocket", CheckOutcome.FAILED, f"{what}: {why}", _FORWARD, **values)
    return make("websocket", CheckOutcome.OK, f"{what} answered in {show_time(seconds)}", **values)


async def _answer(opened: aiohttp.ClientWebSocketResponse, wanted: str) -> str:
    """Waits for a message with `wanted` in it: why there is none, or nothing."""
    for _ in range(_MOST_FRAMES):
        frame = await opened.receive()
        if frame.type is aiohttp.WSMsgType.TEXT and wanted in frame.data:
            return ""
        if frame.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return "it was closed before a message came back"
    return "other messages came, and none of them an answer"


def _named(found: Fetched | Silence, key: str) -> str:
    """The name in an answer, if it can stand in a path."""
    if isinstance(found, Silence) or found.status not in (200, 201):
        return ""
    try:
        said = json.loads(found.body)
    except (ValueError, RecursionError):
        return ""
    name = said.get(key) if isinstance(said, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= 64:
        return ""
    return name if all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in name) else ""


def _kernel_info(number: str) -> dict[str, Any]:
    """A message of Jupyter's protocol that every kernel answers."""
    header = {"msg_id": number, "msg_type": "kernel_info_request", "session": number, "version": "5.3"}
    return {
        "header": {**header, "username": "", "date": ""},
        "parent_header": {},
        "metadata": {},
        "content": {},
        "buffers": [],
        "channel": "shell",
    }
