"""The visitor's side of HTTP/1.1 as a machine: any split and any order of events, the same result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedproxy.bounded import Memo
from fedproxy.errors import BadRequest, BodyTooLarge, HeadTooLarge, TargetTooLong, VisitorError
from fedproxy.http.request import HeaderBlock, RequestLine
from fedproxy.http.response import Response, ResponseHead
from fedproxy.wire.h1 import response
from fedproxy.wire.h1.body import Chunked
from fedproxy.wire.h1.request import BlockReader, read_line
from fedproxy.wire.h1.server import Server, ServerEvent, ServerState
from tests.rig.pieces import pieces

LIMIT = 2048
BODY_LIMIT = 4096
PLAIN, REQUEST, BODY, NOTHING = (
    ServerEvent.PLAIN,
    ServerEvent.REQUEST,
    ServerEvent.BODY,
    ServerEvent.NOTHING,
)


def server() -> Server[RequestLine]:
    machine: Server[RequestLine] = Server()
    blocks = Memo(BlockReader("member", None, trusted=False).read)
    machine.configure(Memo(read_line), blocks, LIMIT, BODY_LIMIT, LIMIT // 2)
    return machine


def head(raw: bytes) -> ResponseHead:
    return response.read(raw + b"\r\n\r\n")


OK = head(b"HTTP/1.1 200 OK\r\nContent-Length: 2")


@dataclass
class Sent:
    """A request as it is sent, and what it means: its target and its body."""

    raw: bytes
    target: bytes
    body: bytes
    last: bool  # the connection ends with it


TARGETS = st.sampled_from([b"/", b"/a", b"/build/gh/a/b/HEAD?x=1", b"/%7E", b"/" + b"p" * 300])
FIELDS = st.sampled_from(
    [b"", b"Accept: */*\r\n", b"Cookie: member=a; b=c\r\n", b"X: " + b"y" * 200 + b"\r\n"]
)


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    target, fields = draw(TARGETS), draw(FIELDS)
    body = draw(st.sampled_from([b"", b"x", b"hello" * 40]))
    framing = draw(st.sampled_from(["none", "length", "chunks"]))
    old, close = draw(st.booleans()), draw(st.booleans())
    blank = draw(st.sampled_from([b"", b"", b"\r\n"]))
    lines = fields
    payload = b""
    if framing == "length":
        lines += b"Content-Length: %d\r\n" % len(body)
        payload = body
    elif framing == "chunks" and not old:
        lines += b"Transfer-Encoding: chunked\r\n"
        size = draw(st.integers(1, 7))
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        payload = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"
    else:
        body = b""
    if old and not close:
        lines += b"Connection: keep-alive\r\n"
    elif close and not old:
        lines += b"Connection: close\r\n"
    version = b"1.0" if old else b"1.1"
    method = b"POST" if payload else b"GET"
    raw = blank + b"%b %b HTTP/%b\r\nHost: h\r\n%b\r\n%b" % (method, target, version, lines, payload)
    return Sent(raw, target, body, close)


class Owner:
    """Does with the machine what a connection does."""

    def __init__(self) -> None:
        self.machine = server()
        self.served: list[tuple[bytes, bytes]] = []
        self.error: type[VisitorError] | None = None
        self.payload = b""

    def _take(self, event: ServerEvent) -> None:
        machine = self.machine
        if event in (PLAIN, REQUEST):
            self.payload = b""
            self.chunks = Chunked(framed=False)
            if machine.state is ServerState.BODY and machine.held:
                self._take(machine.more())
        elif event is BODY:
            data = machine.data
            self.payload += data if machine.block.length is not None else self.chunks.feed(data)

    def receive(self, data: bytes) -> None:
        try:
            self._take(self.machine.receive(data))
        except VisitorError as error:
            self.error = type(error)

    def answer(self) -> None:
        """Answers what is whole, and takes what was held."""
        machine = self.machine
        while machine.state is ServerState.WHOLE and self.error is None:
            self.served.append((machine.line.target, self.payload))
            machine.answer(Response(204))
            if machine.held:
                try:
                    self._take(machine.more())
                except VisitorError as error:
                    self.error = type(error)


@settings(max_examples=300)
@given(
    st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 4000), max_size=12), st.booleans()
)
def test_any_split_means_the_same_whenever_it_is_answered(
    sent: list[Sent], cuts: list[int], late: bool
) -> None:
    stream = b"".join(each.raw for each in sent)
    expected = []
    for each in sent:
        expected.append((each.target, each.body))
        if each.last:
            break
    owner = Owner()
    for piece in pieces(stream, cuts):
        owner.receive(piece)
        if not late:
            owner.answer()
    owner.answer()
    assert owner.error is None
    assert owner.served == expected
    ended = any(each.last for each in sent)
    assert owner.machine.state is (ServerState.LINGERING if ended else ServerState.IDLE)
    assert not owner.machine.held


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", BadRequest),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", BadRequest),
        (b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", BadRequest),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n", BodyTooLarge),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", BadRequest),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" + bytes(5000),
            BodyTooLarge,
        ),
        (b"GET /" + b"a" * 3000, TargetTooLong),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 3000, HeadTooLarge),
        (b"GET / HTTP/1.1\nHost: h\n\n", BadRequest),
        (b" GET / HTTP/1.1\r\n", BadRequest),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_what_is_refused_is_refused_however_it_comes(
    raw: bytes, error: type[VisitorError], size: int
) -> None:
    owner = Owner()
    for at in range(0, len(raw), size):
        owner.receive(raw[at : at + size])
        if owner.error is not None:
            break
    assert owner.error is error
    answer = owner.machine.answer(Response(400), unread=True)
    assert b"\r\nConnection: close\r\n" in answer
    assert owner.machine.state is ServerState.LINGERING
    assert owner.machine.receive(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") is NOTHING


def test_absolute_form_decides_the_host() -> None:
    machine = server()
    assert machine.receive(b"GET http://other:81/x HTTP/1.1\r\nHost: h\r\n\r\n") is REQUEST
    assert (machine.block.host, machine.line.authority) == (b"other:81", b"other:81")


def test_what_follows_an_upgrade_waits_and_ends_the_connection_if_it_is_refused() -> None:
    machine = server()
    asks = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert machine.receive(asks + b"early") is REQUEST
    assert (machine.held, machine.keep) == (b"early", False)
    sent = machine.head(OK, b"I: ", b"1", None, b"ok", True)
    assert sent == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nI: 1\r\nConnection: close\r\n\r\nok"
    assert machine.state is ServerState.LINGERING


GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n"
UNKNOWN = head(b"HTTP/1.1 200 OK")
CHUNKED = head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("asked", "answer", "parts", "sent"),
    [
        (GET, OK, [b"o", b"k"], b"Content-Length: 2\r\nI: 1\r\n\r\nok"),
        (
            GET,
            UNKNOWN,
            [b"o", b"k"],
            b"I: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        ),
        (GET, UNKNOWN, [b"", b"ok"], b"I: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        (GET, UNKNOWN, [b"ok"], b"I: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        (
            GET,
            CHUNKED,
            [b"2\r\nok\r\n", b"0\r\n\r\n"],
            b"I: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        (OLD, OK, [b"ok"], b"Content-Length: 2\r\nI: 1\r\nConnection: keep-alive\r\n\r\nok"),
        (OLD, CHUNKED, [b"o", b"k"], b"I: 1\r\nConnection: close\r\n\r\nok"),
        (GET.replace(b"GET", b"HEAD"), UNKNOWN, [b""], b"I: 1\r\n\r\n"),
    ],
)
def test_response_ends_as_its_visitor_can_see(
    asked: bytes, answer: ResponseHead, parts: list[bytes], sent: bytes
) -> None:
    machine = server()
    machine.receive(asked)
    first, *rest = parts
    out = machine.head(answer, b"I: ", b"1", None, first, not rest)
    for at, part in enumerate(rest):
        out += machine.body(part, at == len(rest) - 1)
    assert out == b"HTTP/1.1 200 OK\r\n" + sent
    closes = b"Connection: close" in sent
    assert machine.state is (ServerState.LINGERING if closes else ServerState.IDLE)


def test_known_heads_that_are_not_plain_are_looked_at_each_time() -> None:
    machine = server()
    for _ in range(3):
        assert machine.receive(OLD) is REQUEST
        machine.answer(Response(204))
    for _ in range(3):
        assert machine.receive(GET) is PLAIN
        machine.answer(Response(204))


def test_request_of_which_a_body_is_expected_is_not_looked_up_with_it() -> None:
    looked_up: list[int] = []
    if hasattr(Memo, "__mypyc_attrs__") or hasattr(Server, "__mypyc_attrs__"):
        # What is compiled takes no subclass; the source is the same, and benchmarks.instructions counts both.
        return

    class Noting(Memo[HeaderBlock]):
        def get(self, key: bytes, default: Any = None) -> Any:
            looked_up.append(len(key))
            return super().get(key, default)

    machine = server()
    reader = BlockReader("member", None, trusted=False)
    lines = Memo(read_line)
    machine.configure(lines, Noting(reader.read), 65536, 1 << 20, 4096)
    posted = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000\r\n\r\n" + bytes(50_000)
    for _ in range(3):
        assert machine.receive(posted) is REQUEST
        assert machine.more() is BODY
        assert machine.done
        machine.answer(Response(204))
    assert not looked_up


def test_switching_says_to_what() -> None:
    machine = server()
    machine.receive(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    switching = head(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket")
    sent = machine.head(switching, b"I: ", b"1", None, b"hi", False)
    assert sent.endswith(b"\r\nI: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")


def test_it_is_shown_with_its_state() -> None:
    machine = server()
    assert repr(machine) == "<Server idle>"
    machine.receive(GET)
    assert repr(machine) == f"<Server {machine.state.value}>" != "<Server idle>"


def test_length_that_was_allowed_stays_allowed() -> None:
    machine = server()
    assert machine.receive(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n") is REQUEST
    machine.configure(machine.lines, machine.blocks, LIMIT, 4, LIMIT // 2)
    assert machine.receive(b"123456789") is BODY
    assert machine.done
    machine.answer(Response(204))
    with pytest.raises(BodyTooLarge):
        machine.receive(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")


def test_early_answer_ends_the_connection() -> None:
    machine = server()
    assert machine.receive(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n") is REQUEST
    assert b"\r\nConnection: close\r\n" in machine.head(OK, b"I: ", b"1", b"a=b", b"ok", True)
    assert machine.state is ServerState.LINGERING


def test_interim_answers_and_the_head_of_a_cache_have_a_status_line() -> None:
    machine = server()
    machine.receive(GET)
    made = ResponseHead(103, b"Early Hints")
    made.lines = b"Link: </x>\r\n"
    assert machine.interim(made) == b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    machine.head(OK, b"I: ", b"1", None, b"ok", True)
    machine.receive(OLD)
    assert machine.interim(made) == b""
    kept = OK.with_fields([*OK.fields(), (b"Age", b"7")], length=2)
    kept.start = b""
    assert machine.head(kept, b"I: ", b"1", None, b"ok", True).startswith(
        b"HTTP/1.1 200 OK\r\nAge: 7\r\nContent-Length: 2\r\n"
    )


class Connection(RuleBasedStateMachine):
    """Anything, in any order: no exception but a refusal, and nothing is handed out that was not sent."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = server()
        self.asked = 0
        self.sent = 0
        self.blocked = False

    def _take(self, event: ServerEvent) -> None:
        if event in (PLAIN, REQUEST):
            self.asked += 1
            assert not self.blocked
        assert self.asked <= self.sent

    @rule(
        data=st.sampled_from(
            [
                GET,
                OLD,
                GET[:9],
                GET[9:],
                b"\r\n",
                b"\r",
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\no",
            ]
        )
    )
    def receive(self, data: bytes) -> None:
        self.sent += data.count(b"/")
        was = self.machine.state
        try:
            event = self.machine.receive(data)
        except VisitorError:
            self.machine.answer(Response(400), unread=True)
        else:
            assert was is not ServerState.LINGERING or event is NOTHING
            self._take(event)

    @precondition(lambda self: self.machine.held and not self.blocked)
    @rule()
    def more(self) -> None:
        try:
            self._take(self.machine.more())
        except VisitorError:
            self.machine.answer(Response(400), unread=True)

    @precondition(lambda self: self.machine.state in (ServerState.WHOLE, ServerState.BODY))
    @rule(whole=st.booleans(), unknown=st.booleans())
    def respond(self, whole: bool, unknown: bool) -> None:
        head_ = UNKNOWN if unknown else OK
        self.machine.head(head_, b"I: ", b"1", None, b"ok" if whole else b"", whole)
        if not whole:
            self.machine.body(b"ok", True)

    @rule()
    def block(self) -> None:
        self.blocked = True
        self.machine.block_reading()

    @rule()
    def unblock(self) -> None:
        self.blocked = False
        self.machine.unblock_reading()

    @invariant()
    def nothing_is_lost(self) -> None:
        machine = self.machine
        if machine.state is ServerState.IDLE:
            assert not machine.held and not self.blocked
        if machine.state is ServerState.LINGERING:
            assert not machine.held
        assert machine.begun in (True, False)
        assert machine.state.value in repr(machine)


TestConnection = Connection.TestCase
