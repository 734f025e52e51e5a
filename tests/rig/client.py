"""A visitor that sends any bytes at all."""

from __future__ import annotations

import asyncio
import socket
import ssl

from tests.rig.message import Message
from tests.rig.wire import Ended, Recorder, Wire, guard


class RawClient(Wire):
    """A connection to the edge. Everything that waits gives up after `wire.GUARD` seconds."""

    @classmethod
    async def connect(
        cls, address: tuple[str, int], *, tls: ssl.SSLContext | None = None, receive_buffer: int = 0
    ) -> RawClient:
        """Connects; `receive_buffer` in bytes bounds what the kernel takes while nobody reads."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        async with guard():
            try:
                await loop.sock_connect(sock, address)
            except BaseException:
                sock.close()
                raise
            reader = Recorder()
            transport, protocol = await loop.create_connection(
                lambda: asyncio.StreamReaderProtocol(reader),
                sock=sock,
                ssl=tls,
                server_hostname="localhost" if tls else None,
            )
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def send(self, data: bytes) -> None:
        """Sends, and waits until the edge takes more."""
        self.write(data)
        async with guard():
            await self.flush()

    async def response(self, method: str = "GET") -> Message:
        """The next response, with the interim ones before it. `method` is that of the request."""
        async with guard():
            interim = []
            response = await self.head()
            while response.status < 200 and response.status != 101:
                interim.append(response)
                response = await self.head()
            response.interim = interim
            if method == "HEAD" or response.status in (101, 204, 304):
                return response
            await self.body_of(response)
            if response.framing == "none":
                how, response.body = await self.until_end()
                if how == "reset":
                    raise Ended(how, response.body)
                response.framing = "close"
            return response

    async def ask(self, data: bytes, method: str = "GET") -> Message:
        """Sends a request and reads its response."""
        await self.send(data)
        return await self.response(method)

    async def closed(self) -> str:
        """Waits until the edge ends the connection, without another byte: eof or reset."""
        async with guard():
            how, rest = await self.until_end()
        assert rest == b"", rest[:200]
        return how

    async def leave(self) -> None:
        """Closes the connection, if it is not closed yet."""
        self.close()
        try:
            async with guard():
                await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass
