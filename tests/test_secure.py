"""TLS between a transport that notes what it is told and a protocol, with OpenSSL's own client or server.

Not among the tests of the compiled edge: classes of a test cannot inherit from compiled ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import pytest
import trustme
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedproxy.proxy.flow import Flow
from fedproxy.proxy.secure import TLSTransport, wire_of
from tests.rig import until

RECORD = 1 << 14
LONG = bytes(range(256)) * 1024  # 256 KiB


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("mybinder.org").configure_cert(server)
    authority.configure_trust(client)
    return server, client


class Wire(asyncio.Transport):
    """What would be next to the system. full: bytes that the system has not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.told: list[str] = []
        self.full = 0
        self.largest = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        # As uvloop's does.
        assert "eof" not in self.told, "written behind the end"
        self.sent += data
        self.largest = max(self.largest, len(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent

    def write_eof(self) -> None:
        self.told.append("eof")

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.told or "abort" in self.told

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def get_write_buffer_size(self) -> int:
        return self.full


class Noting(Flow):
    """Notes what it is told. stays: a half-closed connection suits it."""

    def __init__(self, stays: bool = False) -> None:
        super().__init__()
        self.got: list[bytes] = []
        self.told: list[str] = []
        self.error: Exception | None = None
        self.stays = stays

    def data_received(self, data: bytes) -> None:
        self.got.append(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.stays

    def cut_off(self) -> None:
        self.told.append("cut off")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.error = exc


class Pausing(Noting):
    """Reads nothing more once something has come."""

    def __init__(self, edge: TLSTransport) -> None:
        super().__init__()
        self.edge = edge

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.edge.pause_reading()


class Begun:
    def __init__(self, above: Flow, welcome: bool = True) -> None:
        self.above = above
        self.welcome = welcome
        self.told: list[str] = []
        self.error: Exception | None = None

    def begins(self, wire: asyncio.Transport) -> bool:
        self.told.append("begins")
        return self.welcome

    def ready(self, transport: TLSTransport) -> None:
        self.told.append("ready")
        transport.set_protocol(self.above)

    def failed(self, error: Exception | None) -> None:
        self.told.append("failed")
        self.error = error


class Pair:
    """The edge's side, and the other side of the connection."""

    def __init__(self, *, side: str = "server", above: Noting | None = None, **more: Any) -> None:
        serving, asking = contexts()
        self.wire = Wire()
        self.above = above or Noting()
        self.handshake = Begun(self.above, more.pop("welcome", True))
        is_server = side == "server"
        name = None if is_server else "mybinder.org"
        own, others = (serving, asking) if is_server else (asking, serving)
        self.edge = TLSTransport(own, self.handshake, server_side=is_server, server_hostname=name, **more)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.other = others.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=not is_server,
            server_hostname="mybinder.org" if is_server else None,
        )
        self.edge.connection_made(self.wire)

    def shake(self, split: int = 1 << 20) -> Pair:
        for _ in range(4):
            self.incoming.write(self.wire.take())
            with contextlib.suppress(ssl.SSLWantReadError):
                self.other.do_handshake()
            self.deliver(self.outgoing.read(), split)
        assert self.handshake.told == ["begins", "ready"]
        return self

    def deliver(self, data: bytes, split: int = 1 << 20) -> None:
        for at in range(0, len(data), split):
            self.edge.data_received(data[at : at + split])

    def say(self, data: bytes) -> bytes:
        """What the other side sends, encrypted."""
        view = memoryview(data)
        while view:
            view = view[self.other.write(view) :]
        return self.outgoing.read()

    def bye(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.other.unwrap()
        return self.outgoing.read()

    def heard(self) -> tuple[bytes, bool]:
        """What the other side has received, and whether that was all."""
        self.incoming.write(self.wire.take())
        pieces = []
        try:
            while piece := self.other.read(RECORD):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces), False
        except ssl.SSLZeroReturnError:
            pass
        return b"".join(pieces), True


@pytest.fixture(params=["server", "client"])
async def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(side=request.param).shake()


@given(
    sizes=st.lists(st.integers(1, 3 * RECORD), min_size=1, max_size=5),
    split=st.integers(1, 5 * RECORD),
    side=st.sampled_from(["server", "client"]),
)
@example(sizes=[RECORD, RECORD], split=RECORD, side="server")
@example(sizes=[1], split=1, side="client")
@example(sizes=[5 * RECORD], split=1 << 20, side="server")
@settings(max_examples=60)
def test_what_is_said_arrives_however_it_is_split(sizes: list[int], split: int, side: str) -> None:
    async def check() -> None:
        pair = Pair(side=side).shake(max(split, 7))
        said = [LONG[size : 2 * size] for size in sizes]
        pair.deliver(b"".join(map(pair.say, said)), max(split, 7))
        assert b"".join(pair.above.got) == b"".join(said)

    asyncio.run(check())


@given(sizes=st.lists(st.integers(0, 3 * RECORD), max_size=6), together=st.booleans())
@example(sizes=[RECORD], together=True)
@example(sizes=[RECORD - 1, 1, 1], together=True)
@example(sizes=[3, 4 * RECORD - 3], together=True)
@example(sizes=[0, 0], together=False)
@settings(max_examples=60)
def test_what_is_written_arrives_in_order_and_a_record_at_a_time(sizes: list[int], together: bool) -> None:
    async def check() -> None:
        pair = Pair().shake()
        pair.heard()
        pair.wire.largest = 0
        parts: list[bytes | memoryview] = [LONG[size : 2 * size] for size in sizes]
        if together:
            pair.edge.writelines([memoryview(part) for part in parts])
        else:
            for part in parts:
                pair.edge.write(part)
        assert pair.heard() == (b"".join(parts), False)
        # OpenSSL's buffer never shrinks, so it must never hold more than a record.
        assert pair.wire.largest <= RECORD + 256

    asyncio.run(check())


@pytest.mark.parametrize("size", [600, RECORD, 3 * RECORD])
async def test_other_side_that_wants_small_records_gets_all(size: int) -> None:
    class Small(ssl.SSLObject):
        """As where `max_fragment_length` was agreed on: each write makes one record (RFC 6066 section 4)."""

        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:512])

    serving, _ = contexts()
    serving.sslobject_class = Small
    try:
        pair = Pair().shake()
    finally:
        serving.sslobject_class = ssl.SSLObject
    pair.edge.write(LONG[:size])
    pair.edge.writelines([LONG[:100], LONG[:size]])
    assert pair.heard() == (LONG[:size] + LONG[:100] + LONG[:size], False)


