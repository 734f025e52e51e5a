"""Debian's Chromium before the edge, with everything of a browser's context on one HTTP/2 connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.async_api import Browser, BrowserContext, Error, Page, expect
from websockets.asyncio.server import ServerConnection, serve

from fedproxy.config.load import parse
from fedproxy.demo.federation import DemoFederation
from fedproxy.serve.service import Service
from tests.rig import Conn, Edge, Message, Scripted, edge, per_request, programs, until
from tests.rig.ways import over_tls

pytestmark = [programs.needs("chromium", "chromium"), pytest.mark.asyncio(loop_scope="module")]

WITHIN = 60.0  # seconds that a test waits for what must come
MANY = 12  # HTTP/1.1's browsers have six connections to a host
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PROTOCOL = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
#: A page with a stream of its own, and what came by it as its title.
LISTENING = """<!DOCTYPE html><html lang="en"><title>-</title><script>
const seen = [], source = new EventSource(location.pathname.replace("page", "stream"));
source.onmessage = (message) => { seen.push(message.data); document.title = seen.join(" "); };
</script></html>"""
#: Opens a WebSocket that lives as long as the page.
OPEN = """(path) => new Promise((resolve, reject) => {
    window.heard = [];
    window.socket = new WebSocket("wss://" + location.host + path);
    window.socket.onmessage = (message) => window.heard.push(message.data);
    window.socket.onerror = () => reject(new Error("the WebSocket failed"));
    window.socket.onopen = () => resolve(null);
})"""
CLOSE = """() => new Promise((resolve) => {
    window.socket.onclose = (event) => resolve([event.code, event.wasClean]);
    window.socket.close(1000);
})"""


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    expect.set_options(timeout=WITHIN * 1000)
    yield
    expect.set_options(timeout=None)


@asynccontextmanager
async def browsing(chromium: Browser) -> AsyncIterator[BrowserContext]:
    """A browser that takes any certificate, and has no cache and no cookies yet."""
    context = await chromium.new_context(ignore_https_errors=True)
    context.set_default_timeout(WITHIN * 1000)
    try:
        yield context
    finally:
        await context.close()


def document(text: str) -> bytes:
    body = text.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Streams:
    """A member whose pages have a stream each: `open` are the streams' connections, by their number."""

    def __init__(self) -> None:
        self.open: dict[int, Conn] = {}
        self.left: set[int] = set()
        self.member = Scripted(per_request(self._serve))

    async def _serve(self, conn: Conn, request: Message) -> None:
        kind, _, number = request.target.decode().strip("/").partition("/")
        if kind != "stream":
            conn.send(document(LISTENING if kind == "page" else "<title>hello</title><h1>Hello</h1>"))
            return
        conn.send(EVENTS)
        self.open[int(number)] = conn
        await conn.stall()
        self.left.add(int(number))

    def say(self, number: int, word: str) -> None:
        event = f"data: {word}-{number}\n\n".encode()
        self.open[number].send(b"%x\r\n%b\r\n" % (len(event), event))


async def opened(context: BrowserContext, *urls: str) -> list[Page]:
    """Each URL in a tab of its own: the first, which makes the connection, and then all others at once."""
    pages = [await context.new_page() for _ in urls]
    await pages[0].goto(urls[0])
    await asyncio.gather(*(page.goto(url) for page, url in zip(pages[1:], urls[1:], strict=True)))
    return pages


async def logged(running: Edge, count: int, **wanted: object) -> list[dict[str, Any]]:
    """So many entries of the access log, once they are there; a browser asks for more than it is told to."""

    def found() -> list[dict[str, Any]]:
        return [line for line in running.log if wanted.items() <= line.items()]

    await until(lambda: len(found()) >= count, lambda: running.log, within=WITHIN)
    assert len(found()) == count
    return found()


async def test_page_comes_by_http_2_over_tls_and_by_http_1_1_where_that_is_all_there_is(
    tmp_path: Path, chromium: Browser
) -> None:
    for http2, protocol in ((True, "h2"), (False, "http/1.1")):
        way = over_tls(tmp_path, http2=http2)
        async with edge(Streams().member.script, listen=way.listen) as running, browsing(chromium) as context:
            (page,) = await opened(context, way.url(running, "/"))
            await expect(page.get_by_role("heading")).to_have_text("Hello")
            assert await page.evaluate(PROTOCOL) == protocol


