from __future__ import annotations

import random
from collections.abc import Collection

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedproxy.decide.affinity import Source
from fedproxy.decide.balancer import BALANCERS, CostCache
from fedproxy.decide.breaker import BreakerPolicy, BreakerState, Outcome
from fedproxy.decide.federation import Federation, FederationPolicy, Lease, Refusal
from fedproxy.decide.member import Intent, Member
from tests.rig.build import federation, member

KEY = b"/build/gh/user/repo"


def three(**settings: object) -> tuple[Federation, Member, Member, Member]:
    prime, gesis, ovh = member("prime", prime=True), member("gesis"), member("ovh")
    return federation(prime, gesis, ovh, **settings), prime, gesis, ovh


def lease(got: Lease | Refusal) -> Lease:
    assert isinstance(got, Lease)
    return got


def ask(
    fed: Federation,
    pinned: Member | None = None,
    key: bytes | None = KEY,
    tried: Collection[Member] = (),
    launch: bool = False,
) -> Lease:
    return lease(fed.acquire(key, pinned, tried, 0.0, launch))


def fail(fed: Federation, at: Member, times: int = 5) -> None:
    for _ in range(times):
        fed.settle(lease(fed.acquire_member(at, Source.HOST, (), 0.0)), Outcome.FAILURE, 0.0)


def test_federation_knows_its_members_by_name_and_its_prime() -> None:
    fed, prime, gesis, _ = three()
    assert fed.by_name["gesis"] is gesis
    assert fed.prime is prime
    assert repr(fed).startswith("<Federation <Member prime ready")
    assert federation(gesis).prime is None


def test_pinned_member_comes_first() -> None:
    fed, _, gesis, ovh = three()
    assert {(ask(fed, m).member, ask(fed, m).source) for m in (gesis, ovh)} == {
        (gesis, Source.COOKIE),
        (ovh, Source.COOKIE),
    }


def test_lease_counts_in_flight_until_it_is_settled() -> None:
    fed, _, gesis, _ = three()
    got = ask(fed, gesis)
    assert gesis.in_flight == 1
    assert repr(got) == "<Lease gesis cookie>"
    fed.settle(got, Outcome.SUCCESS, 0.0)
    assert gesis.in_flight == 0
    assert repr(got) == "<Lease gesis cookie settled>"


def test_second_settling_is_an_error_and_counts_nothing() -> None:
    fed, _, gesis, _ = three()
    got = ask(fed, gesis)
    fed.settle(got, Outcome.SUCCESS, 0.0)
    with pytest.raises(ValueError, match="settled before"):
        fed.settle(got, Outcome.SUCCESS, 0.0)
    assert gesis.in_flight == 0


def test_draining_member_keeps_its_visitors_and_takes_no_new_ones() -> None:
    fed, prime, gesis, ovh = three()
    gesis.set_intent(Intent.DRAIN)
    assert ask(fed, gesis).member is gesis
    assert {ask(fed, key=None).member for _ in range(50)} == {prime, ovh}


def test_member_of_weight_zero_keeps_its_visitors_and_takes_no_new_ones() -> None:
    fed, prime, gesis, ovh = three()
    gesis.weight = 0
    assert ask(fed, gesis).member is gesis
    assert {ask(fed, key=None).member for _ in range(50)} == {prime, ovh}


def test_retry_goes_to_a_member_that_was_not_tried() -> None:
    fed, prime, gesis, ovh = three()
    got = ask(fed, gesis, tried=(gesis, prime))
    assert (got.member, got.source) == (ovh, Source.MOVED)


def test_key_chooses_the_same_member_each_time() -> None:
    fed, *_ = three()
    for _ in range(5):
        got = ask(fed)
        assert got.source is Source.KEY
        fed.settle(got, Outcome.SUCCESS, 0.0)
    assert sum(bool(m.in_flight) for m in fed.members) == 0


def test_visitor_with_no_key_is_sent_at_random() -> None:
    fed, *_ = three()
    assert ask(fed, key=None).source is Source.RANDOM


@pytest.mark.parametrize("balancer", ["random", "least-requests"])
def test_balancer_that_reads_no_key_does_not_claim_one(balancer: str) -> None:
    fed, *_ = three(balancer=balancer)
    assert ask(fed).source is Source.RANDOM


