"""What visitors do: a browser, or a page that keeps no cookies, and a notebook that is open there."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tests.rig.members import PUBLIC

_PATIENCE = 60.0
_PACE = 0.1  # seconds between two rounds of a notebook: JupyterLab lets ten pass
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


class _Anywhere(AbstractResolver):
    """Every name is the edge's."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        ip, at = self._address
        return [
            ResolveResult(
                hostname=host, host=ip, port=at, family=family, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Answer:
    """What came in the end, after all redirects, from `path` with its query."""

    status: int
    path: str
    text: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Visitor:
    """One visitor of the edge. An answer that was not expected, or none, fails the test.

    Only where `cuts` says that connections may be cut, a request is made again, once, if it can be, as
    browsers do. `origin` is that of the page whose scripts ask.
    """

    def __init__(self, session: aiohttp.ClientSession, origin: str) -> None:
        self.session = session
        self.origin = origin
        self.cuts = False
        self.key = ""  # a token that is sent with every request

    async def ask(
        self, method: str, path: str, *, expect: int | tuple[int, ...] = 200, content: object = None
    ) -> Answer:
        """A request of a script in a page, with JSON or nothing."""
        headers = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", **self._standing()}
        if (token := self.cookie("_xsrf", path)) is not None:
            headers["X-XSRFToken"] = token
        if method not in ("GET", "HEAD") or self.origin != PUBLIC:
            headers["Origin"] = self.origin
        # A file, because aiohttp sends it in pieces and not at once.
        body = None if content is None else io.BytesIO(json.dumps(content).encode())
        return await self._ask(method, path, expect, headers, data=body)

    async def visit(self, path: str, *, expect: int = 200, form: Mapping[str, str] | None = None) -> Answer:
        """Goes to a page, with what was typed into a form or not, and on to where it redirects."""
        said = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", **self._standing()}
        said["Accept"] = "text/html,application/xhtml+xml,*/*;q=0.8"
        if form is not None:
            said["Origin"] = self.origin
        return await self._ask("GET" if form is None else "POST", path, expect, said, data=form)

    async def events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, each as it comes; no more after the stream's end."""
        headers = {"Accept": "text/event-stream", "Sec-Fetch-Mode": "cors", **self._standing()}
        if self.origin != PUBLIC:
            headers["Origin"] = self.origin
        async with self.session.get(URL(PUBLIC + path, encoded=True), headers=headers) as response:
            assert response.status == 200, (response.status, await response.text())
            assert response.content_type == "text/event-stream"
            async for line in response.content:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

    async def launch(self, spec: str, build_token: str = "") -> list[dict[str, Any]]:
        """Launches PROVIDER/SPEC: its events up to the last."""
        query = f"?build_token={build_token}" if build_token else ""
        seen: list[dict[str, Any]] = []
        async for event in self.events(f"/build/{spec}{query}"):
            seen.append(event)
            if event["phase"] in ("ready", "failed"):
                break
        return seen

    async def launched(self, spec: str) -> Launched:
        """Launches as the page of a launch does."""
        page = await self.visit(f"/v2/{spec}")
        found = re.search(r'"buildToken": "([^"]+)"', page.text)
        assert found, page.text
        return Launched.of(await self.launch(spec, found[1]))

    async def socket(self, path: str) -> aiohttp.ClientWebSocketResponse:
        headers = {"Sec-Fetch-Mode": "websocket", **self._standing()}
        return await self.session.ws_connect(
            PUBLIC + path, origin=self.origin, headers=headers, max_msg_size=0
        )

    def cookie(self, name: str, path: str = "/") -> str | None:
        """What it would send at that path."""
        found = self.session.cookie_jar.filter_cookies(URL(PUBLIC + path, encoded=True)).get(name)
        return None if found is None else found.value

    @property
    def member(self) -> str | None:
        """Whom its cookie names, which may say more."""
        value = self.cookie("fedproxy_member")
        return None if value is None else value.partition("!")[0]

    @member.setter
    def member(self, name: str) -> None:
        self.session.cookie_jar.update_cookies({"fedproxy_member": name}, URL(PUBLIC))

    def _standing(self) -> dict[str, str]:
        site = "same-origin" if self.origin == PUBLIC else "cross-site"
        return {"Sec-Fetch-Site": site, **({"Authorization": f"token {self.key}"} if self.key else {})}

    async def _ask(
        self, method: str, path: str, expect: int | tuple[int, ...], headers: dict[str, str], **body: Any
    ) -> Answer:
        expected = (expect,) if isinstance(expect, int) else expect
        try:
            answer = await self._once(method, path, headers, **body)
        except aiohttp.ClientConnectionError:
            if not self.cuts or method not in _IDEMPOTENT:
                raise
            answer = await self._once(method, path, headers, **body)
        assert answer.status in expected, (method, path, answer)
        return answer

    async def _once(self, method: str, path: str, headers: dict[str, str], **body: Any) -> Answer:
        url = URL(path if path.startswith("http") else PUBLIC + path, encoded=True)
        async with self.session.request(method, url, headers=headers, **body) as response:
            text = await response.text()
            return Answer(response.status, response.url.raw_path_qs, text, response.headers)


@dataclass(frozen=True)
class Launched:
    """A server that a launch has started: the path of its URL, and its token."""

    base: str
    token: str

    @classmethod
    def of(cls, events: list[dict[str, Any]]) -> Self:
        last = events[-1]
        assert last["phase"] == "ready", events
        assert last["url"].startswith(f"{PUBLIC}/user/"), last
        return cls(last["url"].removeprefix(PUBLIC), last["token"])


class Notebook:
    """A notebook that is open in a visitor's page, with a kernel of its own, below `base`.

    `rounds` counts how often it asked what it asks. `meanwhile` is said with what fails.
    """

    def __init__(self, visitor: Visitor, base: str) -> None:
        self.visitor = visitor
        self.base = base
        self.rounds = 0
        self.meanwhile = "nothing happens"
        self._mark = uuid.uuid4().hex
        self._session = self._kernel = ""
        self._socket: aiohttp.ClientWebSocketResponse
        self._turned = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def opened(cls, visitor: Visitor, base: str) -> AsyncIterator[Self]:
        """Opens a notebook, and its page's first round of questions."""
        notebook = cls(visitor, base)
        await notebook._open()
        try:
            yield notebook
        finally:
            await notebook._socket.close()
        await visitor.ask("DELETE", f"{base}api/sessions/{notebook._session}", expect=204)

    async def _open(self) -> None:
        name = f"{self._mark}.ipynb"
        content = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
        answer = await self.visitor.ask("POST", f"{self.base}api/sessions", content=content, expect=201)
        self._session, self._kernel = answer.json["id"], answer.json["kernel"]["id"]
        await self._connect()
        assert await self._said(f"mark = {self._mark!r}; print(mark)") == self._mark
        await self.round()

    async def _connect(self) -> None:
        self._socket = await self.visitor.socket(
            f"{self.base}api/kernels/{self._kernel}/channels?session_id={self._mark}"
        )

    async def round(self) -> None:
        """What JupyterLab asks for again and again; the kernel must still know what it was told at first."""
        kernels = (await self.visitor.ask("GET", f"{self.base}api/kernels")).json
        assert self._kernel in [kernel["id"] for kernel in kernels], kernels
        sessions = (await self.visitor.ask("GET", f"{self.base}api/sessions")).json
        assert self._kernel in [session["kernel"]["id"] for session in sessions], sessions
        await self.visitor.ask("GET", f"{self.base}api/contents?content=1")
        assert await self._said("print(mark)") == self._mark
        self.rounds += 1
        self._turned.set()

    async def turns(self, count: int) -> None:
        """Returns once so many more rounds have begun and ended."""
        wanted = self.rounds + count + 1
        while self.rounds < wanted:
            self._turned.clear()
            await self._turned.wait()

    async def work(self) -> None:
        """Round after round, until it is cancelled."""
        try:
            while True:
                await self.round()
                await asyncio.sleep(_PACE)
        except Exception as error:
            error.add_note(f"{self.base} while: {self.meanwhile}")
            raise

    async def _said(self, code: str) -> str:
        """Has the kernel run `code`: what it printed."""
        while True:
            try:
                return await self._run(code)
            except ConnectionError:
                if not self.visitor.cuts:
                    raise
            try:
                await self._connect()
            except aiohttp.ServerDisconnectedError:
                # It went on a kept connection to the worker that is gone; the next must do.
                await self._connect()

    async def _run(self, code: str) -> str:
        number = uuid.uuid4().hex
        header = {"msg_id": number, "msg_type": "execute_request", "session": self._mark, "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": {**header, "username": ""}, "content": content, "channel": "shell"}
        await self._socket.send_json({**message, "parent_header": {}, "metadata": {}, "buffers": []})
        printed = ""
        while True:
            reply = await _next(self._socket)
            if reply["parent_header"].get("msg_id") != number:
                continue
            if reply["msg_type"] == "stream":
                printed += reply["content"]["text"]
            if reply["msg_type"] == "status" and reply["content"]["execution_state"] == "idle":
                return printed.strip()


async def _next(websocket: aiohttp.ClientWebSocketResponse) -> Any:
    message = await websocket.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise ConnectionResetError(f"the WebSocket ended: {message}")
    return json.loads(message.data)


async def terminal_says(visitor: Visitor, base: str, command: str, wanted: str) -> None:
    """Types a command into a new terminal, and waits until the terminal shows what is wanted."""
    name = (await visitor.ask("POST", f"{base}api/terminals", content={})).json["name"]
    async with await visitor.socket(f"{base}terminals/websocket/{name}") as websocket:
        await websocket.send_json(["stdin", f"{command}\r"])
        shown = ""
        while wanted not in shown:
            kind, *text = await _next(websocket)
            if kind == "stdout":
                shown += text[0]
    await visitor.ask("DELETE", f"{base}api/terminals/{name}", expect=204)


@asynccontextmanager
async def visiting(
    address: tuple[str, int], *, cookies: bool = True, origin: str = PUBLIC
) -> AsyncIterator[Visitor]:
    """A visitor of the edge at that address."""
    jar = aiohttp.CookieJar() if cookies else aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=_Anywhere(address), use_dns_cache=False),
        cookie_jar=jar,
        timeout=aiohttp.ClientTimeout(_PATIENCE),
    ) as session:
        # What it repeats in silence would not be seen here.
        session._retry_connection = False
        yield Visitor(session, origin)


async def turned(*notebooks: Notebook, count: int = 1) -> None:
    """Returns once each has gone through so many more rounds, from their beginning to their end."""
    await asyncio.gather(*(notebook.turns(count) for notebook in notebooks))


@asynccontextmanager
async def at_work(*notebooks: Notebook) -> AsyncIterator[None]:
    """While the block runs, so do they; whatever fails fails the block at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(notebook.work()) for notebook in notebooks]
        yield
        for task in tasks:
            task.cancel()
