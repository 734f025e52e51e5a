from __future__ import annotations

import pytest

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import BOUNDS, EdgeCounts, Histogram
from fedproxy.decide.member import Intent, Member
from fedproxy.decide.snapshot import Survey, merge, snapshot
from fedproxy.event import Event, EventName, Level
from fedproxy.observe import history
from fedproxy.observe.history import (
    EDGE_LINES,
    KEPT,
    LINES,
    NOTHING,
    STEP,
    History,
    Quantile,
    Refusals,
    quantile,
)
from tests.rig.build import member


class Watched:
    """Members that a history looks at; time is what `look` adds up, and a calendar that began at 1000."""

    def __init__(self, *members: Member) -> None:
        self.members = list(members)
        self.edge = EdgeCounts()
        self.logged: list[Event] = []
        self.history = History(self.logged.append)
        self.now = 0.0

    def look(self, seconds: float = 1.0) -> list[str]:
        """The sentences that this look added."""
        self.now += seconds
        for each in self.members:
            each.roll(self.now)
        before = self.history.events
        # Merged, as the edge does it: the counts are copies.
        parts = [merge([snapshot(each, self.now)]) for each in self.members]
        edge = EdgeCounts()
        edge.add(self.edge)
        self.history.see(Survey(parts, edge), self.now, 1000.0 + self.now)
        added = [event for event in self.history.events if event not in before]
        # What is on the page is what is in the log.
        assert self.logged[len(self.logged) - len(added) :] == added
        return [event.message for event in added]


@pytest.fixture
def a() -> Member:
    return member("a")


@pytest.fixture
def b() -> Member:
    return member("b")


@pytest.fixture
def watched(a: Member, b: Member) -> Watched:
    watched = Watched(a, b)
    assert watched.look() == []
    return watched


def test_rates_are_of_the_last_seconds(watched: Watched, a: Member) -> None:
    watched.look(STEP)
    a.counts.codes[200] += 30
    a.counts.errors["connect"] += 5
    watched.look(STEP / 2)
    figures = watched.history.figures()["a"]
    assert figures.requests == 2.0
    assert figures.errors == pytest.approx(1 / 3)
    watched.look(STEP)
    watched.look(STEP)
    assert watched.history.figures()["a"].requests == 0


def test_each_step_gives_a_point_of_each_line(watched: Watched, a: Member) -> None:
    a.counts.codes[200] += 50
    a.counts.first_byte.observe(0.2)
    a.in_flight = 7
    watched.look(STEP)
    assert watched.history.steps == 1
    assert watched.history.newest()["a"] == [500, 0, 24250, 7]
    assert watched.history.times() == [1011]
    assert watched.history.charts()["a"] == {
        "requests": [500],
        "errors": [0],
        "first_byte": [24250],
        "in_flight": [7],
    }


def test_nothing_is_a_point_where_nothing_was_measured(watched: Watched, a: Member) -> None:
    watched.look(STEP)
    assert watched.history.newest()["a"] == [0, 0, NOTHING, 0]
    a.counts.codes[200] += 70
    a.counts.at_once.observe(0.2)
    # The machine slept: four steps had no survey, and the rate is that of the whole time.
    watched.look(5 * STEP)
    assert watched.history.charts()["a"] == {
        "requests": [0, *[NOTHING] * 4, 140],
        "errors": [0, *[NOTHING] * 4, 0],
        "first_byte": [NOTHING] * 5 + [24250],
        "in_flight": [0, *[NOTHING] * 4, 0],
    }
    assert watched.history.times() == [1011, 1021, 1031, 1041, 1051, 1061]
    assert watched.history.steps == 6
    assert watched.history.edge_charts()["requests"] == [0, *[NOTHING] * 4, 0]
    watched.look(1e6)
    assert len(watched.history.times()) == KEPT
    assert {len(each) for each in watched.history.charts()["a"].values()} == {KEPT}


def test_charts_are_of_an_hour_though_the_steps_are_longer(watched: Watched) -> None:
    for _ in range(KEPT):
        watched.look(1.4 * STEP)
    times = watched.history.times()
    assert times[-1] - times[0] < 3600 <= times[-1] - times[0] + 1.4 * STEP
    assert len(watched.history.charts()["a"]["requests"]) == len(times)


