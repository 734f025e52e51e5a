from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedproxy.decide.breaker import JUDGED, UNCOUNTED, Breaker, BreakerPolicy, BreakerState, Outcome
from fedproxy.decide.limit import client_key

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
SUCCESS, FAILURE, IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED


def once(breaker: Breaker, outcome: Outcome, now: float = 0.0, chance: float = 0.0) -> bool:
    return breaker.settle(breaker.acquire(now), outcome, now, chance)


def opened(policy: BreakerPolicy | None = None, now: float = 0.0) -> Breaker:
    breaker = Breaker(policy or BreakerPolicy())
    breaker.trip(now, 0.0)
    return breaker


def test_new_breaker_is_closed_and_admits() -> None:
    breaker = Breaker(BreakerPolicy())
    assert breaker.state is CLOSED
    assert breaker.closed
    assert breaker.admits(0.0)
    assert repr(breaker) == "<Breaker closed generation=0 strikes=0>"


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(BreakerPolicy(failures=3))
    assert [once(breaker, FAILURE) for _ in range(3)] == [False, False, True]
    assert breaker.state is OPEN
    assert not breaker.closed
    assert not breaker.admits(4.9)


def test_success_ends_a_row_of_failures() -> None:
    breaker = Breaker(BreakerPolicy(failures=2))
    for outcome in (FAILURE, SUCCESS, FAILURE):
        once(breaker, outcome)
    assert breaker.closed


def test_ignored_outcome_neither_ends_nor_lengthens_a_row() -> None:
    breaker = Breaker(BreakerPolicy(failures=2))
    assert [once(breaker, outcome) for outcome in (FAILURE, IGNORED, FAILURE)] == [False, False, True]


def test_ratio_of_failures_opens_it_only_from_the_minimum_on() -> None:
    breaker = Breaker(BreakerPolicy(failures=99, ratio=0.5, minimum=4))
    assert [once(breaker, outcome) for outcome in (FAILURE, SUCCESS, FAILURE)] == [False] * 3
    assert once(breaker, FAILURE)


def test_failures_that_left_the_window_do_not_count() -> None:
    breaker = Breaker(BreakerPolicy(failures=99, ratio=0.5, minimum=4, window=10.0))
    for _ in range(3):
        once(breaker, FAILURE, 0.0)
    assert not once(breaker, FAILURE, 10.5)


def test_failures_of_several_buckets_in_the_window_add_up() -> None:
    breaker = Breaker(BreakerPolicy(failures=99, ratio=0.5, minimum=4, window=10.0))
    assert [once(breaker, FAILURE, now) for now in (0.5, 3.2, 6.9, 9.4)] == [False, False, False, True]


def test_roll_moves_the_window_when_nothing_fails() -> None:
    breaker = Breaker(BreakerPolicy(failures=99, ratio=0.5, minimum=4, window=10.0))
    for _ in range(3):
        once(breaker, FAILURE, 0.0)
    for second in range(1, 12):
        breaker.roll(float(second))
    assert not once(breaker, FAILURE, 11.0)


def test_refused_trip_leaves_it_closed_and_asks_again() -> None:
    breaker = Breaker(BreakerPolicy(failures=1))
    assert not breaker.settle(breaker.acquire(0.0), FAILURE, 0.0, 0.0, lambda: False)
    assert breaker.closed
    assert breaker.settle(breaker.acquire(0.0), FAILURE, 0.0, 0.0, lambda: True)


def test_refusal_is_not_asked_for_unless_it_would_open() -> None:
    def never() -> bool:
        raise AssertionError

    breaker = Breaker(BreakerPolicy(failures=2))
    assert not breaker.settle(breaker.acquire(0.0), FAILURE, 0.0, 0.0, never)


def test_open_breaker_admits_one_trial_after_cooldown() -> None:
    breaker = opened()
    assert breaker.admits(5.0)
    assert breaker.state is OPEN
    breaker.acquire(5.0)
    assert breaker.state is HALF_OPEN
    assert breaker.trials == 1
    assert not breaker.admits(5.0)


def test_successful_trial_closes_it() -> None:
    breaker = opened()
    assert once(breaker, SUCCESS, 5.0)
    assert breaker.state is CLOSED


