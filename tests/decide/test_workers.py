"""What a worker makes of what the others tell."""

from __future__ import annotations

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import BreakerState, Outcome
from fedproxy.decide.federation import Federation, Lease
from fedproxy.decide.limit import client_key
from fedproxy.decide.member import Member
from tests.rig.build import federation, member


def test_launches_elsewhere_count_against_what_a_member_may_have() -> None:
    a = member("a", max_launches=2)
    a.launches, a.launches_elsewhere = 1, 1
    assert a.full(launch=True)
    assert not a.full()
    a.launches_elsewhere = 0
    assert not a.full(launch=True)


def test_breaker_that_opens_is_told_of_once() -> None:
    told: list[str] = []
    a = member("a")
    a.on_trip = told.append
    a.breaker.trip(0.0, 0.0)
    assert told == ["a"]


def test_member_that_failed_elsewhere_is_left_out_here_and_nobody_is_told_again() -> None:
    told: list[str] = []
    a, b, c = member("a"), member("b"), member("c")
    members = federation(a, b, c)
    a.on_trip = told.append
    members.trip(a, 0.0)
    assert a.breaker.state is BreakerState.OPEN
    assert told == []
    assert a.on_trip is not None
    lease = members.acquire(None, a, (), 1.0)
    assert isinstance(lease, Lease)
    assert lease.member is not a


def test_no_more_breakers_open_by_hearsay_than_may_be_open() -> None:
    a, b, c = member("a"), member("b"), member("c")
    members = federation(a, b, c)
    for each in (a, b, c):
        members.trip(each, 0.0)
    assert c.breaker.state is BreakerState.CLOSED
    generation = a.breaker.generation
    members.trip(a, 1.0)
    assert a.breaker.generation == generation


X, Y, Z = b"192.0.2.1", b"192.0.2.2", b"192.0.2.3"


def once(members: Federation, at: Member, outcome: Outcome, client: bytes) -> None:
    lease = members.acquire_member(at, Source.HOST, (), 0.0)
    assert isinstance(lease, Lease)
    members.settle(lease, outcome, 0.0, client)


def test_what_one_client_saw_elsewhere_does_not_open_it_where_others_have_success() -> None:
    a, b = member("a"), member("b")
    members = federation(a, b)
    once(members, a, Outcome.SUCCESS, Y)
    members.trip(a, 0.0, frozenset((client_key(X),)))
    assert a.breaker.closed
    members.trip(a, 0.0, frozenset((client_key(X), client_key(Z))))
    assert a.breaker.opened_by == {client_key(X), client_key(Z)}


def test_witnesses_here_and_elsewhere_add_up() -> None:
    a, b = member("a"), member("b")
    members = federation(a, b)
    once(members, a, Outcome.SUCCESS, Y)
    once(members, a, Outcome.FAILURE, Z)
    members.trip(a, 0.0, frozenset((client_key(X),)))
    assert not a.breaker.closed