def test_edge_has_lines_of_its_own(watched: Watched, a: Member, b: Member) -> None:
    a.counts.codes |= {200: 50, 404: 10, 504: 20}
    b.counts.codes[500] += 20
    watched.edge.requests += 130
    watched.edge.rejected["no_member"] += 30
    watched.edge.connections = 12
    b.in_flight = 7
    watched.look(STEP)
    assert watched.history.newest_of_edge() == [1300, 600, 400, 300, 7, 12]
    assert watched.history.edge_charts() == dict(
        zip(EDGE_LINES, [[1300], [600], [400], [300], [7], [12]], strict=True)
    )
    figures = watched.history.edge_figures()
    assert (figures.requests, figures.refused) == (13.0, 3.0)


def test_refusals_are_counted_by_reason_for_an_hour(watched: Watched) -> None:
    watched.edge.rejected |= {"malformed": 5, "no_member": 20}
    watched.look(STEP)
    watched.edge.rejected["malformed"] += 20
    watched.look(STEP)
    watched.edge.rejected["no_member"] += 1
    watched.look(STEP / 2)
    figures = watched.history.edge_figures()
    assert figures.refusals == [
        Refusals("malformed", 20 / 15, 25),
        Refusals("no_member", 1 / 15, 21),
    ]
    assert figures.since == 2.5 * STEP
    for _ in range(KEPT - 1):
        watched.look(STEP)
    figures = watched.history.edge_figures()
    assert [(each.reason, each.count) for each in figures.refusals] == [("malformed", 20), ("no_member", 1)]
    for _ in range(3):
        watched.look(STEP)
    assert watched.history.edge_figures().refusals == []
    assert watched.history.edge_figures().since == 3600


def test_history_without_a_survey_has_no_figures() -> None:
    assert History().edge_figures().requests == 0


def test_last_resort_is_a_rate_and_sources_are_of_the_last_minute(watched: Watched, a: Member) -> None:
    a.counts.last_resort += 30
    a.counts.affinity |= {"key": 20, "cookie": 10}
    watched.look(STEP)
    figures = watched.history.figures()["a"]
    assert figures.last_resort == 3.0
    assert figures.sources == {"key": 20, "cookie": 10}
    for _ in range(7):
        watched.look(STEP)
    figures = watched.history.figures()["a"]
    assert (figures.last_resort, figures.sources) == (0, {})


def test_charts_keep_an_hour(watched: Watched, a: Member) -> None:
    for _ in range(KEPT + 5):
        a.counts.codes[200] += 1
        watched.look(STEP)
    charts = watched.history.charts()["a"]
    assert {line: len(charts[line]) for line in LINES} == dict.fromkeys(LINES, KEPT)
    assert watched.history.steps == KEPT + 5


def test_looks_between_two_steps_give_no_points(watched: Watched) -> None:
    watched.look(STEP / 2)
    assert (watched.history.steps, watched.history.newest()) == (0, {})
    assert watched.history.looks == 2


def test_percentiles_are_of_the_last_minute(watched: Watched, a: Member) -> None:
    for seconds in (0.001,) * 98 + (20.0, 20.0):
        a.counts.first_byte.observe(seconds)
    watched.look()
    half, most, nearly_all = watched.history.figures()["a"].first_byte
    assert half is not None and half.value <= 0.001
    assert most is not None and (most.lower, most.upper) == (0.0, 0.001)
    assert nearly_all == Quantile(20.0, 10.0, 30.0)
    for _ in range(8):
        watched.look(STEP)
    assert watched.history.figures()["a"].first_byte == (None, None, None)


def test_share_of_new_visitors_is_counted(watched: Watched, a: Member, b: Member) -> None:
    assert watched.history.figures()["a"].new is None
    a.counts.affinity["key"] += 2
    a.counts.affinity["cookie"] += 90
    watched.look(STEP)
    a.counts.affinity["random"] += 1
    b.counts.affinity["key"] += 1
    watched.look()
    assert {name: each.new for name, each in watched.history.figures().items()} == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize(
    ("got", "is_over"),
    # Of 1000 visitors half are due, and the standard deviation is 15.8.
    [(500, False), (547, False), (560, False), (624, False), (626, True), (1000, True)],
)
def test_member_is_over_its_share_if_it_is_clearly(
    watched: Watched, a: Member, b: Member, got: int, is_over: bool
) -> None:
    watched.look(STEP)
    a.counts.affinity["key"] += got
    b.counts.affinity["key"] += 1000 - got
    watched.look(STEP)
    figures = watched.history.figures()
    assert (figures["a"].new, figures["a"].due) == (got / 1000, 0.5)
    assert figures["a"].is_over is is_over
    assert not figures["b"].is_over