def test_failed_trial_opens_it_for_twice_as_long() -> None:
    breaker = opened()
    assert once(breaker, FAILURE, 5.0)
    assert breaker.state is OPEN
    assert breaker.open_for == 10.0


def test_ignored_trial_gives_its_place_back() -> None:
    breaker = opened()
    assert not once(breaker, IGNORED, 5.0)
    assert breaker.state is HALF_OPEN
    assert breaker.admits(5.0)


def test_half_open_breaker_needs_every_trial_to_succeed() -> None:
    breaker = opened(BreakerPolicy(trials=2))
    first, second = breaker.acquire(5.0), breaker.acquire(5.0)
    assert not breaker.admits(5.0)
    assert not breaker.settle(first, SUCCESS, 5.0, 0.0)
    assert not breaker.admits(5.0)
    assert breaker.settle(second, SUCCESS, 5.0, 0.0)
    assert breaker.closed


def test_half_open_breaker_admits_again_when_its_policy_now_wants_fewer_trials() -> None:
    breaker = opened(BreakerPolicy(trials=3))
    once(breaker, SUCCESS, 5.0)
    once(breaker, SUCCESS, 5.0)
    breaker.policy = replace(breaker.policy, trials=1)
    assert breaker.admits(5.0)
    assert once(breaker, SUCCESS, 5.0)


def test_late_result_of_an_older_generation_is_dropped() -> None:
    breaker = Breaker(BreakerPolicy())
    late = breaker.acquire(0.0)
    breaker.trip(0.0, 0.0)
    trial = breaker.acquire(5.0)
    assert not breaker.settle(late, SUCCESS, 5.0, 0.0)
    assert breaker.state is HALF_OPEN
    assert breaker.settle(trial, SUCCESS, 5.0, 0.0)


def test_request_that_is_not_admitted_is_uncounted() -> None:
    breaker = opened()
    assert breaker.acquire(1.0) == UNCOUNTED
    assert breaker.state is OPEN
    assert not breaker.settle(UNCOUNTED, SUCCESS, 6.0, 0.0)
    assert breaker.state is OPEN


def test_trip_of_an_open_breaker_changes_nothing() -> None:
    breaker = opened()
    generation = breaker.generation
    breaker.trip(3.0, 0.0)
    assert breaker.generation == generation
    assert breaker.admits(5.0)


def test_open_time_grows_to_its_maximum_and_jitter_only_adds() -> None:
    breaker = opened(BreakerPolicy(open=5.0, open_max=12.0))
    now, times = 0.0, [breaker.open_for]
    for _ in range(3):
        now += breaker.open_for
        once(breaker, FAILURE, now)
        times.append(breaker.open_for)
    assert times == [5.0, 10.0, 12.0, 12.0]
    now += breaker.open_for
    once(breaker, FAILURE, now, chance=0.5)
    assert breaker.open_for == pytest.approx(12.6)


@pytest.mark.parametrize(
    ("healthy_for", "then_open_for"), [(4.0, 40.0), (5.0, 20.0), (10.0, 10.0), (1e9, 5.0)]
)
def test_open_time_halves_for_each_interval_spent_closed(healthy_for: float, then_open_for: float) -> None:
    breaker = opened()
    once(breaker, FAILURE, 5.0)
    once(breaker, FAILURE, 15.0)
    assert breaker.open_for == 20.0
    once(breaker, SUCCESS, 35.0)
    breaker.trip(35.0 + healthy_for, 0.0)
    assert breaker.open_for == then_open_for


def test_roll_forgives_interval_by_interval_and_not_while_open() -> None:
    breaker = opened()
    breaker.roll(4.0)
    assert not breaker.admits(4.0)
    once(breaker, SUCCESS, 5.0)
    for tenth in range(50, 101):
        breaker.roll(tenth / 10)
    breaker.trip(10.0, 0.0)
    assert breaker.open_for == 5.0


def test_clock_set_back_ends_the_open_time() -> None:
    assert opened(now=1000.0).admits(3.0)


def test_clock_set_back_restarts_window_and_forgiveness() -> None:
    breaker = opened(BreakerPolicy(failures=2), now=1000.0)
    once(breaker, SUCCESS, 1005.0)
    breaker.roll(0.0)
    breaker.roll(5.0)
    once(breaker, FAILURE, 6.0)
    assert once(breaker, FAILURE, 6.0)
    assert breaker.open_for == 5.0