@pytest.mark.parametrize("balancer", BALANCERS)
def test_every_balancer_leaves_out_members_without_a_share(balancer: str) -> None:
    fed, _, gesis, ovh = three(balancer=balancer)
    gesis.weight = 0
    ovh.set_intent(Intent.DRAIN)
    assert {ask(fed, key=b"%d" % number).member.name for number in range(20)} == {"prime"}


@pytest.mark.parametrize("key", [b"%d" % number for number in range(10)])
def test_retries_go_down_the_rank_of_their_key(key: bytes) -> None:
    fed, *members = three()
    tried: list[Member] = []
    while len(tried) < 3:
        got = ask(fed, key=key, tried=tried)
        tried.append(got.member)
        fed.settle(got, Outcome.FAILURE, 0.0)
    costs = dict(zip(members, CostCache().costs(key, members), strict=True))
    assert tried == sorted(members, key=costs.__getitem__)


def test_load_bound_spreads_one_popular_key() -> None:
    fed, *_ = three(load_bound=1.0)
    for _ in range(30):
        ask(fed)
    assert [m.in_flight for m in fed.members] == [10, 10, 10]


def test_prime_is_the_last_resort_although_ill() -> None:
    fed, prime, gesis, ovh = three()
    for each in (prime, gesis, ovh):
        each.set_health(False, 0.0)
    assert ask(fed).member is prime
    assert ask(fed, gesis).source is Source.MOVED
    assert ask(fed, prime).source is Source.COOKIE
    assert [each.counts.last_resort for each in (prime, gesis, ovh)] == [3, 0, 0]


def test_request_that_a_member_takes_is_no_last_resort() -> None:
    fed, prime, gesis, ovh = three()
    gesis.set_health(False, 0.0)
    assert ask(fed, tried=(ovh,)).member is prime
    assert prime.counts.last_resort == 0


def test_last_resort_through_an_open_breaker_is_no_trial() -> None:
    prime = member("prime", prime=True)
    fed = federation(prime)
    prime.breaker.trip(0.0, 0.0)
    got = ask(fed)
    fed.settle(got, Outcome.FAILURE, 0.0)
    assert prime.breaker.state is BreakerState.OPEN
    assert prime.breaker.admits(5.0)


@pytest.mark.parametrize("why", ["maint", "tried", "none"])
def test_no_member_when_there_is_no_last_resort(why: str) -> None:
    fed, prime, *others = three()
    for each in others:
        each.set_health(False, 0.0)
    if why == "none":
        fed = federation(*others)
    if why == "maint":
        prime.set_intent(Intent.MAINT)
    tried = (prime,) if why == "tried" else ()
    assert fed.acquire(KEY, None, tried, 0.0) is Refusal.NO_MEMBER


def test_full_when_every_member_has_as_much_as_it_may() -> None:
    fed, *members = three()
    for each in members:
        each.max_requests = 0
    assert fed.acquire(KEY, None, (), 0.0) is Refusal.FULL


def test_full_when_only_the_ill_last_resort_has_as_much_as_it_may() -> None:
    prime = member("prime", prime=True, max_requests=0)
    prime.set_health(False, 0.0)
    assert federation(prime).acquire(KEY, None, (), 0.0) is Refusal.FULL


def test_no_member_when_those_that_are_full_would_not_serve_anyway() -> None:
    gesis, ovh = member("gesis", max_requests=0), member("ovh", max_requests=0)
    gesis.set_health(False, 0.0)
    ovh.set_intent(Intent.DRAIN)
    fed = federation(gesis, ovh)
    assert fed.acquire(KEY, None, (), 0.0) is Refusal.NO_MEMBER
    assert fed.acquire(KEY, ovh, (), 0.0) is Refusal.FULL


def test_launch_goes_on_when_a_member_has_all_the_launches_it_may() -> None:
    gesis, ovh = member("gesis", max_launches=1), member("ovh")
    fed = federation(gesis, ovh)
    first = ask(fed, gesis, launch=True)
    assert gesis.launches == 1
    assert ask(fed, gesis, launch=True).member is ovh
    assert ask(fed, gesis).member is gesis
    fed.settle(first, Outcome.SUCCESS, 0.0)
    assert gesis.launches == 0
    assert ask(fed, gesis, launch=True).member is gesis