def test_few_visitors_put_nobody_over_its_share(watched: Watched, a: Member) -> None:
    watched.look(STEP)
    a.counts.affinity["key"] += 8
    watched.look(STEP)
    assert (watched.history.figures()["a"].new, watched.history.figures()["a"].is_over) == (1.0, False)


def test_share_that_is_due_follows_what_operators_set(watched: Watched, a: Member, b: Member) -> None:
    watched.look(STEP)
    b.set_intent(Intent.DRAIN)
    watched.look()
    for _ in range(4):
        a.counts.affinity["key"] += 500
        watched.look(STEP)
    # Half of the step in which it changed is taken as before.
    assert watched.history.figures()["a"].due == pytest.approx(0.9375)
    assert not watched.history.figures()["a"].is_over


def test_who_is_sent_all_as_the_last_resort_is_not_over_its_share(
    watched: Watched, a: Member, b: Member
) -> None:
    for each in (a, b):
        each.set_health(False, 0.0)
    watched.look(STEP)
    a.counts.affinity["key"] += 500
    watched.look(STEP)
    figures = watched.history.figures()["a"]
    assert (figures.new, figures.due, figures.is_over) == (1.0, None, False)


def test_counters_that_fall_count_nothing(watched: Watched, a: Member) -> None:
    a.counts.codes[200] = 10
    watched.look(STEP)
    a.counts.codes[200] = 1
    a.counts.first_byte = Histogram()
    assert watched.look(STEP) == []
    assert watched.history.newest()["a"][:2] == [0, 0]


def test_breaker_that_opens_is_told_with_what_went_wrong(watched: Watched, a: Member) -> None:
    a.counts.errors |= {"connect_timeout": 3, "reset": 2}
    a.counts.retries["503"] += 4
    a.counts.codes |= {500: 1, 502: 9}
    a.counts.launches["failed"] += 1
    a.breaker.trip(1.5, 0.0)
    assert watched.look() == [
        "a was ejected: its breaker opened (answered 503 4 times, connect timeout 3 times, reset 2 times, "
        "answered 500 once)"
    ]
    (event,) = watched.history.about("a", 5)
    assert (event.name, event.level) == (EventName.BREAKER_OPEN, Level.WARNING)
    assert (event.member, event.who, event.time) == ("a", None, 1002.0)


def test_breaker_is_followed_until_it_closes(watched: Watched, a: Member) -> None:
    a.breaker.trip(watched.now, 0.0)
    assert watched.look() == ["a was ejected: its breaker opened"]
    assert watched.look() == []
    assert watched.look(5.0) == ["a gets trial requests: its breaker is half-open"]
    a.breaker.acquire(watched.now)
    assert watched.look() == []
    a.breaker.trip(watched.now, 0.0)
    assert watched.look() == ["a remains ejected: it failed its trial"]
    assert watched.look(10.0) == ["a gets trial requests: its breaker is half-open"]
    a.breaker.acquire(watched.now)
    a.breaker.trip(watched.now, 0.0)
    assert watched.look() == []
    assert watched.look(60.0)[0] == "a remains ejected: it failed its trial"
    generation = a.breaker.acquire(99.0)
    watched.look()
    a.breaker._become(BreakerState.CLOSED, 99.0)
    assert a.breaker.generation != generation
    assert watched.look() == ["a is no longer ejected: its breaker closed"]
    assert watched.history.about("a", 1)[0].name is EventName.BREAKER_CLOSED


def test_breaker_that_opens_in_another_worker_too_is_told_once(watched: Watched, a: Member) -> None:
    a.breaker.trip(1.5, 0.0)
    watched.look()
    a.counts.transitions["open"] += 1
    assert watched.look() == []


def test_breaker_that_opened_and_closed_between_two_looks_is_told(watched: Watched, a: Member) -> None:
    a.breaker.trip(1.1, 0.0)
    a.breaker._become(BreakerState.CLOSED, 1.2)
    assert watched.look() == ["a was ejected briefly: its breaker opened and closed"]


def test_members_that_come_and_go_are_forgotten(watched: Watched, b: Member) -> None:
    watched.members.remove(b)
    watched.members.append(member("c"))
    # Who let them tells of it.
    assert watched.look() == []
    assert set(watched.history.charts()) == {"a", "c"}


def test_nobody_available_is_told(watched: Watched, a: Member, b: Member) -> None:
    a.set_health(False, 0.0)
    b.set_intent(Intent.MAINT)
    assert "no member is available" in watched.look()
    a.set_health(True, 0.0)
    assert watched.look() == ["a member is available again"]