def test_every_transition_is_told_with_its_time() -> None:
    told: list[tuple[str, float]] = []
    breaker = Breaker(BreakerPolicy(), lambda state, now: told.append((state.value, now)))
    breaker.trip(1.0, 0.0)
    once(breaker, SUCCESS, 6.0)
    assert told == [("open", 1.0), ("half-open", 6.0), ("closed", 6.0)]


@pytest.mark.parametrize(
    "wrong",
    [{"trials": 0}, {"witnesses": 0}, {"failures": 0}, {"minimum": 0}, {"open": 0.0}, {"window": -1.0}],
)
def test_policy_that_could_wedge_a_breaker_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BreakerPolicy(**wrong)  # type: ignore[arg-type]


# Witnesses

X, Y, Z = b"192.0.2.1", b"192.0.2.2", b"2001:db8::1"


def seen(breaker: Breaker, outcome: Outcome, client: bytes, now: float = 0.0) -> bool:
    return breaker.settle(breaker.acquire(now, client), outcome, now, client=client)


def test_failures_of_one_client_do_not_open_it_while_others_have_success() -> None:
    breaker = Breaker(BreakerPolicy())
    seen(breaker, SUCCESS, Y)
    assert not any(seen(breaker, FAILURE, X) for _ in range(100))
    assert breaker.closed


def test_success_of_the_one_who_fails_speaks_neither_for_nor_against_it() -> None:
    breaker = Breaker(BreakerPolicy())
    for client in (Y, X):
        seen(breaker, SUCCESS, client)
    assert not any(seen(breaker, FAILURE, X) for _ in range(100))


def test_second_witness_opens_it_at_once_when_there_were_enough_failures() -> None:
    breaker = Breaker(BreakerPolicy())
    seen(breaker, SUCCESS, Z)
    for _ in range(7):
        seen(breaker, FAILURE, X)
    assert seen(breaker, FAILURE, Y)
    assert len(breaker.opened_by) == 2


def test_client_alone_opens_it_as_before() -> None:
    breaker = Breaker(BreakerPolicy())
    for _ in range(50):
        seen(breaker, SUCCESS, X)
    assert [seen(breaker, FAILURE, X) for _ in range(5)] == [False] * 4 + [True]


def test_client_opens_it_when_nobody_had_success_in_the_window() -> None:
    breaker = Breaker(BreakerPolicy(window=10.0))
    breaker.roll(0.0)
    seen(breaker, SUCCESS, Y, 0.0)
    assert [seen(breaker, FAILURE, X, 10.5) for _ in range(5)] == [False] * 4 + [True]


def test_first_failure_of_all_takes_no_success_away() -> None:
    breaker = Breaker(BreakerPolicy(failures=1))
    seen(breaker, SUCCESS, Y, 1000.0)
    assert not seen(breaker, FAILURE, X, 1000.5)


def test_ratio_wants_witnesses_too() -> None:
    breaker = Breaker(BreakerPolicy(failures=99, ratio=0.5, minimum=4))
    for number in range(10):
        seen(breaker, SUCCESS, Y, number / 10)
        assert not seen(breaker, FAILURE, X, number / 10)
    assert seen(breaker, FAILURE, Y, 1.0)


def test_witnesses_and_successes_count_in_all_of_the_window_and_no_longer() -> None:
    breaker = Breaker(BreakerPolicy(failures=2, window=10.0))
    seen(breaker, FAILURE, X, 0.0)
    seen(breaker, SUCCESS, Z, 4.0)
    assert not seen(breaker, FAILURE, Y, 5.0)
    assert seen(breaker, FAILURE, Y, 6.0)
    breaker = Breaker(BreakerPolicy(failures=2, window=10.0))
    seen(breaker, FAILURE, X, 0.0)
    breaker.roll(4.0)
    seen(breaker, SUCCESS, Z, 4.0)
    assert not any(seen(breaker, FAILURE, Y, now) for now in (10.5, 11.0, 13.0))
    assert seen(breaker, FAILURE, Y, 14.5)


def test_household_of_ipv6_is_one_witness_and_one_success() -> None:
    breaker = Breaker(BreakerPolicy())
    for number in range(50):
        seen(breaker, SUCCESS, b"2001:db8:1::%x" % number)
    seen(breaker, SUCCESS, Y)
    assert not any(seen(breaker, FAILURE, b"2001:db8:1::%x" % number) for number in range(100))