def test_only_member_is_sent_the_request_although_unhealthy() -> None:
    fed, _, gesis, _ = three()
    gesis.set_health(False, 0.0)
    got = lease(fed.acquire_member(gesis, Source.HOST, (), 0.0))
    assert (got.member, got.source) == (gesis, Source.HOST)


@pytest.mark.parametrize(
    ("why", "refusal"),
    [
        ("maint", Refusal.NO_MEMBER),
        ("open", Refusal.NO_MEMBER),
        ("tried", Refusal.NO_MEMBER),
        ("full", Refusal.FULL),
    ],
)
def test_only_member_is_refused(why: str, refusal: Refusal) -> None:
    gesis = member(max_requests=0 if why == "full" else 10)
    fed = federation(gesis)
    if why == "maint":
        gesis.set_intent(Intent.MAINT)
    if why == "open":
        gesis.breaker.trip(0.0, 0.0)
    tried = (gesis,) if why == "tried" else ()
    assert fed.acquire_member(gesis, Source.HOST, tried, 0.0) is refusal


@pytest.mark.parametrize("why", ["unhealthy", "open", "full", "draining"])
def test_session_s_member_is_sent_it_whatever_it_is(why: str) -> None:
    gesis = member(max_requests=0 if why == "full" else 10)
    fed = federation(gesis)
    if why == "unhealthy":
        gesis.set_health(False, 0.0)
    if why == "open":
        gesis.breaker.trip(0.0, 0.0)
    if why == "draining":
        gesis.set_intent(Intent.DRAIN)
    got = lease(fed.acquire_session(gesis, Source.COOKIE))
    assert (got.member, got.source, gesis.in_flight) == (gesis, Source.COOKIE, 1)
    generation = gesis.breaker.generation
    fed.settle(got, Outcome.FAILURE, 10.0)
    assert (gesis.in_flight, gesis.breaker.generation) == (0, generation)


def test_session_of_a_member_in_maintenance_is_away() -> None:
    gesis = member()
    gesis.set_intent(Intent.MAINT)
    assert federation(gesis).acquire_session(gesis, Source.COOKIE) is Refusal.AWAY


def test_session_s_member_that_cannot_be_reached_is_charged_while_its_breaker_is_closed() -> None:
    fed, _, gesis, _ = three()
    for _ in range(5):
        got = lease(fed.acquire_session(gesis, Source.COOKIE))
        fed.settle(got, Outcome.FAILURE, 0.0)
        fed.unreached(gesis, 0.0, b"192.0.2.1")
    assert gesis.breaker.state is BreakerState.OPEN
    generation = gesis.breaker.generation
    fed.unreached(gesis, 6.0, b"192.0.2.1")
    assert gesis.breaker.generation == generation


def test_spared_lease_says_nothing_and_a_spared_trial_gives_its_place_back() -> None:
    fed, _, gesis, _ = three()
    for _ in range(20):
        got = lease(fed.acquire_member(gesis, Source.HOST, (), 0.0))
        fed.spare(got, 0.0)
        fed.settle(got, Outcome.FAILURE, 0.0)
    assert gesis.breaker.closed
    gesis.breaker.trip(0.0, 0.0)
    trial = lease(fed.acquire_member(gesis, Source.HOST, (), 5.0))
    assert gesis.breaker.trials == 1
    fed.spare(trial, 5.0)
    assert gesis.breaker.trials == 0
    fed.settle(trial, Outcome.FAILURE, 5.0)
    assert gesis.breaker.state is BreakerState.HALF_OPEN


