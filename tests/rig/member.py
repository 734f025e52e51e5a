"""Members that do what a script says, and addresses where no member is."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.rig.message import Message
from tests.rig.wire import Ended, Recorder, Wire


class Conn(Wire):
    """One connection that the edge made to a scripted member."""

    def __init__(self, member: Scripted, reader: Recorder, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.member = member

    async def request(self) -> Message:
        """The next request, body and all; only then does it count among the member's `requests`."""
        request = await self.head()
        await self.body_of(request)
        self.member.requests.append(request)
        return request

    def send(self, *pieces: bytes) -> None:
        self.write(b"".join(pieces))

    async def stall(self) -> str:
        """Does nothing until the edge ends the connection: eof or reset."""
        how, _ = await self.until_end()
        return how


Script = Callable[[Conn], Awaitable[None]]


class Scripted:
    """A member that runs `script` for each connection; the connection is closed when the script ends.

    `connections` are all that were ever made, `requests` all that arrived whole, in order. A script may
    end by `Ended`, when the edge leaves; any other error fails the test in `stop`.
    """

    def __init__(
        self,
        script: Script,
        *,
        receive_buffer: int = 0,
        address: tuple[str, int] = ("127.0.0.1", 0),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script
        self._tls = tls
        self._address = address
        self.connections: list[Conn] = []
        self.requests: list[Message] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._receive_buffer = receive_buffer
        self._failures: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"http://{self.authority}"

    @property
    def received(self) -> bytes:
        """Every byte that ever came, connection after connection."""
        return b"".join(conn.received for conn in self.connections)

    def has(self, requests: int) -> bool:
        """Whether that many requests arrived whole."""
        return len(self.requests) >= requests

    @property
    def open(self) -> int:
        """Connections whose script has not ended."""
        return len(self.tasks)

    async def start(self) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET)
        if self._receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(self._address)
        host, self.port = sock.getsockname()[:2]
        self.authority = f"{host}:{self.port}"
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=sock, ssl=self._tls
        )

    async def stop(self) -> None:
        """Ends every connection, and raises what went wrong in a script."""
        self._server.close()
        for conn in self.connections:
            conn.writer.transport.abort()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._failures:
            raise self._failures[0]

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = Recorder()
        return asyncio.StreamReaderProtocol(reader, lambda _, writer: self._connected(reader, writer))

    def _connected(self, reader: Recorder, writer: asyncio.StreamWriter) -> None:
        conn = Conn(self, reader, writer)
        self.connections.append(conn)
        task = asyncio.get_running_loop().create_task(self._run(conn))
        self.tasks.add(task)
        task.add_done_callback(self._done)

    async def _run(self, conn: Conn) -> None:
        try:
            await self.script(conn)
        except Ended:
            pass
        finally:
            conn.close()

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failures.append(error)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def per_request(handle: Callable[[Conn, Message], Awaitable[None]]) -> Script:
    """A script that reads whole requests and handles one after the other, until the edge leaves."""

    async def script(conn: Conn) -> None:
        while not conn.writer.is_closing():
            await handle(conn, await conn.request())

    return script


def answer(*responses: bytes) -> Script:
    """A script that answers whole requests, on each connection, with these in turn; the last one repeats."""

    async def script(conn: Conn) -> None:
        left = list(responses or (OK,))
        while True:
            await conn.request()
            conn.send(left.pop(0) if len(left) > 1 else left[0])

    return script


@contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@contextmanager
def blackhole(address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """The URL of a port that answers no SYN: its queue is full, and nobody accepts."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(address)
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield "http://{}:{}".format(*listener.getsockname())