def test_as_many_witnesses_as_the_policy_wants() -> None:
    breaker = Breaker(BreakerPolicy(failures=2, witnesses=3))
    for client in (b"198.51.100.1", b"198.51.100.2", b"198.51.100.3"):
        seen(breaker, SUCCESS, client)
    assert [seen(breaker, FAILURE, client) for client in (X, Y, X, Y, Z)] == [False] * 4 + [True]
    breaker = Breaker(BreakerPolicy(failures=2, witnesses=1))
    seen(breaker, SUCCESS, Y)
    assert [seen(breaker, FAILURE, X) for _ in range(2)] == [False, True]


def test_few_clients_are_kept_however_many_come() -> None:
    breaker = Breaker(BreakerPolicy(failures=10**6, ratio=1.0))
    for number in range(1000):
        seen(breaker, SUCCESS, b"198.51.%d.%d" % divmod(number, 256))
        seen(breaker, FAILURE, b"203.0.%d.%d" % divmod(number, 256))
    assert len(breaker._served) == len(breaker._failed) == 2


def with_others(now: float = 0.0) -> Breaker:
    """Opened by two clients."""
    breaker = Breaker(BreakerPolicy(failures=2))
    assert [seen(breaker, FAILURE, client, now) for client in (X, Y)] == [False, True]
    return breaker


def test_whose_trial_failed_has_not_the_next_one_too() -> None:
    breaker = with_others()
    assert seen(breaker, FAILURE, X, 5.0)
    assert not breaker.admits(15.0, X)
    assert breaker.acquire(15.0, X) == UNCOUNTED
    assert breaker.admits(15.0, Y)
    assert seen(breaker, SUCCESS, Y, 15.0)
    assert breaker.closed


def test_whose_trial_failed_has_another_when_nobody_else_came_for_as_long_again() -> None:
    breaker = with_others()
    seen(breaker, FAILURE, X, 5.0)
    assert breaker.admits(25.0, X)
    assert seen(breaker, FAILURE, X, 25.0)
    assert breaker.open_for == 20.0


def test_trial_that_comes_to_nothing_makes_room_for_somebody_else() -> None:
    breaker = with_others()
    seen(breaker, IGNORED, X, 5.0)
    assert breaker.state is HALF_OPEN
    assert not breaker.admits(6.0, X)
    assert breaker.admits(6.0, Y)
    assert breaker.admits(10.0, X)


def test_trial_of_a_client_that_is_not_told_leaves_the_next_one_to_anybody() -> None:
    breaker = with_others()
    assert not breaker.settle(breaker.acquire(5.0), IGNORED, 5.0)
    assert breaker.acquire(5.0) == breaker.generation
    assert breaker.trials == 1


def test_client_that_was_alone_has_every_trial() -> None:
    breaker = Breaker(BreakerPolicy(failures=2))
    for _ in range(2):
        seen(breaker, FAILURE, X)
    assert seen(breaker, FAILURE, X, 5.0)
    assert breaker.admits(15.0, X)


def test_client_whose_trial_succeeded_is_one_who_had_success() -> None:
    breaker = with_others()
    assert seen(breaker, SUCCESS, Y, 5.0)
    assert not any(seen(breaker, FAILURE, X, 6.0) for _ in range(50))


def test_trial_that_does_not_end_gives_way_to_somebody_else_s() -> None:
    breaker = with_others()
    hogs = breaker.acquire(5.0, X)
    assert not breaker.admits(9.9, Z)
    assert breaker.admits(10.0, Z)
    assert not breaker.admits(10.0, X)
    trial = breaker.acquire(10.0, Z)
    assert not breaker.admits(14.9, Y)
    assert breaker.settle(trial, SUCCESS, 11.0, client=Z)
    assert breaker.closed
    assert not breaker.settle(hogs, FAILURE, 12.0, client=X)


def test_who_leaves_every_trial_lets_others_have_theirs_also_later() -> None:
    breaker = with_others()
    for now in (5.0, 11.0):
        seen(breaker, IGNORED, X, now)
    assert not breaker.admits(15.9, X)
    assert breaker.admits(15.9, Z)
    assert breaker.admits(16.0, X)