def test_client_whose_trial_failed_is_moved_and_another_has_the_next() -> None:
    fed, _, gesis, _ = three()
    for client in (b"192.0.2.1", b"192.0.2.2") * 3:
        got = lease(fed.acquire(KEY, gesis, (), 0.0, False, client))
        fed.settle(got, Outcome.FAILURE, 0.0, client)
    assert not gesis.breaker.closed
    trial = lease(fed.acquire(KEY, gesis, (), 6.0, False, b"192.0.2.1"))
    assert trial.member is gesis
    fed.settle(trial, Outcome.FAILURE, 6.0, b"192.0.2.1")
    later = 6.0 + gesis.breaker.open_for
    assert lease(fed.acquire(KEY, gesis, (), later, False, b"192.0.2.1")).member is not gesis
    assert fed.acquire_member(gesis, Source.HOST, (), later, False, b"192.0.2.1") is Refusal.NO_MEMBER
    trial = lease(fed.acquire(KEY, gesis, (), later, False, b"192.0.2.2"))
    assert trial.member is gesis
    fed.settle(trial, Outcome.SUCCESS, later, b"192.0.2.2")
    assert gesis.breaker.closed


def test_member_whose_trial_came_to_nothing_takes_one_trial_after_the_other() -> None:
    fed, _, gesis, _ = three()
    for client in (b"192.0.2.1", b"192.0.2.2") * 3:
        got = lease(fed.acquire(KEY, gesis, (), 0.0, False, client))
        fed.settle(got, Outcome.FAILURE, 0.0, client)
    fed.spare(lease(fed.acquire(KEY, gesis, (), 6.0, False, b"192.0.2.1")), 6.0)
    first = lease(fed.acquire(KEY, gesis, (), 6.0, False, b"192.0.2.2"))
    assert (first.member, gesis.breaker.trials) == (gesis, 1)
    assert lease(fed.acquire(KEY, gesis, (), 6.0, False, b"192.0.2.3")).member is not gesis
    fed.settle(first, Outcome.SUCCESS, 6.0, b"192.0.2.2")
    assert gesis.breaker.closed


def test_failures_eject_no_more_members_than_the_policy_lets() -> None:
    fed, prime, gesis, ovh = three(max_ejected=0.67)
    for each in (prime, gesis, ovh):
        fail(fed, each)
    assert [m.breaker.closed for m in fed.members] == [False, False, True]


def test_the_only_member_is_never_ejected() -> None:
    gesis = member()
    fed = federation(gesis)
    fail(fed, gesis, times=50)
    assert gesis.breaker.closed


def test_half_open_member_takes_one_trial_and_others_are_moved() -> None:
    fed, _, gesis, _ = three()
    gesis.breaker.trip(0.0, 0.0)
    trial = lease(fed.acquire(KEY, gesis, (), 5.0))
    other = lease(fed.acquire(KEY, gesis, (), 5.0))
    assert (trial.member, trial.source) == (gesis, Source.COOKIE)
    assert other.source is Source.MOVED
    fed.settle(trial, Outcome.SUCCESS, 5.0)
    assert gesis.breaker.closed


def test_answered_trial_closes_the_breaker_before_its_stream_ends() -> None:
    fed, _, gesis, _ = three()
    gesis.breaker.trip(0.0, 0.0)
    trial = lease(fed.acquire(KEY, gesis, (), 5.0))
    fed.answered(trial, 6.0)
    assert gesis.breaker.closed
    assert gesis.in_flight == 1
    fed.settle(trial, Outcome.FAILURE, 3600.0)
    assert gesis.in_flight == 0
    assert gesis.breaker.closed


def test_answer_to_what_is_no_trial_changes_nothing() -> None:
    fed, _, gesis, _ = three()
    ordinary = ask(fed, gesis)
    fed.answered(ordinary, 0.0)
    gesis.breaker.trip(0.0, 0.0)
    fed.answered(ordinary, 0.0)
    assert gesis.breaker.state is BreakerState.OPEN
    assert ordinary.generation == 0


def test_breaker_that_waited_for_other_workers_opens_without_another_failure() -> None:
    gesis = member(policy=BreakerPolicy(failures=2))
    gesis.breaker.on_doubt = lambda: None
    fed = federation(gesis, max_ejected=1.0)
    for _ in range(2):
        fed.settle(lease(fed.acquire_member(gesis, Source.HOST, (), 0.0)), Outcome.FAILURE, 0.0)
    fed.roll(0.1)
    assert gesis.breaker.closed
    fed.roll(1.0)
    assert not gesis.breaker.closed


