from __future__ import annotations

import pickle

import pytest

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import EdgeCounts, MemberCounts
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import (
    WORST_FIRST,
    AddressState,
    Snapshot,
    Status,
    Survey,
    add_up,
    merge,
    shares,
    snapshot,
)
from tests.rig.build import member


def test_snapshot_is_the_member_as_it_is_and_can_be_sent() -> None:
    gesis = member("gesis", weight=50.0)
    gesis.in_flight = 3
    gesis.counts.codes[200] = 7
    taken = pickle.loads(pickle.dumps(snapshot(gesis, 0.0, idle=1, busy=2)))
    assert (taken.name, taken.weight, taken.share, taken.in_flight) == ("gesis", 50.0, 50.0, 3)
    assert (taken.idle, taken.busy, taken.counts.codes[200]) == (1, 2, 7)
    assert taken.takes_visitors


def test_status_is_one_word_for_what_matters_most() -> None:
    gesis = member("gesis", max_requests=2, max_launches=3)
    gesis.slow_start = 10.0

    def status(now: float = 0.0) -> Status:
        return snapshot(gesis, now).status

    assert status() is Status.AVAILABLE
    gesis.launches = 3
    assert status() is Status.FULL
    gesis.launches, gesis.in_flight = 0, 2
    assert status() is Status.FULL
    gesis.breaker.trip(0.0, 60.0)
    assert status(1.0) is Status.EJECTED
    gesis.set_health(False, 1.0, ("quota",))
    assert status(1.0) is Status.FULL
    gesis.set_health(False, 1.0, ("timeout", "quota"))
    assert status(1.0) is Status.UNHEALTHY
    gesis.set_intent(Intent.DRAIN)
    assert status(1.0) is Status.DRAINING
    gesis.set_intent(Intent.MAINT)
    assert status(1.0) is Status.MAINTENANCE


def test_member_that_came_back_is_slow_starting_until_its_share_is_whole() -> None:
    gesis = member("gesis")
    gesis.slow_start = 10.0
    gesis.set_health(False, 0.0)
    gesis.set_health(True, 5.0)
    assert snapshot(gesis, 6.0).status is Status.SLOW_STARTING
    assert snapshot(gesis, 15.0).status is Status.AVAILABLE


@pytest.mark.parametrize("intent", [Intent.DRAIN, Intent.MAINT])
def test_member_that_is_not_ready_takes_no_visitors(intent: Intent) -> None:
    gesis = member("gesis")
    gesis.set_intent(intent)
    assert not snapshot(gesis, 0.0).takes_visitors


def test_prime_is_the_last_resort_though_ill_but_not_in_maintenance_or_full() -> None:
    other, prime = member("other"), member("prime", prime=True, max_requests=2)
    for each in (other, prime):
        each.set_health(False, 0.0)
        each.breaker.trip(0.0, 0.0)
    assert not snapshot(other, 1.0).answers
    found = snapshot(prime, 1.0)
    assert (found.available, found.takes_visitors, found.last_resort, found.answers) == (
        *(False, False),
        *(True, True),
    )
    prime.in_flight = 2
    full = snapshot(prime, 1.0)
    assert not full.answers
    assert merge([full, found]).answers
    prime.in_flight = 0
    prime.set_intent(Intent.MAINT)
    assert not snapshot(prime, 1.0).answers


def test_parts_of_a_member_add_up_and_show_the_worst_breaker() -> None:
    here, there = member("a"), member("a")
    here.in_flight, there.in_flight = 2, 3
    here.launches, there.launches = 1, 1
    here.counts.codes[200], there.counts.codes[200], there.counts.codes[502] = 5, 6, 1
    here.counts.duration.observe(0.2)
    there.counts.duration.observe(0.3)
    here.counts.bytes_in, there.counts.bytes_in = 10, 20
    there.breaker.trip(0.0, 0.0)
    both = merge([snapshot(here, 1.0, idle=1), snapshot(there, 1.0, idle=2, busy=3)])
    assert (both.in_flight, both.launches, both.idle, both.busy) == (5, 2, 3, 3)
    assert both.counts.codes == {200: 11, 502: 1}
    assert (sum(both.counts.duration.counts), both.counts.duration.total) == (2, 0.5)
    assert both.counts.bytes_in == 30
    assert (both.breaker, both.admits, both.available) == (BreakerState.OPEN, True, True)
    assert here.counts.codes == {200: 5}