def test_success_that_is_not_counted_is_still_somebody_s() -> None:
    breaker = Breaker(BreakerPolicy())
    for client in (Y, Y, Z, X):
        breaker.succeed(UNCOUNTED, 0.0, client)
    assert not any(seen(breaker, FAILURE, X) for _ in range(50))
    assert seen(breaker, FAILURE, Y)
    breaker = Breaker(BreakerPolicy())
    # How a launch ends that has failed says nothing more.
    breaker.succeed(JUDGED, 0.0, Y)
    assert [seen(breaker, FAILURE, X) for _ in range(5)] == [False] * 4 + [True]


KEY_X, KEY_Y, KEY_Z = map(client_key, (X, Y, Z))


def doubting(policy: BreakerPolicy) -> tuple[Breaker, list[str]]:
    """One that can ask other workers."""
    breaker, asked = Breaker(policy), list[str]()
    breaker.on_doubt = lambda: asked.append("?")
    return breaker, asked


def test_who_is_served_elsewhere_is_somebody_else_for_a_window() -> None:
    breaker, asked = doubting(BreakerPolicy(failures=2, window=10.0))
    assert [seen(breaker, FAILURE, X, now) for now in (0.0, 0.1)] == [False, False]
    assert asked == ["?"]
    breaker.serve_elsewhere((KEY_X, KEY_Y), 0.2)
    assert not any(seen(breaker, FAILURE, X, float(now)) for now in range(1, 12))
    # Then they are asked again, and nobody answers.
    assert asked == ["?", "?"]
    assert seen(breaker, FAILURE, X, 12.0)


def test_others_have_a_moment_to_answer_who_they_serve_and_are_asked_once() -> None:
    breaker, asked = doubting(BreakerPolicy(failures=2))
    assert [seen(breaker, FAILURE, X, now) for now in (0.0, 0.1, 0.3, 0.5)] == [False] * 4
    assert seen(breaker, FAILURE, X, 0.6)
    assert asked == ["?"]


def test_it_is_due_once_others_had_time_to_answer_also_without_another_failure() -> None:
    breaker, _ = doubting(BreakerPolicy(failures=2, window=10.0))
    assert not breaker.is_due(0.0)
    assert [seen(breaker, FAILURE, X, now) for now in (0.0, 0.1)] == [False, False]
    assert not breaker.is_due(0.3)
    assert breaker.is_due(1.1)
    breaker.serve_elsewhere([KEY_Y], 1.2)
    assert not breaker.is_due(1.3)
    seen(breaker, SUCCESS, X, 1.4)
    assert not breaker.is_due(1.5)
    breaker.trip(2.0, 0.0)
    assert not breaker.is_due(2.1)


def test_two_who_saw_failures_are_enough_and_nobody_is_asked() -> None:
    breaker, asked = doubting(BreakerPolicy(failures=2))
    assert [seen(breaker, FAILURE, client) for client in (X, Y)] == [False, True]
    assert asked == []


def test_question_of_others_is_answered_with_as_many_as_it_needs() -> None:
    breaker = Breaker(BreakerPolicy(window=10.0))
    assert breaker.served(0.0) == frozenset()
    for now, client in enumerate((X, Y, Z)):
        seen(breaker, SUCCESS, client, float(now))
        breaker.roll(now + 1.0)
    assert len(breaker.served(3.0)) == 2
    assert breaker.served(11.0) == {KEY_Z}
    # What others said is not said to others.
    breaker.serve_elsewhere([KEY_X], 11.0)
    assert breaker.served(13.0) == frozenset()


def test_few_are_kept_of_those_whom_others_serve() -> None:
    breaker = Breaker(BreakerPolicy())
    breaker.serve_elsewhere([b"%d" % number for number in range(1000)], 0.0)
    assert len(breaker._elsewhere) == 64


clients = st.sampled_from([X, Y, Z])


def test_clock_that_runs_back_forgives_nothing_and_is_counted_from_there() -> None:
    breaker = opened(BreakerPolicy(open=5.0), now=100.0)
    once(breaker, SUCCESS, 200.0)
    breaker.roll(50.0)
    assert repr(breaker) == "<Breaker closed generation=3 strikes=1>"
    breaker.roll(54.9)
    assert "strikes=1" in repr(breaker)
    breaker.roll(55.0)
    assert "strikes=0" in repr(breaker)