async def test_one_delivery_for_each_read(pair: Pair) -> None:
    pair.deliver(pair.say(b"a") + pair.say(b"b" * 5 * RECORD))
    assert pair.above.got == [b"a" + b"b" * 5 * RECORD]


async def test_data_that_comes_with_the_end_of_the_handshake_is_delivered() -> None:
    pair = Pair()
    for _ in range(3):
        with_it = b""
        try:
            pair.other.do_handshake()
            with_it = pair.say(b"at once")
        except ssl.SSLWantReadError:
            with_it = pair.outgoing.read()
        pair.deliver(with_it)
        pair.incoming.write(pair.wire.take())
    assert b"".join(pair.above.got).startswith(b"at once")


async def test_handshake_that_is_not_welcome_is_dropped_before_anything_is_computed() -> None:
    pair = Pair(welcome=False)
    assert pair.wire.told == ["abort"]
    pair.edge.connection_lost(None)
    assert pair.handshake.told == ["begins", "failed"]
    assert pair.wire.sent == b""


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), bytes(500)]
)
async def test_what_is_no_handshake_is_an_error(said: bytes) -> None:
    pair = Pair()
    pair.deliver(said)
    assert "close" in pair.wire.told
    pair.deliver(said)  # more of the same is already on its way
    pair.edge.connection_lost(None)
    assert pair.handshake.told == ["begins", "failed"]
    assert isinstance(pair.handshake.error, ssl.SSLError)