def test_roll_reaches_every_member_and_policy_sets_their_slow_start() -> None:
    fed, _, gesis, _ = three(slow_start=10.0)
    gesis.recovered(0.0)
    assert gesis.share(5.0) == 0.5
    fed.roll(11.0)
    assert gesis.share(5.0) == 1.0


@pytest.mark.parametrize("trials", [1, 3])
def test_thousand_requests_at_once_send_a_half_open_member_exactly_the_trials(trials: int) -> None:
    gesis, ovh = member("gesis", BreakerPolicy(trials=trials)), member("ovh")
    fed = federation(gesis, ovh)
    gesis.breaker.trip(0.0, 0.0)
    got = [lease(fed.acquire(KEY, gesis, (), 5.0)) for _ in range(1000)]
    sent = [each for each in got if each.member is gesis]
    assert len(sent) == trials
    for each in sent:
        fed.settle(each, Outcome.SUCCESS, 5.0)
    assert gesis.breaker.closed


@pytest.mark.parametrize("why", ["maint", "unhealthy", "open", "full", "full of launches"])
def test_visitor_of_a_member_that_is_not_available_is_moved(why: str) -> None:
    fed, _, gesis, _ = three()
    match why:
        case "maint":
            gesis.set_intent(Intent.MAINT)
        case "unhealthy":
            gesis.set_health(False, 0.0)
        case "open":
            gesis.breaker.trip(0.0, 0.0)
        case "full":
            gesis.max_requests = 0
        case _:
            gesis.max_launches = 0
    got = ask(fed, gesis, launch=True)
    assert got.member is not gesis
    assert got.source is Source.MOVED


@pytest.mark.parametrize("back", ["healthy", "closed"])
@pytest.mark.parametrize(("after", "part"), [(0.0, 0.1 / 2.1), (15.0, 0.5 / 2.5), (30.0, 1 / 3)])
def test_member_that_came_back_is_given_a_share_that_grows(back: str, after: float, part: float) -> None:
    fed, _, gesis, _ = three(slow_start=30.0)
    if back == "healthy":
        gesis.set_health(False, 0.0)
        gesis.set_health(True, 100.0)
    else:
        gesis.breaker.trip(0.0, 0.0)
        fed.settle(lease(fed.acquire_member(gesis, Source.HOST, (), 100.0)), Outcome.SUCCESS, 100.0)
    chosen = 0
    for _ in range(3000):
        got = lease(fed.acquire(None, None, (), 100.0 + after))
        chosen += got.member is gesis
        fed.settle(got, Outcome.SUCCESS, 100.0 + after)
    assert chosen / 3000 == pytest.approx(part, abs=0.03)


def test_visitors_of_a_member_that_came_back_are_with_it_at_once() -> None:
    fed, _, gesis, _ = three(slow_start=30.0)
    gesis.set_health(False, 0.0)
    gesis.set_health(True, 100.0)
    for _ in range(20):
        assert lease(fed.acquire(KEY, gesis, (), 100.0)).member is gesis


def test_draining_prime_is_the_last_resort_too() -> None:
    fed, prime, *others = three()
    prime.set_intent(Intent.DRAIN)
    for each in others:
        each.set_health(False, 0.0)
    assert ask(fed).member is prime


clients = st.sampled_from([b"192.0.2.1", b"192.0.2.2", b"192.0.2.3"])