def test_what_happens_in_bulk_is_told_at_once_and_then_once_a_minute(watched: Watched, a: Member) -> None:
    a.counts.failovers["b"] += 1
    watched.edge.budget_exhausted += 1
    assert watched.look() == [
        "1 launch that a could not serve moved to b",
        "the retry budget was used up: 1 retry was not made",
    ]
    for _ in range(5):
        a.counts.failovers["b"] += 2
        watched.edge.budget_exhausted += 1
        assert watched.look(10.0) == []
    assert watched.look(10.0) == [
        "10 launches that a could not serve moved to b",
        "the retry budget was used up: 5 retries were not made",
    ]
    a.counts.failovers["b"] += 1
    assert watched.look(30.0) == []
    assert watched.look(30.0) == ["1 launch that a could not serve moved to b"]
    assert watched.look(60.0) == []
    a.counts.failovers["b"] += 3
    assert watched.look() == ["3 launches that a could not serve moved to b"]


def test_refused_visitors_are_one_event_with_their_reasons(watched: Watched) -> None:
    watched.edge.rejected |= {"malformed": 30, "head_timeout": 1}
    watched.edge.lines_dropped["access"] += 2
    assert watched.look() == [
        "visitors were refused: malformed 30 times, head timeout once",
        "2 lines of the log of access were lost",
    ]
    watched.edge.rejected |= {f"r{number}": 12 - number for number in range(10)}
    assert watched.look() == []
    (text,) = watched.look(60.0)
    assert text.startswith("visitors were refused: r0 12 times, r1 11 times, ")
    assert text.endswith(", r7 5 times, and 2 more reasons")


def test_what_was_refused_before_the_first_look_is_no_event() -> None:
    watched = Watched(member("a"))
    watched.edge.rejected["malformed"] += 3
    assert watched.look() == []


def test_bulk_is_told_though_the_clock_was_set_back(watched: Watched) -> None:
    history = watched.history
    for at in (5000.0, 5001.0):
        history.count(
            EventName.OPERATOR_REFUSED, {"": 1}, at, lambda counts: str(sum(counts.values())), who=f"{at}"
        )
    history.flush(4000.0)
    assert [(event.message, event.who) for event in history.events] == [("1", "5000.0"), ("1", "5001.0")]


def test_events_and_their_words_are_bounded_where_they_are_kept() -> None:
    logged: list[Event] = []
    history = History(logged.append)
    for number in range(2000):
        history.note(Event(EventName.EDGE_START, f"{number} " + "x" * 5000, time=float(number)))
    assert (len(history.events), history.changes) == (500, 2000)
    assert {len(event.message) for event in history.events} == {400}
    assert history.events[-1].time == 1999.0
    assert {len(event.message) for event in logged} > {5005}


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ([], 0.5, None),
        ([0.0005], 1.0, (0.001, 0.0, 0.001)),
        ([0.2] * 4, 0.5, (pytest.approx(0.175), 0.1, 0.25)),
        ([0.2, 9999.0], 0.99, (BOUNDS[-1], BOUNDS[-1], None)),
        ([9999.0], 0.1, (BOUNDS[-1], BOUNDS[-1], None)),
    ],
)
def test_quantile_has_a_value_and_the_bounds_that_hold_for_certain(
    values: list[float], part: float, expected: tuple[float, float, float | None] | None
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert quantile(histogram.counts, part) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2] * 4, 24250),
        # Just over 25 ms, and for sure not the bucket that ends there.
        ([0.026] + [0.00001] * 19 + [0.026] * 380_000, 2501 + round(2500 * 0.95)),
        ([9999.0], round(BOUNDS[-1] * LINES["first_byte"]) + 1),
    ],
)
def test_point_of_a_chart_tells_the_bucket(
    watched: Watched, a: Member, values: list[float], expected: int
) -> None:
    for value in values:
        a.counts.first_byte.observe(value)
    watched.look(STEP)
    (point,) = watched.history.charts()["a"]["first_byte"]
    assert point == pytest.approx(expected, abs=2)


def test_point_is_never_rounded_down_to_the_bound_of_the_bucket_below() -> None:
    assert history._point(Quantile(0.025_000_1, 0.025, 0.05)) == 2501
    assert history._point(Quantile(0.05, 0.025, 0.05)) == 5000


def test_breaker_that_opened_and_is_tried_again_between_two_looks_is_told_as_both(
    watched: Watched, a: Member
) -> None:
    a.breaker.trip(watched.now, 0.0)
    assert watched.look(6.0) == [
        "a was ejected: its breaker opened",
        "a gets trial requests: its breaker is half-open",
    ]