def test_half_open_breaker_that_is_tripped_is_forgiven_nothing() -> None:
    breaker = opened(BreakerPolicy(open=5.0), now=100.0)
    breaker.acquire(200.0)
    assert breaker.state is HALF_OPEN
    breaker.trip(300.0, 0.0)
    assert repr(breaker) == "<Breaker open generation=3 strikes=2>"


class AnyHistory(RuleBasedStateMachine):
    """Whatever is asked of a breaker, in any order and with any clock."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(BreakerPolicy(failures=2, minimum=3, trials=2))
        self.now = 0.0
        self.leases: list[int] = []
        self.failed: set[bytes] = set()  # since it closed
        self.served: set[bytes] = set()

    @rule(by=st.one_of(st.floats(0.0, 30.0), st.floats(-1e6, 1e6)))
    def time_passes(self, by: float) -> None:
        self.now += by
        self.breaker.roll(self.now)

    @rule(client=clients)
    def acquire(self, client: bytes) -> None:
        breaker = self.breaker
        admitted = breaker.admits(self.now, client)
        overdue = not 0 <= self.now - breaker._trial_at < breaker.policy.open
        overdue = overdue and client_key(client) != breaker._trial_by
        generation = self.breaker.acquire(self.now, client)
        assert (generation == UNCOUNTED) is (not admitted)
        if admitted:
            assert breaker.trials <= breaker.policy.trials or overdue
        self.leases.append(generation)

    @rule(trials=st.integers(1, 3), open_time=st.sampled_from([0.5, 5.0, 400.0]))
    def reload(self, trials: int, open_time: float) -> None:
        self.breaker.policy = replace(self.breaker.policy, trials=trials, open=open_time)

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(Outcome),
        chance=st.floats(0, 1, exclude_max=True),
        may=st.booleans(),
        client=clients,
    )
    def settle(self, data: st.DataObject, outcome: Outcome, chance: float, may: bool, client: bytes) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        before = self.breaker.state
        if lease == self.breaker.generation and before is CLOSED:
            {SUCCESS: self.served, FAILURE: self.failed, IGNORED: set()}[outcome].add(client)
        changed = self.breaker.settle(lease, outcome, self.now, chance, lambda: may, client)
        assert changed is (self.breaker.state is not before)
        if before is CLOSED and not may:
            assert self.breaker.state is CLOSED
        if before is CLOSED and self.breaker.state is OPEN:
            # One client alone never opens it, if it knows of another who is served well.
            assert len(self.failed) > 1 or self.failed == {client}
            assert self.breaker.opened_by
        if changed:
            self.failed.clear()
            self.served = {client} if self.breaker.closed else set()

    @rule()
    def trip(self) -> None:
        self.breaker.trip(self.now, 0.5)

    @invariant()
    def trials_are_bounded_and_are_leases(self) -> None:
        breaker = self.breaker
        current = self.leases.count(breaker.generation)
        assert breaker.trials == (current if breaker.state is HALF_OPEN else 0)

    @invariant()
    def it_is_never_wedged(self) -> None:
        breaker = self.breaker
        assert 0 <= breaker.open_for <= breaker.policy.open_max * 1.1
        if breaker.state is OPEN:
            # A clock that was set back admits at once, and may come to the open time again.
            later = self.now + breaker.open_for * 1.001 + 1e-3
            assert breaker.admits(self.now, X) or breaker.admits(later, X) or breaker.admits(later, Y)
            later += breaker.open_for * 1.001
            assert breaker.admits(self.now, X) or breaker.admits(later, X)
        if breaker.state is HALF_OPEN:
            assert any(breaker.admits(self.now, client) for client in (X, Y, Z)) or breaker.trials

    def teardown(self) -> None:
        """However it was left: once it is asked again, it closes in a bounded time."""
        breaker = self.breaker
        for lease in self.leases:
            breaker.settle(lease, IGNORED, self.now, 0.0)
        self.now += breaker.policy.open_max * 1.1 + 1.0
        for _ in range(breaker.policy.trials):
            breaker.settle(breaker.acquire(self.now), SUCCESS, self.now, 0.0)
        assert breaker.state is CLOSED


TestAnyHistory = AnyHistory.TestCase
