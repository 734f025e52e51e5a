"""`python -m benchmarks.decide`: the cost of choosing a member and settling the outcome.

Processor time of one `acquire` and its `settle`, in microseconds: the best of several rounds, because a
disturbance only ever makes a round longer. A hundred other requests are in flight throughout.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import cycle, islice
from time import process_time

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fedproxy.decide.affinity import Source, image_digest
from fedproxy.decide.balancer import BALANCERS
from fedproxy.decide.breaker import Breaker, BreakerPolicy, Outcome
from fedproxy.decide.federation import Federation, FederationPolicy, Lease
from fedproxy.decide.knowledge import Knowledge, Seen
from fedproxy.decide.launch import End
from fedproxy.decide.member import Member
from fedproxy.decide.waits import ExpectedWait

SIZES = (3, 30, 300)
_OTHERS = 100
_WARM_KEYS = 100
_REQUESTS = 300_000

Ask = Callable[[Federation, int], Lease]


def _lease(got: object) -> Lease:
    assert isinstance(got, Lease)
    return got


def _keys(prefix: bytes, count: int) -> list[bytes]:
    return [prefix + b"%d" % number for number in range(count)]


def _pinned(federation: Federation, number: int) -> Lease:
    members = federation.members
    return _lease(federation.acquire(None, members[number % len(members)], (), 0.0))


def _no_key(federation: Federation, _number: int) -> Lease:
    return _lease(federation.acquire(None, None, (), 0.0))


def _warm_key(federation: Federation, number: int) -> Lease:
    return _lease(federation.acquire(_WARM[number % _WARM_KEYS], None, (), 0.0))


def _cold_key(federation: Federation, _number: int) -> Lease:
    return _lease(federation.acquire(next(_COLD), None, (), 0.0))


def _second(federation: Federation, number: int) -> Lease:
    """The first choice failed."""
    members = federation.members
    return _lease(federation.acquire(_WARM[number % _WARM_KEYS], None, members[:1], 0.0))


def _image(federation: Federation, number: int) -> Lease:
    at = number % _WARM_KEYS
    return _lease(federation.acquire(_WARM[at], None, (), 0.0, image=_IMAGES[at]))


def _cold_image(federation: Federation, _number: int) -> Lease:
    key = next(_COLD)
    return _lease(federation.acquire(key, None, (), 0.0, image=key[-8:].rjust(8)))


_WARM = _keys(b"/build/gh/org/repo-", _WARM_KEYS)
_IMAGES = [image_digest(key + b"/HEAD") or b"" for key in _WARM]
_COLD = (b"/build/gh/org/%d" % number for number in cycle(range(10**9)))

CASES: tuple[tuple[str, str, Ask], ...] = (
    ("cookie of a member", "rendezvous", _pinned),
    ("key seen before", "rendezvous", _warm_key),
    ("key seen before, second attempt", "rendezvous", _second),
    ("key never seen", "rendezvous", _cold_key),
    ("no key", "rendezvous", _no_key),
    ("any", "random", _no_key),
    ("any", "least-requests", _no_key),
    ("image at one member", "expected-wait", _image),
    ("image never seen", "expected-wait", _cold_image),
)


def _federation(size: int, balancer: str) -> Federation:
    members = [
        Member(f"member-{number}", "http://192.0.2.1", Breaker(BreakerPolicy()), weight=1 + number % 3)
        for number in range(size)
    ]
    waits = ExpectedWait(Knowledge())
    federation = Federation(members, FederationPolicy(balancer=balancer), random.Random(1), waits)
    for number, image in enumerate(_IMAGES):
        name = members[number % size].name
        federation.learn(Seen(image, name, False, 60.0, 10.0, End.READY), 0.0)
    federation.roll(0.0)
    for member in islice(cycle(members), _OTHERS):
        federation.acquire_member(member, Source.HOST, (), 0.0)
    return federation


def microseconds(size: int, balancer: str, ask: Ask, *, requests: int, rounds: int) -> float:
    """The time of one decision and its settling, in a federation of `size`."""
    federation = _federation(size, balancer)
    best = float("inf")
    for _ in range(rounds):
        start = process_time()
        for number in range(requests):
            federation.settle(ask(federation, number), Outcome.SUCCESS, 0.0)
        best = min(best, process_time() - start)
    return best / requests * 1e6


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--quick", is_flag=True, help="A hundredth of the requests: checks that it runs.")
def main(rounds: int, quick: bool) -> None:
    """Measure the choice of a member, by balancer and by the number of members."""
    assert set(BALANCERS) == {balancer for _, balancer, _ in CASES}
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        title="µs per acquire and settle",
        title_justify="left",
    )
    for column in ("balancer", "visitor"):
        table.add_column(column, no_wrap=True)
    for size in SIZES:
        table.add_column(f"{size}\nmembers", justify="right")
    for visitor, balancer, ask in CASES:
        costs = [
            microseconds(
                size,
                balancer,
                ask,
                requests=_REQUESTS // max(size, 30) // (100 if quick else 1),
                rounds=rounds,
            )
            for size in SIZES
        ]
        table.add_row(balancer, visitor, *(f"{cost:.2f}" for cost in costs))
    Console().print(table)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.decide")