def test_addresses_of_several_workers_add_up_and_show_the_worst() -> None:
    def seen(*addresses: AddressState) -> Snapshot:
        return snapshot(member("a"), 0.0, addresses=addresses)

    one = seen(AddressState("::1", 1), AddressState("::2", 2, 3, True), AddressState("::3", 4, 5))
    other = seen(AddressState("::2", 5, 1), AddressState("::3", 6, 7, True))
    assert merge([one, other, seen()]).addresses == (
        AddressState("::1", 1),
        AddressState("::2", 7, 3, True),
        AddressState("::3", 10, 7, True),
    )
    assert pickle.loads(pickle.dumps(one)).addresses == one.addresses


def test_counts_of_who_is_gone_add_up_with_those_of_who_serves() -> None:
    here, gone = member("a"), MemberCounts()
    here.counts.codes[200], gone.codes[200], gone.codes[404] = 5, 6, 1
    here.counts.duration.observe(0.0)
    gone.duration.observe(0.0)
    whole = merge([snapshot(here, 0.0)], gone)
    assert dict(whole.counts.codes) == {200: 11, 404: 1}
    assert whole.counts.duration.counts[0] == 2
    assert dict(here.counts.codes) == {200: 5}


def test_single_part_is_the_whole() -> None:
    part = snapshot(member("a"), 0.0)
    assert merge([part]) is part


@pytest.mark.parametrize("weights", [(58.8, 58.8, 58.8), (62.4, 60.9), (60.9, 62.4), (0.1,) * 7])
def test_weight_that_not_all_workers_have_yet_is_no_slow_start(weights: tuple[float, ...]) -> None:
    whole = merge([snapshot(member(weight=weight), 0.0) for weight in weights])
    assert whole.weight == whole.share == pytest.approx(sum(weights) / len(weights))
    assert whole.status is Status.AVAILABLE
    if len({*weights}) == 1:
        assert whole.weight == weights[0]


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def test_edge_counts_add_up() -> None:
    first, second = EdgeCounts(), EdgeCounts()
    first.requests, second.requests = 1, 2
    first.rejected["malformed"] = second.rejected["malformed"] = 4
    first.lines_dropped["access"] = second.lines_dropped["access"] = 3
    together = add_up([first, pickle.loads(pickle.dumps(second))])
    assert together.lines_dropped == {"access": 6}
    assert (together.requests, together.rejected) == (3, {"malformed": 8})


def test_survey_finds_a_member_by_its_name() -> None:
    survey = Survey([snapshot(member("a"), 0.0)], EdgeCounts())
    found = survey.named("a")
    assert found is not None
    assert found.name == "a"
    assert survey.named("b") is None


def test_breaker_whose_open_time_is_over_is_shown_as_half_open() -> None:
    a = member("a")
    a.breaker.trip(0.0, 0.0)
    assert snapshot(a, 1.0).breaker is BreakerState.OPEN
    assert snapshot(a, 6.0).breaker is BreakerState.HALF_OPEN
    assert a.breaker.state is BreakerState.OPEN


def test_shares_are_those_of_members_that_take_visitors() -> None:
    members = [member("a", weight=30.0), member("b", weight=10.0), member("c", weight=60.0)]
    members[2].set_intent(Intent.DRAIN)
    assert shares(snapshot(each, 0.0) for each in members) == {"a": 0.75, "b": 0.25, "c": 0.0}
    for each in members:
        each.set_health(False, 0.0)
    assert set(shares(snapshot(each, 0.0) for each in members).values()) == {0.0}


def test_every_state_has_its_place_from_the_worst_on() -> None:
    assert sorted(WORST_FIRST) == sorted(Status)
    assert (WORST_FIRST[0], WORST_FIRST[-1]) == (Status.UNHEALTHY, Status.AVAILABLE)