async def test_client_that_does_not_trust_the_certificate_says_why() -> None:
    pair = Pair(side="client")
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mybinder.org").configure_cert(stranger)
    pair.other = stranger.wrap_bio(pair.incoming, pair.outgoing, server_side=True)
    pair.incoming.write(pair.wire.take())
    with pytest.raises(ssl.SSLWantReadError):
        pair.other.do_handshake()
    pair.deliver(pair.outgoing.read())
    pair.edge.connection_lost(None)
    assert isinstance(pair.handshake.error, ssl.SSLCertVerificationError)
    pair.incoming.write(pair.wire.take())
    with pytest.raises(ssl.SSLError, match="alert unknown ca"):
        pair.other.do_handshake()


async def test_connection_that_is_lost_within_the_handshake() -> None:
    pair = Pair()
    pair.edge.pause_writing()
    pair.edge.resume_writing()
    pair.edge.eof_received()
    pair.edge.connection_lost(ConnectionResetError())
    assert isinstance(pair.handshake.error, ConnectionResetError)
    assert pair.above.told == []


async def test_closing_within_the_handshake_drops_the_connection() -> None:
    pair = Pair()
    pair.edge.close()
    assert pair.wire.told == ["abort"]
    pair.edge.write(b"x")
    assert pair.wire.sent == b""


# The end


async def test_other_side_ends_and_so_does_the_edge(pair: Pair) -> None:
    pair.edge.write(b"before")
    pair.deliver(pair.say(b"last") + pair.bye())
    assert pair.above.got == [b"last"]
    assert pair.above.told == ["eof"]
    assert pair.heard() == (b"before", True)
    # It has said everything, so nothing has to be waited for.
    assert pair.wire.told == ["close"]
    pair.edge.connection_lost(None)
    assert pair.above.told == ["eof", "lost"]
    assert pair.above.error is None


async def test_end_of_tcp_alone_may_be_anybodys(pair: Pair) -> None:
    pair.deliver(pair.say(b"half"))
    pair.edge.eof_received()
    pair.edge.connection_lost(None)
    assert pair.above.told == ["cut off", "lost"]


async def test_end_of_tcp_behind_close_notify_is_no_news(pair: Pair) -> None:
    pair.deliver(pair.bye())
    pair.edge.eof_received()
    assert pair.above.told == ["eof"]


async def test_protocol_that_stays_may_write_on() -> None:
    pair = Pair(above=Noting(stays=True)).shake()
    pair.heard()
    pair.deliver(pair.bye())
    assert not pair.edge.is_closing()
    pair.edge.write(b"still")
    assert pair.heard() == (b"still", False)


async def test_edge_ends_and_throws_away_what_still_comes(pair: Pair) -> None:
    pair.edge.write(b"answer")
    pair.edge.close()
    pair.edge.close()
    pair.edge.write(b"too late")
    assert pair.edge.is_closing()
    assert pair.wire.told == ["eof"]
    pair.deliver(pair.say(b"nobody reads this"))
    assert pair.above.got == []
    assert pair.heard() == (b"answer", True)
    # The other side has seen the end, and says its own.
    pair.other.unwrap()
    pair.deliver(pair.outgoing.read())
    assert pair.wire.told == ["eof", "close"]
    pair.edge.connection_lost(None)
    assert pair.above.told == ["lost"]


