"""A name server on loopback that says what it is told, byte for byte (RFC 1035)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

A, CNAME, AAAA, SRV = 1, 5, 28, 33
NO_ERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5


@dataclass
class Reply:
    """What is said to a question: records as `(type, seconds to live, data)`, an error, or nothing at all."""

    records: list[tuple[int, int, bytes]] = field(default_factory=list)
    code: int = NO_ERROR
    silent: bool = False

    @classmethod
    def of(cls, *addresses: str, ttl: int = 1) -> Reply:
        """Addresses of one family; none is NODATA."""
        return cls([(AAAA if ":" in each else A, ttl, _packed(each)) for each in addresses])

    @classmethod
    def services(cls, *records: tuple[int, int, int, str], ttl: int = 1) -> Reply:
        """SRV records: priority, weight, port and target."""
        return cls([(SRV, ttl, struct.pack(">HHH", *each[:3]) + encoded(each[3])) for each in records])

    @classmethod
    def alias(cls, name: str, *addresses: str, ttl: int, of_address: int) -> Reply:
        """A CNAME, and the addresses of the name behind it."""
        records = [(A, of_address, _packed(each)) for each in addresses]
        return cls([(CNAME, ttl, encoded(name)), *records])


class Zone(asyncio.DatagramProtocol):
    """The name server. `replies` by name and type; what is not there has no data.

    `asked` are the questions that came, in order. With `rotate`, one of its replies after the other answers
    all questions for A. Those in `cut` are told that more did not fit, and get that reply by TCP.
    """

    def __init__(self) -> None:
        self.replies: dict[tuple[str, int], Reply] = {}
        self.rotate: list[Reply] = []
        self.asked: list[tuple[str, int]] = []
        self.down = False
        self.cut: dict[tuple[str, int], Reply] = {}

    def holds(self, name: str, *addresses: str, ttl: int = 1) -> None:
        """The name has these addresses, and no others."""
        for kind in (A, AAAA):
            own = [each for each in addresses if (":" in each) == (kind == AAAA)]
            self.replies[name, kind] = Reply.of(*own, ttl=ttl)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, kind, _ = _question(data)
        self.asked.append((name, kind))
        if self.rotate and kind == A:
            reply = self.rotate.pop(0)
            self.rotate.append(reply)
        else:
            reply = self.replies.get((name, kind), Reply())
        if reply.silent or self.down:
            return
        out = bytearray(said(data, reply))
        if (name, kind) in self.cut:
            out[2] |= 2  # TC
        self.transport.sendto(bytes(out), addr)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers a question that came by TCP."""
        question = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        name, kind, _ = _question(question)
        answer = said(question, self.cut[name, kind])
        writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()


def said(data: bytes, reply: Reply) -> bytes:
    """The answer to a question."""
    _, _, end = _question(data)
    flags = 0x8580 | reply.code
    out = data[:2] + struct.pack(">HHHHH", flags, 1, len(reply.records), 0, 0) + data[12:end]
    # Each record is of the name asked for, until an alias leads on.
    owner = b"\xc0\x0c"
    for type_, ttl, rdata in reply.records:
        out += owner + struct.pack(">HHIH", type_, 1, ttl, len(rdata)) + rdata
        if type_ == CNAME:
            owner = rdata
    return out


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def encoded(name: str) -> bytes:
    """A name as labels."""
    labels = name.removesuffix(".").split(".") if name != "." else []
    return b"".join(bytes((len(label),)) + label.encode() for label in labels) + b"\0"


def _question(data: bytes) -> tuple[str, int, int]:
    at, labels = 12, []
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode())
        at += 1 + data[at]
    (kind,) = struct.unpack_from(">H", data, at + 1)
    return ".".join(labels).lower(), kind, at + 5


@asynccontextmanager
async def name_server() -> AsyncIterator[Zone]:
    """Runs a name server on a free port of loopback, of UDP and of TCP."""
    zone = Zone()
    while True:
        server = await asyncio.start_server(zone.serve, "127.0.0.1", 0)
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: zone, local_addr=server.sockets[0].getsockname()
            )
            break
        except OSError:
            # Somebody has that port of UDP.
            server.close()
    try:
        yield zone
    finally:
        transport.close()
        server.close()
