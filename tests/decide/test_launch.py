"""What BinderHub says, and what is made of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import BreakerState, Outcome
from fedproxy.decide.federation import Federation, Lease
from fedproxy.decide.launch import Decision, End, FailureTable, Launch, LaunchVerdict, MovedKeys, judge_status
from fedproxy.decide.member import Member
from tests.attributes import attributes
from tests.rig.build import federation, member

TABLE = FailureTable()
SPEC = "gh:org/repo/HEAD"
IMAGE = "registry.example.org/r2d-org-repo:0123abc"
REPEATS, FULL, FAULTY = LaunchVerdict.REPEATS, LaunchVerdict.FULL, LaunchVerdict.FAULTY
HOLD, COMMIT, FAIL_OVER = Decision.HOLD, Decision.COMMIT, Decision.FAIL_OVER

# Every failure that BinderHub is known to tell, with the status it gives, if it gives one.
KNOWN: list[tuple[str, int | None, LaunchVerdict]] = [
    ("No provider found for prefix nope\n", None, REPEATS),
    (f"Could not resolve ref for {SPEC}. Double check your URL.\n", None, REPEATS),
    (
        f"Could not resolve ref for {SPEC}. Double check your URL and that your repo is public.\n",
        None,
        REPEATS,
    ),
    (f"Error resolving ref for {SPEC}: GitHub rate limit exceeded. Try again in 5 minutes.\n", None, FULL),
    (f"Error resolving ref for {SPEC}: HTTP 599: Timeout while connecting\n", None, FULL),
    (f"Error resolving ref for {SPEC}: HTTP 502: Bad Gateway\n", None, FULL),
    (f"Error resolving ref for {SPEC}: HTTP 403: Forbidden\n", None, REPEATS),
    (
        f"Error resolving ref for {SPEC}: Unable to run git ls-remote to get the `resolved_ref`\n",
        None,
        REPEATS,
    ),
    (
        "Sorry, org/repo/HEAD has been temporarily disabled from launching. Please contact admins\n",
        None,
        REPEATS,
    ),
    ("Sorry, org/repo/HEAD is not allowed to launch. Please contact admins for more info!\n", None, REPEATS),
    ("Requests from a cloud are not allowed\n", 403, REPEATS),
    ("Invalid build token\n", 403, REPEATS),
    ("Forbidden\n", 403, REPEATS),
    ("Bad Request\n", 400, REPEATS),
    ("User somebody already has a running server.\n", 409, REPEATS),
    ("Unsupported git url ftp://x, protocol ftp not in http, https, git, ssh\n", None, REPEATS),
    ('Spec is not of the form "user/repo/ref", provided: "x".\n', None, REPEATS),
    ("Too many users on this BinderHub! Try again soon.\n", None, FULL),
    ("Too many users running https://github.com/org/repo! Try again soon.\n", None, FULL),
    ("Rate limit exceeded. Try again in 3600 seconds.\n", 429, REPEATS),
    ("Too Many Requests\n", 429, FULL),
    (f"Failed to create temporary user for {IMAGE}\n", 500, FAULTY),
    (f"Failed to launch image {IMAGE}\n", 500, FAULTY),
    (f"Image {IMAGE} for user org-repo-abc failed to launch\n", 500, FAULTY),
    (f"Image {IMAGE} for user org-repo-abc took too long to launch\n", 500, FAULTY),
    ("Internal Server Error\n", 500, FAULTY),
    ("Internal Server Error\n", None, FAULTY),
    ("Service Unavailable\n", 503, FAULTY),
    ("Unknown HTTP Error\n", 599, FAULTY),
]


@pytest.mark.parametrize(("message", "status", "verdict"), KNOWN)
def test_known_failure_is_judged(message: str, status: int | None, verdict: LaunchVerdict) -> None:
    assert TABLE.judge(message, status) is verdict


@pytest.mark.parametrize(
    "message",
    [
        "No provider found for prefix Internal Server Error",
        "Could not resolve ref for gh:Failed to launch image /x. Double check your URL.",
        "Sorry, Too many users on this BinderHub! is not allowed to launch",
        "Error resolving ref for gh:Image/for/user: something took too long to launch",
    ],
)
def test_what_a_visitor_asks_for_cannot_blame_a_member(message: str) -> None:
    assert TABLE.judge(message, None) is REPEATS


def test_what_nothing_is_known_of_repeats() -> None:
    assert TABLE.judge("something new", None) is REPEATS


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (400, REPEATS),
        (404, REPEATS),
        (429, FULL),
        (500, FAULTY),
        (599, FAULTY),
        (600, REPEATS),
        (-1, REPEATS),
    ],
)
def test_status_alone_is_judged(status: int, verdict: LaunchVerdict) -> None:
    assert judge_status(status) is verdict
    assert TABLE.judge("", status) is verdict


def test_operators_patterns_go_before_what_is_known() -> None:
    table = FailureTable(
        repeats=[re.compile("in maintenance")],
        elsewhere=[re.compile("[Oo]ut of disk"), re.compile("ref for")],
    )
    assert table.judge("Internal Server Error: in maintenance, out of disk", 500) is REPEATS
    assert table.judge("The node is out of disk", None) is FULL
    assert table.judge("Out of disk", 500) is FAULTY
    assert table.judge(f"Could not resolve ref for {SPEC}", None) is FULL
    assert table.judge("Invalid build token", 403) is REPEATS


def test_long_message_is_judged_by_its_beginning() -> None:
    hostile = "Image " + "x for user " * 5_000
    assert TABLE.judge(hostile, None) is REPEATS
    assert TABLE.judge(hostile, 500) is FAULTY


# One launch


def event(phase: object = None, **more: Any) -> bytes:
    return json.dumps(({} if phase is None else {"phase": phase}) | more).encode()


def fed(*events: bytes | None, table: FailureTable = TABLE) -> Launch:
    """A launch that got these events, one a second, the first one second after its start."""
    launch = Launch(table, 100.0)
    for second, data in enumerate(events, 101):
        launch.event(data, float(second))
    return launch


QUOTA = event("failed", message="Too many users on this BinderHub! Try again soon.\n")
BROKEN = event("failed", message="Internal Server Error\n", status_code=500)
NO_REF = event("failed", message=f"Could not resolve ref for {SPEC}. Double check your URL.\n")
READY = event("ready", message="server running at\n", url="https://hub/user/x/", token="secret")


def test_launch_without_an_event_is_held() -> None:
    launch = fed()
    assert (launch.decision, launch.end, launch.blame) == (HOLD, None, None)
    assert repr(launch) == "<Launch None hold>"


@pytest.mark.parametrize(
    "phase", ["waiting", "fetching", "unknown", "building", "pushing", "launching", "ready"]
)
def test_launch_that_gets_on_is_committed(phase: str) -> None:
    assert fed(event(phase)).decision is COMMIT


def test_image_that_is_there_is_held_until_it_is_known_whether_there_is_room() -> None:
    assert fed(event("built")).decision is HOLD
    assert fed(event("built"), QUOTA).decision is FAIL_OVER
    assert fed(event("built"), event("launching")).decision is COMMIT


@pytest.mark.parametrize(
    ("failure", "decision", "blame"),
    [
        (QUOTA, FAIL_OVER, Outcome.IGNORED),
        (BROKEN, FAIL_OVER, Outcome.FAILURE),
        (NO_REF, COMMIT, Outcome.IGNORED),
    ],
)
def test_first_event_that_is_a_failure_decides(failure: bytes, decision: Decision, blame: Outcome) -> None:
    launch = fed(failure)
    assert (launch.decision, launch.end, launch.blame) == (decision, End.FAILED, blame)


def test_decision_stays() -> None:
    launch = fed(event("waiting"), QUOTA)
    assert (launch.decision, launch.end) == (COMMIT, End.FAILED)


def test_ready_ends_a_launch_and_what_follows_is_not_read() -> None:
    launch = fed(event("built"), event("launching"), READY, BROKEN)
    assert (launch.end, launch.ready_after, launch.blame) == (End.READY, 3.0, Outcome.SUCCESS)
    assert launch.close(End.LOST, 200.0) is End.READY
    assert launch.phases == {"built": 1.0, "launching": 1.0}
    assert "secret" not in repr(launch) and not any(
        "secret" in str(getattr(launch, s)) for s in attributes(Launch)
    )


def test_failed_build_is_the_repositorys_fault_whatever_it_says() -> None:
    for said in ("Internal Server Error\n", "Too many users on this BinderHub!", "", None):
        launch = fed(event("waiting"), event("building"), event("failed", message=said))
        assert (launch.end, launch.verdict, launch.blame) == (End.FAILED, REPEATS, Outcome.IGNORED)


def test_member_that_breaks_down_in_a_build_is_to_blame() -> None:
    assert fed(event("building"), BROKEN).blame is Outcome.FAILURE


def test_launch_that_fails_after_its_build_is_the_members_fault() -> None:
    launch = fed(
        event("built"), event("launching"), event("failed", message=f"Failed to launch image {IMAGE}")
    )
    assert launch.blame is Outcome.FAILURE


def test_failure_is_called_by_both_its_names() -> None:
    assert fed(event("building"), event("failure")).end is End.FAILED


def test_time_in_phases_is_kept_also_of_one_that_comes_twice() -> None:
    launch = fed(event("waiting"), event("building"), event("building"), event("pushing"), event("building"))
    assert launch.building
    assert launch.close(End.LOST, 107.0) is End.LOST
    assert launch.phases == {"waiting": 1.0, "building": 2.0 + 2.0, "pushing": 1.0}
    assert (launch.blame, launch.ready_after) == (Outcome.FAILURE, None)


def test_visitor_who_leaves_blames_nobody() -> None:
    launch = fed(event("building"))
    assert launch.close(End.ABANDONED, 102.0) is End.ABANDONED
    assert launch.blame is Outcome.IGNORED


def test_stream_without_an_event_is_lost() -> None:
    assert fed().close(End.LOST, 101.0) is End.LOST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'"failed"',
        b"null",
        b"{",
        b"[" * 100_000,
        b"9" * 10_000,
        event(),
        event("levitating"),
        event(["failed"]),
        event({"phase": "failed"}),
        event(7),
        event("failed"),
        event("failed", message=None, status_code="500"),
        None,
    ],
    ids=lambda data: repr(data)[:20],
)
def test_event_that_means_nothing_is_passed_on_and_counted_as_unknown(data: bytes | None) -> None:
    launch = fed(data)
    assert launch.decision is COMMIT
    assert launch.close(End.LOST, 102.0) is End.UNKNOWN
    assert launch.blame is None


def test_events_without_a_phase_do_not_hide_those_with_one() -> None:
    launch = fed(
        event("building"), event(message='"phase": "failed"'), b"???", None, event("launching"), READY
    )
    assert launch.end is End.READY


def test_odd_status_is_none() -> None:
    assert fed(event("failed", message="?", status_code="503")).verdict is REPEATS


@pytest.mark.parametrize(
    ("status", "decision", "end", "blame"),
    [
        (200, COMMIT, End.UNKNOWN, None),
        (302, COMMIT, End.UNKNOWN, None),
        (404, COMMIT, End.FAILED, Outcome.IGNORED),
        (429, FAIL_OVER, End.FAILED, Outcome.IGNORED),
        (502, FAIL_OVER, End.FAILED, Outcome.FAILURE),
    ],
)
def test_response_that_is_no_stream(status: int, decision: Decision, end: End, blame: Outcome | None) -> None:
    launch = Launch(TABLE, 0.0)
    launch.answered(status)
    assert (launch.decision, launch.end, launch.blame) == (decision, end, blame)


@given(st.lists(st.one_of(st.binary(max_size=60), st.none(), st.sampled_from([QUOTA, BROKEN, READY]))))
@example([b"\0"])
def test_any_events_give_an_end(events: list[bytes | None]) -> None:
    launch = fed(*events)
    assert launch.close(End.LOST, 1000.0) in End
    assert (launch.decision is HOLD) == (not events)


# What the breaker is told


def outcome(fed: Federation, of: Member, how: Outcome, *, launch: bool = True) -> None:
    """One request with that outcome: a launch, judged and then settled, or a page."""
    lease = fed.acquire_member(of, Source.HOST, (), 0.0, launch)
    assert isinstance(lease, Lease)
    if launch:
        fed.judge(lease, how, 0.0)
    fed.settle(lease, Outcome.SUCCESS if launch else how, 0.0)


def test_launches_that_fail_in_a_row_open_however_many_pages_come_between() -> None:
    gesis = member("gesis")
    fed = federation(gesis, member("ovh"))
    for _ in range(5):
        for _ in range(20):
            outcome(fed, gesis, Outcome.SUCCESS, launch=False)
        outcome(fed, gesis, Outcome.FAILURE)
    assert gesis.breaker.state is BreakerState.OPEN
    assert (gesis.in_flight, gesis.launches) == (0, 0)


def test_launch_that_gets_ready_begins_the_count_anew_and_one_that_says_nothing_does_not() -> None:
    gesis = member("gesis")
    fed = federation(gesis, member("ovh"))
    for how in (Outcome.FAILURE,) * 4 + (Outcome.IGNORED, Outcome.SUCCESS) + (Outcome.FAILURE,) * 4:
        outcome(fed, gesis, how)
        outcome(fed, gesis, Outcome.SUCCESS, launch=False)
    assert gesis.breaker.closed
    outcome(fed, gesis, Outcome.FAILURE)
    assert not gesis.breaker.closed


def test_last_member_is_not_ejected_for_its_launches() -> None:
    gesis = member("gesis")
    fed = federation(gesis)
    for _ in range(10):
        outcome(fed, gesis, Outcome.FAILURE)
    assert gesis.breaker.closed


def test_launch_that_began_before_the_breaker_opened_is_not_judged() -> None:
    gesis = member("gesis")
    fed = federation(gesis, member("ovh"))
    lease = fed.acquire_member(gesis, Source.HOST, (), 0.0, True)
    assert isinstance(lease, Lease)
    gesis.breaker.trip(0.0, 0.0)
    fed.judge(lease, Outcome.FAILURE, 0.0)
    assert gesis.failed_launches == 0


def launch(fed: Federation, of: Member, how: Outcome, client: bytes) -> None:
    lease = fed.acquire_member(of, Source.HOST, (), 0.0, True, client)
    assert isinstance(lease, Lease)
    fed.judge(lease, how, 0.0, client)
    fed.settle(lease, Outcome.SUCCESS, 0.0, client)


def test_launches_that_only_one_client_saw_fail_do_not_open_while_others_are_served() -> None:
    gesis = member("gesis")
    fed = federation(gesis, member("ovh"))
    page = fed.acquire_member(gesis, Source.HOST, (), 0.0)
    assert isinstance(page, Lease)
    fed.settle(page, Outcome.SUCCESS, 0.0, b"192.0.2.2")
    for _ in range(20):
        launch(fed, gesis, Outcome.FAILURE, b"192.0.2.1")
    assert gesis.breaker.closed
    launch(fed, gesis, Outcome.FAILURE, b"192.0.2.3")
    assert gesis.breaker.state is BreakerState.OPEN


def test_launch_that_gets_ready_clears_the_witnesses_too() -> None:
    gesis = member("gesis")
    fed = federation(gesis, member("ovh"))
    launch(fed, gesis, Outcome.FAILURE, b"192.0.2.1")
    launch(fed, gesis, Outcome.SUCCESS, b"192.0.2.2")
    assert (gesis.failed_launches, gesis.launch_witnesses) == (0, set())


def test_witnesses_of_launches_are_bounded() -> None:
    gesis = member("gesis")
    fed = federation(gesis)
    for number in range(50):
        launch(fed, gesis, Outcome.FAILURE, b"192.0.2.%d" % number)
    assert len(gesis.launch_witnesses) == 2


# Keys that moved


def test_moved_key_is_known_until_it_expires() -> None:
    moved = MovedKeys(seconds=60.0)
    moved.note(b"key", "gesis", 0.0)
    assert moved.get(b"key", 59.0) == "gesis"
    assert moved.get(b"other", 59.0) is None
    assert moved.get(b"key", 60.0) is None
    assert len(moved) == 0


def test_moved_key_that_is_noted_again_lives_on() -> None:
    moved = MovedKeys(seconds=60.0)
    moved.note(b"key", "gesis", 0.0)
    moved.note(b"key", "ovh", 50.0)
    assert moved.get(b"key", 100.0) == "ovh"


def test_long_key_is_not_noted() -> None:
    moved = MovedKeys()
    moved.note(b"/build/gh/" + b"x" * 10_000, "a", 0.0)
    assert not moved


def test_moved_keys_are_bounded_and_the_oldest_goes_first() -> None:
    moved = MovedKeys(entries=2)
    for key in (b"a", b"b", b"a", b"c"):
        moved.note(key, "gesis", 0.0)
    assert len(moved) == 2
    assert moved.get(b"b", 0.0) is None
    assert moved.get(b"a", 0.0) == moved.get(b"c", 0.0) == "gesis"


def moved(*events: bytes) -> Launch:
    """A launch that another member had before."""
    launch = Launch(TABLE, 0.0, moved=True)
    for data in events:
        launch.event(data, 1.0)
    return launch


INVALID = event("failed", message="Invalid build token\n", status_code=403)


def test_token_of_another_member_that_is_refused_says_that_members_share_no_secret() -> None:
    launch = moved(INVALID)
    assert (launch.foreign, launch.verdict, launch.decision) == (True, FULL, FAIL_OVER)
    assert launch.blame is Outcome.IGNORED
    assert not fed(INVALID).foreign


def test_build_that_prints_of_a_token_says_nothing() -> None:
    launch = moved(event("building"), INVALID)
    assert (launch.foreign, launch.verdict) == (False, REPEATS)


@pytest.mark.parametrize(
    ("url", "session"),
    [("https://h/user/x/?token=s3cret", b"/user/x/"), ("/user/x", b"/user/x"), (None, None), (3, None)],
)
def test_path_of_the_server_that_is_ready_is_kept_and_no_secret(url: object, session: bytes | None) -> None:
    assert fed(event("ready", url=url, token="s3cret")).session == session