async def test_twelve_event_streams_are_live_on_one_connection_and_another_page_still_loads(
    tmp_path: Path, chromium: Browser
) -> None:
    way, streams = over_tls(tmp_path), Streams()
    async with edge({"a": streams.member}, listen=way.listen) as running, browsing(chromium) as context:
        pages = await opened(context, *(way.url(running, f"/page/{number}") for number in range(MANY)))
        await until(lambda: len(streams.open) == MANY, lambda: streams.open, within=WITHIN)
        for number in range(MANY):
            streams.say(number, "first")
        for number, page in enumerate(pages):
            await expect(page).to_have_title(f"first-{number}")
        (other,) = await opened(context, way.url(running, "/other"))
        await expect(other.get_by_role("heading")).to_have_text("Hello")
        assert await other.evaluate(PROTOCOL) == "h2"
        for number in reversed(range(MANY)):
            streams.say(number, "second")
        for number, page in enumerate(pages):
            await expect(page).to_have_title(f"first-{number} second-{number}")
        assert len(running.connections) == 1
        # The pages themselves: nothing else has ended.
        assert {line["protocol"] for line in running.log} == {"HTTP/2.0"}


async def test_tab_that_is_closed_ends_its_stream_and_no_other(tmp_path: Path, chromium: Browser) -> None:
    way, streams = over_tls(tmp_path), Streams()
    async with edge({"a": streams.member}, listen=way.listen) as running, browsing(chromium) as context:
        first, second = await opened(context, way.url(running, "/page/1"), way.url(running, "/page/2"))
        await until(lambda: len(streams.open) == 2, lambda: streams.open, within=WITHIN)
        await first.close()
        await until(lambda: streams.left == {1}, lambda: streams.left, within=WITHIN)
        streams.say(2, "still")
        await expect(second).to_have_title("still-2")
        await logged(running, 1, target="/stream/1", termination="CD", protocol="HTTP/2.0")


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


@asynccontextmanager
async def echoing(folder: Path) -> AsyncIterator[tuple[Edge, str]]:
    """An edge before a member of pages and, below `/sockets/`, a member of WebSockets; and its URL."""
    way, pages = over_tls(folder), Streams()
    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        host, port = next(iter(server.sockets)).getsockname()
        members: dict[str, Scripted | str] = {"pages": pages.member, "sockets": f"http://{host}:{port}"}
        routes = [{"path": "/sockets/*", "to": "sockets"}, {"path": "/*", "to": "pages"}]
        async with edge(members, listen=way.listen, routes=routes) as running:
            yield running, way.url(running, "")


async def test_websocket_is_a_stream_of_the_page_s_connection_and_echoes(
    tmp_path: Path, chromium: Browser
) -> None:
    async with echoing(tmp_path) as (running, url), browsing(chromium) as context:
        pages = await opened(context, *(f"{url}/{number}" for number in range(3)))
        await asyncio.gather(*(page.evaluate(OPEN, f"/sockets/{at}") for at, page in enumerate(pages)))
        sizes = [0, 1, 125, 126, 65_535, 65_536, 1_000_000]
        for number, page in enumerate(pages):
            await page.evaluate(
                "([mark, sizes]) => { for (const size of sizes) socket.send(mark + 'x'.repeat(size)); }",
                [f"{number}:", sizes],
            )
        for number, page in enumerate(pages):
            await page.wait_for_function("count => heard.length === count", arg=len(sizes))
            heard = await page.evaluate("heard")
            assert heard == [f"{number}:" + "x" * size for size in sizes]
        assert len(running.connections) == 1
        for page in pages:
            assert await page.evaluate(CLOSE) == [1000, True]
        lines = await logged(running, len(pages), status=101, protocol="HTTP/2.0")
        assert {line["target"] for line in lines} == {"/sockets/0", "/sockets/1", "/sockets/2"}