async def test_nonsense_behind_the_edges_end_is_an_end(pair: Pair) -> None:
    pair.edge.close()
    pair.deliver(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert pair.wire.told == ["eof", "abort"]


async def test_closing_reads_on_so_that_the_end_is_seen(pair: Pair) -> None:
    pair.edge.pause_reading()
    assert not pair.edge.is_reading()
    pair.edge.close()
    assert pair.wire.told == ["pause", "eof", "resume"]


async def test_member_that_does_not_end_is_dropped_in_time() -> None:
    pair = Pair(side="client", goodbye=0.0).shake()
    pair.edge.close()
    assert pair.wire.told == ["eof"]
    await until(lambda: pair.wire.told == ["eof", "abort"], "its time is over")


async def test_end_that_came_while_nothing_was_read_is_told_when_the_connection_is_lost(pair: Pair) -> None:
    above = Pausing(pair.edge)
    pair.edge.set_protocol(above)
    pair.deliver(pair.say(b"all of it") + pair.bye())
    pair.edge.connection_lost(ConnectionResetError())
    assert above.told == ["eof", "lost"]
    assert isinstance(above.error, ConnectionResetError)


async def test_what_is_no_record_is_answered_by_an_alert(pair: Pair) -> None:
    pair.deliver(pair.say(b"good") + b"\x17\x03\x03\x00\x20" + bytes(32))
    assert pair.above.got == [b"good"]
    assert pair.wire.told == ["close"]
    assert pair.edge.is_closing()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
        pair.heard()
    pair.edge.connection_lost(None)
    assert pair.above.told == ["lost"]
    assert isinstance(pair.above.error, ssl.SSLError)


async def test_small_read_that_is_no_record(pair: Pair) -> None:
    pair.deliver(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert pair.wire.told == ["close"]


async def test_alert_does_not_wait_for_who_reads_nothing(pair: Pair) -> None:
    pair.wire.full = 1
    pair.deliver(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert pair.wire.told == ["abort"]


async def test_abort_says_nothing(pair: Pair) -> None:
    pair.wire.take()
    pair.edge.abort()
    assert pair.wire.told == ["abort"]
    assert pair.wire.sent == b""
    pair.edge.close()
    assert pair.wire.told == ["abort"]


# Back-pressure


async def test_pausing_is_said_by_the_transport_below(pair: Pair) -> None:
    pair.edge.pause_writing()
    pair.edge.resume_writing()
    pair.edge.resume_writing()
    assert pair.above.told == ["pause", "resume"]
    pair.wire.full = 5
    assert pair.edge.get_write_buffer_size() == 5


async def test_end_waits_until_reading_goes_on(pair: Pair) -> None:
    above = Pausing(pair.edge)
    pair.edge.set_protocol(above)
    pair.deliver(pair.say(b"much") + pair.bye())
    assert above.told == []
    pair.edge.resume_reading()
    pair.edge.resume_reading()
    # Not within the call.
    assert above.told == []
    await asyncio.sleep(0)
    assert above.told == ["eof"]
    await asyncio.sleep(0)
    assert above.told == ["eof"]


async def test_reading_that_pauses_again_does_not_see_the_end(pair: Pair) -> None:
    pair.edge.pause_reading()
    pair.deliver(pair.bye())
    pair.edge.resume_reading()
    pair.edge.pause_reading()
    await asyncio.sleep(0)
    assert pair.above.told == []
    pair.edge.resume_reading()
    await asyncio.sleep(0)
    assert pair.above.told == ["eof"]


async def test_who_makes_the_edge_answer_and_reads_nothing_is_dropped(pair: Pair) -> None:
    # As requests for new keys do (RFC 8446 section 4.6.3); Python's client cannot send them.
    pair.wire.full = 1
    outgoing = cast(Any, pair.edge)._outgoing
    for number in range(100):
        outgoing.write(bytes(1000))
        pair.deliver(pair.say(b"x"))
        if pair.edge.is_closing():
            assert 60 < number < 70
            break
    assert pair.wire.told == ["abort"]


async def test_who_reads_the_answers_may_go_on(pair: Pair) -> None:
    outgoing = cast(Any, pair.edge)._outgoing
    for _ in range(100):
        outgoing.write(bytes(1000))
        pair.deliver(pair.say(b"x"))
    assert pair.wire.told == []


# What others look at


async def test_what_is_below_and_what_is_known(pair: Pair) -> None:
    assert wire_of(pair.edge) is pair.wire
    assert wire_of(pair.wire) is pair.wire
    assert pair.edge.get_extra_info("ssl_object") is pair.edge.tls
    assert pair.edge.get_extra_info("nothing", 5) == 5
    assert pair.edge.get_protocol() is pair.above
    assert not pair.edge.can_write_eof()
    assert repr(pair.edge) == "<TLSTransport open>"