class AnyTraffic(RuleBasedStateMachine):
    """Whatever visitors, members, probes and operators do, in any order and with any clock."""

    def __init__(self) -> None:
        super().__init__()
        policy = BreakerPolicy(failures=2, minimum=3, trials=2)
        self.all = [member(n, policy, prime=n == "a", max_requests=4, max_launches=2) for n in "abcd"]
        self.fed = Federation(self.all, FederationPolicy("rendezvous", max_ejected=0.5), random.Random(1))
        self.now = 0.0
        self.leases: list[Lease] = []

    @rule(by=st.one_of(st.floats(0.0, 30.0), st.floats(-1e6, 1e6)))
    def time_passes(self, by: float) -> None:
        self.now += by
        self.fed.roll(self.now)

    @rule(
        key=st.sampled_from([None, b"one", b"two"]),
        pin=st.none() | st.integers(0, 3),
        tried=st.sets(st.integers(0, 3), max_size=2),
        launch=st.booleans(),
    )
    def acquire(self, key: bytes | None, pin: int | None, tried: set[int], launch: bool) -> None:
        pinned = None if pin is None else self.all[pin]
        out = tuple(self.all[i] for i in tried)
        able = [m for m in self.all if m not in out and m.available(self.now, launch)]
        willing = [m for m in able if m.share(self.now)]
        got = self.fed.acquire(key, pinned, out, self.now, launch)
        if isinstance(got, Refusal):
            assert not willing
            return
        assert got.member not in out
        assert got.member.intent is not Intent.MAINT
        assert got.member in willing or (got.member is pinned and pinned in able) or not willing
        self.leases.append(got)

    @rule(at=st.integers(0, 3))
    def acquire_member(self, at: int) -> None:
        got = self.fed.acquire_member(self.all[at], Source.HOST, (), self.now)
        if isinstance(got, Lease):
            self.leases.append(got)

    @rule(at=st.integers(0, 3))
    def acquire_session(self, at: int) -> None:
        its = self.all[at]
        # Sessions pass the limit, which the others' invariant is about.
        if its.in_flight < its.max_requests:
            got = self.fed.acquire_session(its, Source.COOKIE)
            assert (got is Refusal.AWAY) is (its.intent is Intent.MAINT)
            if isinstance(got, Lease):
                self.leases.append(got)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), client=clients)
    def spare(self, data: st.DataObject, client: bytes) -> None:
        self.fed.spare(data.draw(st.sampled_from(self.leases)), self.now, client)

    @rule(at=st.integers(0, 3), client=clients)
    def unreached(self, at: int, client: bytes) -> None:
        self.fed.unreached(self.all[at], self.now, client)

    @rule(at=st.integers(0, 3), witnesses=st.sets(clients))
    def hear_of_a_trip(self, at: int, witnesses: set[bytes]) -> None:
        self.fed.trip(self.all[at], self.now, witnesses)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), client=clients)
    def settle(self, data: st.DataObject, outcome: Outcome, client: bytes) -> None:
        got = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.fed.settle(got, outcome, self.now, client)
        with pytest.raises(ValueError, match="settled before"):
            self.fed.settle(got, outcome, self.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def answered(self, data: st.DataObject) -> None:
        self.fed.answered(data.draw(st.sampled_from(self.leases)), self.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), client=clients)
    def judge(self, data: st.DataObject, outcome: Outcome, client: bytes) -> None:
        self.fed.judge(data.draw(st.sampled_from(self.leases)), outcome, self.now, client)

    @rule(
        at=st.integers(0, 3),
        healthy=st.booleans(),
        intent=st.sampled_from(Intent),
        weight=st.sampled_from([0, 1]),
    )
    def turn(self, at: int, healthy: bool, intent: Intent, weight: int) -> None:
        self.all[at].set_health(healthy, self.now)
        self.all[at].set_intent(intent)
        self.all[at].weight = weight

    @invariant()
    def what_is_in_flight_is_what_was_leased(self) -> None:
        for each in self.all:
            mine = [got for got in self.leases if got.member is each]
            assert each.in_flight == len(mine) <= each.max_requests
            assert each.launches == sum(got.launch for got in mine)

    @invariant()
    def no_more_are_ejected_than_the_policy_lets(self) -> None:
        assert sum(not each.breaker.closed for each in self.all) <= 2

    @invariant()
    def trials_are_bounded_and_are_leases(self) -> None:
        for each in self.all:
            breaker = each.breaker
            mine = [got for got in self.leases if got.member is each]
            trials = sum(got.generation == breaker.generation for got in mine)
            assert breaker.trials == (trials if breaker.state is BreakerState.HALF_OPEN else 0) <= 2

    @invariant()
    def nothing_counts_below_zero(self) -> None:
        assert all(
            count >= 0 for each in self.all for count in (each.in_flight, each.launches, each.failed_launches)
        )

    def teardown(self) -> None:
        """However it was left: in a bounded time every member that is well and ready serves again."""
        for got in self.leases:
            self.fed.settle(got, Outcome.IGNORED, self.now)
        self.now += BreakerPolicy().open_max * 1.1 + 1.0
        self.fed.roll(self.now)
        for each in self.all:
            each.set_health(True, self.now)
            each.set_intent(Intent.READY)
            assert each.in_flight == each.launches == each.breaker.trials == 0
            assert each.available(self.now, launch=True)