async def test_websocket_works_by_http_1_1_where_the_listener_speaks_no_other(
    tmp_path: Path, chromium: Browser
) -> None:
    way = over_tls(tmp_path, http2=False)
    async with serve(echo, "127.0.0.1", 0) as server:
        host, port = next(iter(server.sockets)).getsockname()
        members: dict[str, Scripted | str] = {"pages": Streams().member, "sockets": f"http://{host}:{port}"}
        routes = [{"path": "/sockets/*", "to": "sockets"}, {"path": "/*", "to": "pages"}]
        async with edge(members, listen=way.listen, routes=routes) as running, browsing(chromium) as context:
            (page,) = await opened(context, way.url(running, "/"))
            await page.evaluate(OPEN, "/sockets/1")
            await page.evaluate("socket.send('hello')")
            await page.wait_for_function("heard[0] === 'hello'")
            assert await page.evaluate(CLOSE) == [1000, True]
            await logged(running, 1, status=101, protocol="HTTP/1.1", target="/sockets/1")


@pytest.mark.parametrize("status", [200, 403])
async def test_websocket_that_the_member_refuses_is_not_opened_and_the_connection_stays(
    tmp_path: Path, status: int, chromium: Browser
) -> None:
    # A success that is none: by HTTP/1.1 anything but 101 refuses a WebSocket.
    refusal = b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status

    async def handle(conn: Conn, request: Message) -> None:
        conn.send(refusal if request.target == b"/no-socket" else document("<title>hello</title>"))

    way = over_tls(tmp_path)
    async with edge(per_request(handle), listen=way.listen) as running, browsing(chromium) as context:
        (page,) = await opened(context, way.url(running, "/"))
        with pytest.raises(Error, match="the WebSocket failed"):
            await page.evaluate(OPEN, "/no-socket")
        (other,) = await opened(context, way.url(running, "/other"))
        assert await other.evaluate(PROTOCOL) == "h2"
        assert len(running.connections) == 1


async def test_page_uploads_and_downloads_10_mib_whole(tmp_path: Path, chromium: Browser) -> None:
    way = over_tls(tmp_path)

    async def handle(conn: Conn, request: Message) -> None:
        if request.method == b"POST":
            body = request.body
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
            conn.send(head % len(body), body)
        else:
            conn.send(document("<title>hello</title>"))

    async with edge(per_request(handle), listen=way.listen) as running, browsing(chromium) as context:
        (page,) = await opened(context, way.url(running, "/"))
        same = await page.evaluate(
            """async () => {
                const body = new Uint8Array(10 << 20);
                for (let at = 0; at < body.length; at += 65536)
                    crypto.getRandomValues(body.subarray(at, at + 65536));
                const answer = await fetch("/echo", {method: "POST", body});
                const got = new Uint8Array(await answer.arrayBuffer());
                return got.length === body.length && got.every((value, at) => value === body[at]);
            }"""
        )
        assert same
        (line,) = await logged(running, 1, method="POST", protocol="HTTP/2.0")
        assert (line["bytes_in"], line["bytes_out"]) == (10 << 20, 10 << 20)


async def test_twelve_launches_in_tabs_of_one_browser_become_ready(tmp_path: Path, chromium: Browser) -> None:
    way, lines = over_tls(tmp_path), list[str]()
    async with DemoFederation(3, pace=0.1) as federation:
        config = federation.config_dict(0, 0) | {"listen": way.listen}
        service = Service(parse(yaml.safe_dump(config), {}), log=lines.append)
        await service.start()
        try:
            async with browsing(chromium) as context:
                host, port = service.addresses[0]
                urls = [
                    f"https://{host}:{port}/v2/gh/somebody/number-{number}/HEAD" for number in range(MANY)
                ]
                for page in await opened(context, *urls):
                    await expect(page.locator("#phase")).to_have_text("ready")
                    await expect(page.get_by_text("Open your session")).to_be_visible()
                    assert await page.evaluate(PROTOCOL) == "h2"
        finally:
            await service.stop()
        assert sum(hub.launches for hub in federation.hubs) == MANY
    logged = [json.loads(line) for text in lines for line in text.splitlines()]
    builds = [line for line in logged if line["target"].startswith("/build/")]
    assert len(builds) == MANY
    assert {line["protocol"] for line in logged} == {"HTTP/2.0"}
