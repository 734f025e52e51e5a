"""The cases that `benchmarks.instructions` counts, each run many times between two calls of `getloadavg`.

That function is a mark: nothing else calls it, and callgrind dumps its counts when it is entered.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable

from benchmarks import hotpath
from fedproxy.decide.breaker import Breaker, BreakerPolicy, Outcome
from fedproxy.decide.federation import Federation, FederationPolicy, Lease
from fedproxy.decide.launch import FailureTable, Launch
from fedproxy.decide.member import Member
from fedproxy.observe.access_log import JsonLines
from fedproxy.record import Record
from fedproxy.wire.events import EventReader
from fedproxy.wire.h1 import request, response
from fedproxy.wire.h1.body import Chunked

TIMES = 300
_WARM = 50

_LINES = (
    b"Host: mybinder.org",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    b"Accept-Language: en-GB,en;q=0.7,de;q=0.3",
    b"Accept-Encoding: gzip, deflate, br, zstd",
    b"Referer: https://mybinder.org/",
    b"Connection: keep-alive",
    b"Upgrade-Insecure-Requests: 1",
    b"Sec-Fetch-Dest: document",
    b"Sec-Fetch-Mode: navigate",
    b"Sec-Fetch-Site: same-origin",
    b"Priority: u=0, i",
)
_BLOCK = b"\r\n".join(_LINES)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: TornadoServer/6.5\r\nContent-Type: text/html; charset=UTF-8\r\n"
    b'Etag: "5d1f8d6c0a"\r\nContent-Length: 4500\r\nDate: Mon, 03 Aug 2026 10:00:%02d GMT\r\n\r\n'
)
_EVENT = b'data: {"phase": "building", "message": "Step %d/52 : RUN apt-get install"}\n\n'
_DATA = b"2000\r\n%b\r\n" % bytes(0x2000)


def _federation() -> Federation:
    members = [
        Member(f"member-{number}", "http://192.0.2.1", Breaker(BreakerPolicy()), weight=1 + number)
        for number in range(3)
    ]
    return Federation(members, FederationPolicy("rendezvous"), random.Random(1))


def _record(number: int) -> Record:
    return Record(
        time=1795934374.0 + number / 1000,
        request_id=f"{number:032x}",
        client="203.0.113.7",
        method="GET",
        host="mybinder.org",
        target="/user/x/lab",
        protocol="HTTP/1.1",
        status=200,
        bytes_out=1024,
        duration=0.0125,
        ttfb=0.012,
        member="member-0",
        attempts=1,
        affinity="cookie",
        user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        referer="https://mybinder.org/",
    )


def _cases() -> dict[str, Callable[[int], object]]:
    """Name -> what is done with the number of the turn."""
    reader = request.BlockReader("fedproxy_member", "https://mybinder.org", trusted=False)
    federation = _federation()
    events = EventReader()
    launch = Launch(FailureTable(), 0.0)
    chunked = Chunked()
    line = JsonLines()

    def settle(lease: object) -> None:
        assert isinstance(lease, Lease)
        federation.settle(lease, Outcome.SUCCESS, 0.0)

    def one_event(number: int) -> None:
        for data in events.feed(_EVENT % number):
            launch.event(data, 0.0)

    return {
        "nothing": lambda _number: None,
        "request line": lambda number: request.read_line(b"GET /v2/gh/org/repo-%d/HEAD HTTP/1.1" % number),
        "request block, another cookie": lambda number: reader.read(
            b"%b\r\nCookie: fedproxy_member=a; _ga=GA1.1.%013d\r\n\r\n" % (_BLOCK, number)
        ),
        "request block, another line": lambda number: reader.read(
            b"%b\r\nIf-None-Match: %013d\r\n\r\n" % (_BLOCK, number)
        ),
        "response head, another second": lambda number: response.read(_HEAD % (number % 60)),
        "chunk of 8 KiB": lambda _number: chunked.feed(_DATA),
        "event of a launch": one_event,
        "line of the access log": lambda number: line(_record(number)),
        "member by cookie": lambda number: settle(
            federation.acquire(None, federation.members[number % 3], (), 0.0)
        ),
        "member by key, seen before": lambda number: settle(
            federation.acquire(b"/build/gh/org/repo-%d" % (number % 10), None, (), 0.0)
        ),
        "member by key, never seen": lambda number: settle(
            federation.acquire(b"/build/gh/other/repo-%d" % number, None, (), 0.0)
        ),
        **{f"whole {name}": _whole(name) for name in hotpath.INPUTS},
    }


def _whole(name: str) -> Callable[[int], object]:
    """Both protocols and everything between them."""
    drive, make = hotpath.driver(name), hotpath.INPUTS[name]
    return lambda _number: drive(make())


def run() -> None:
    """Every case in order; each is warm before its counts begin."""
    # The collector would come at a moment that depends on all cases before, and take more than the case.
    gc.disable()
    for case in _cases().values():
        for number in range(_WARM):
            case(number)
        os.getloadavg()
        for number in range(_WARM, _WARM + TIMES):
            case(number)
        os.getloadavg()


if __name__ == "__main__":
    if sys.argv[1:] == ["--names"]:
        print("\n".join(_cases()))
    else:
        run()