TestAnyTraffic = AnyTraffic.TestCase


def test_launch_that_is_about_a_session_takes_one_of_its_member_s_places() -> None:
    a = member("a", max_launches=1)
    members = federation(a)
    lease = members.acquire_session(a, Source.COOKIE, launch=True)
    assert isinstance(lease, Lease)
    assert members.acquire_session(a, Source.COOKIE, launch=True) is Refusal.FULL
    assert isinstance(members.acquire_session(a, Source.COOKIE), Lease)
    members.settle(lease, Outcome.SUCCESS, 0.0)
    assert a.launches == 0


# -- for people


def test_ranking_has_every_member_and_says_who_is_out() -> None:
    fed, prime, gesis, ovh = three()
    found = fed.rank(KEY, 0.0)
    assert found[0].member is ask(fed).member
    assert all(each.out is None and each.score for each in found)
    gesis.set_intent(Intent.MAINT)
    prime.set_health(False, 0.0)
    assert [(each.member, each.out) for each in fed.rank(KEY, 0.0)] == [
        (ovh, None),
        (prime, "is unhealthy"),
        (gesis, "is in maintenance"),
    ]
    ovh.max_launches = 0
    assert [each.out for each in fed.rank(KEY, 0.0, launch=True)][-1] == "is full: 0 launches in flight"
    assert [each.score for each in fed.rank(KEY, 0.0, launch=True)] == [None, None, None]
    ovh.max_launches, ovh.launch_slots = 5, 0
    assert fed.rank(KEY, 0.0, launch=True)[-1].out == (
        "is full: 0 launches in flight, and of 5 slots this edge has 0"
    )
    ovh.launch_slots, ovh.in_flight = 1, ovh.max_requests
    assert fed.rank(KEY, 0.0, launch=True)[-1].out == f"is full: {ovh.in_flight} requests in flight"


def test_ranking_tells_a_breaker_from_its_member() -> None:
    fed, _, gesis, _ = three()
    fail(fed, gesis)
    assert fed.rank(KEY, 0.0)[-1][::3] == (gesis, "is ejected: its breaker is open")


def test_member_at_its_bound_comes_after_those_below_theirs() -> None:
    fed, *members = three()
    first = fed.rank(KEY, 0.0)[0].member
    first.in_flight = 8
    last = fed.rank(KEY, 0.0)[-1]
    assert (last.member, last.out) == (first, "is at its bound of the load: 8 in flight, its share is 4.5")
    assert ask(fed).member is not first
    for each in members:
        each.in_flight = 9
    fed = federation(*members, load_bound=0.1)
    assert all(each.out is None for each in fed.rank(KEY, 0.0))


def test_ranking_by_chance_has_chances_and_one_by_load_has_room() -> None:
    fed, prime, gesis, ovh = three(balancer="random")
    gesis.weight = 2.0
    assert [(each.member, each.score) for each in fed.rank(None, 0.0)] == [
        (gesis, 0.5),
        (prime, 0.25),
        (ovh, 0.25),
    ]
    fed, prime, gesis, ovh = three(balancer="least-requests")
    prime.in_flight, ovh.in_flight = 3, 1
    assert [(each.member, each.score) for each in fed.rank(KEY, 0.0)] == [
        (gesis, 1.0),
        (ovh, 0.5),
        (prime, 0.25),
    ]


def test_federation_is_short_if_only_other_edges_have_slots() -> None:
    fed, prime, gesis, _ = three()
    assert not fed.is_short()
    gesis.max_launches = 3
    assert not fed.is_short()
    gesis.launch_slots = 3
    assert not fed.is_short()
    gesis.launch_slots = 2
    assert fed.is_short()
    gesis.set_intent(Intent.MAINT)
    assert not fed.is_short()
    assert prime.launch_slots is None
