from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.decide.health import (
    HealthState,
    Verdict,
    judge_health,
    judge_versions,
    pace,
    together,
    unreachable,
)

REGISTRY = {"service": "Docker registry", "ok": True}
QUOTA = {
    "service": "Pod quota",
    "total_pods": 137,
    "build_pods": 4,
    "user_pods": 133,
    "quota": 300,
    "ok": True,
    "_ignore_failure": True,
}


def health(*checks: object, status: int = 200, ok: object = True, headroom: int = 10) -> Verdict:
    return judge_health(status, json.dumps({"ok": ok, "checks": checks}).encode(), headroom)


def test_healthy_answer_is_ok_and_tells_the_pods() -> None:
    assert health(REGISTRY, QUOTA) == Verdict(
        ok=True,
        pods={"total": 137, "build": 4, "user": 133},
        quota=300,
        checks={"Docker registry": True, "Pod quota": True},
    )


def test_failed_check_is_named_and_does_not_act_at_once() -> None:
    verdict = health(REGISTRY | {"ok": False}, QUOTA, status=503, ok=False)
    assert (verdict.ok, verdict.reasons, verdict.immediate) == (False, ("Docker registry",), False)
    assert verdict.quota == 300
    assert verdict.checks == {"Docker registry": False, "Pod quota": True}
    assert verdict.details == ("reports that Docker registry is not ok",)


def test_failure_that_binderhub_ignores_is_ignored_and_still_told() -> None:
    verdict = health(REGISTRY | {"ok": False, "_ignore_failure": True})
    assert verdict == Verdict(ok=True, checks={"Docker registry": False})


def test_check_that_comes_twice_passed_if_both_did() -> None:
    verdict = health(REGISTRY | {"ok": False}, REGISTRY)
    assert (verdict.reasons, verdict.checks) == (("Docker registry",), {"Docker registry": False})


@pytest.mark.parametrize(("total", "ok"), [(289, True), (290, False), (400, False)])
def test_quota_acts_at_once_when_the_headroom_is_gone(total: int, ok: bool) -> None:
    verdict = health(QUOTA | {"total_pods": total})
    assert (verdict.ok, verdict.immediate) == (ok, not ok)
    assert verdict.reasons == (() if ok else ("quota",))
    assert verdict.checks == {"Pod quota": ok}
    room = f"{total} pods and a headroom of 10 reach the quota of 300"
    assert verdict.details == (() if ok else (room,))


@pytest.mark.parametrize(("total", "ok"), [(239, True), (240, False)])
def test_reserve_is_kept_free_beside_the_headroom(total: int, ok: bool) -> None:
    body = json.dumps({"ok": True, "checks": [QUOTA | {"total_pods": total}]}).encode()
    verdict = judge_health(200, body, 10, reserve=50)
    assert (verdict.ok, verdict.immediate, verdict.reasons) == (ok, not ok, () if ok else ("quota",))
    room = "240 pods, a headroom of 10 and a reserve of 50 reach the quota of 300"
    assert verdict.details == (() if ok else (room,))


@pytest.mark.parametrize("change", [{"quota": None}, {"quota": "300"}, {"total_pods": None}, {"quota": True}])
def test_quota_that_is_no_number_is_no_limit(change: dict[str, Any]) -> None:
    assert health(QUOTA | {"total_pods": 299} | change).ok


@pytest.mark.parametrize("number", [-1, 2**53, 1.5, "4", True, None])
def test_pods_that_are_no_number_of_pods_are_left_out(number: object) -> None:
    assert "build" not in health(QUOTA | {"build_pods": number}).pods


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"3",
        b"{}",
        b'{"checks": null}',
        b'{"checks": {}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_answer_that_is_no_health_is_a_verdict_against(body: bytes) -> None:
    verdict = unreachable("health", "answered something other than its health")
    assert judge_health(200, body, 10) == verdict


@pytest.mark.parametrize(
    "check", [None, 3, "ok", [], {}, {"ok": "true"}, {"service": 7, "ok": False}, {"service": ""}]
)
def test_check_that_is_no_check_is_a_verdict_against(check: object) -> None:
    assert health(check).reasons == ("health",)


@pytest.mark.parametrize(("status", "ok"), [(503, True), (200, False), (200, None), (404, True)])
def test_status_or_summary_alone_is_a_verdict_against(status: int, ok: object) -> None:
    verdict = health(REGISTRY, status=status, ok=ok)
    assert (verdict.reasons, verdict.checks) == (("health",), {"Docker registry": True})
    assert verdict.details == ("reports that it is not ok, without a reason",)


def test_labels_of_a_members_choosing_are_cut_and_few() -> None:
    verdict = health(*({"service": f"{i}\n" + "x" * 1000, "ok": False} for i in range(100)))
    assert len(verdict.reasons) == 16
    assert verdict.reasons[0] == "0" + "x" * 63
    assert tuple(verdict.checks) == verdict.reasons
    assert len(verdict.details) == 16


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["ok", "checks", "service", "quota", "total_pods"]), inner, max_size=5
            )
        ),
    ),
    st.sampled_from([200, 500, 503]),
)
def test_any_json_gives_a_verdict(value: object, status: int) -> None:
    verdict = judge_health(status, json.dumps(value).encode(), 10)
    assert verdict.ok is not bool(verdict.reasons)


VERSIONS = b'{"builder_info": {"build_image": "r2d:1"}, "binderhub": "1.0", "builder": "kubernetes"}'


def test_versions_equal_to_primes_are_ok_however_written() -> None:
    verdict = judge_versions(json.dumps(json.loads(VERSIONS), indent=2).encode(), VERSIONS)
    assert verdict == Verdict(ok=True, checks={"versions": True})


def test_other_versions_act_at_once_and_are_named() -> None:
    other = VERSIONS.replace(b'"1.0"', b'"1.1"')
    assert judge_versions(other, VERSIONS) == Verdict(
        ok=False,
        reasons=("versions",),
        immediate=True,
        checks={"versions": False},
        details=("versions differ from prime: binderhub 1.1 against 1.0",),
    )


@pytest.mark.parametrize(
    ("ours", "primes", "difference"),
    [
        ({"info": {"image": "r2d:1"}}, {"info": {"image": "r2d:2"}}, "image r2d:1 against r2d:2"),
        ({}, {"binderhub": "1.0"}, "binderhub none against 1.0"),
        ({"binderhub": 1.5}, {"binderhub": None}, "binderhub 1.5 against none"),
        ({"a": [1]}, {"a": "\n"}, "a something else against none"),
        ({"a": 1, "info": {"a": 2}}, {"info": {"a": 2}}, "something else"),
        (
            {f"v{i}": i for i in range(6)},
            {},
            "v0 0 against none, v1 1 against none, v2 2 against none, v3 3 against none, 2 more",
        ),
        ({"a\n" + "x" * 100: "y" * 100}, {}, f"a{'x' * 63} {'y' * 64} against none"),
    ],
)
def test_versions_that_differ_are_told_in_a_line_of_bounded_length(
    ours: dict[str, Any], primes: dict[str, Any], difference: str
) -> None:
    verdict = judge_versions(json.dumps(ours).encode(), json.dumps(primes).encode())
    assert verdict.details == (f"versions differ from prime: {difference}",)


@pytest.mark.parametrize("reference", [None, b"", b"<html>"])
def test_versions_with_nothing_to_differ_from_are_ok(reference: bytes | None) -> None:
    assert judge_versions(VERSIONS, reference).ok


def test_answer_that_is_no_versions_does_not_act_at_once() -> None:
    verdict = unreachable("versions", "answered something other than its versions", ("versions",))
    assert judge_versions(b"<html>", VERSIONS) == verdict
    assert not verdict.immediate


def test_time_is_told_of_an_answer_that_has_the_health() -> None:
    body = json.dumps({"ok": False, "checks": [REGISTRY | {"ok": False}]}).encode()
    assert judge_health(503, body, 10, seconds=0.25).seconds == 0.25
    assert judge_health(200, b"<html>", 10, seconds=0.25).seconds is None
    slow = judge_health(200, b'{"ok": true, "checks": []}', 10, seconds=2.5)
    assert together(Verdict(ok=True), slow).seconds == 2.5


@pytest.mark.parametrize(("seconds", "limit"), [(0.0, 0.5), (0.5, 0.5), (0.51, 1), (7, 10), (30.1, 30)])
def test_pace_is_the_least_limit_that_was_kept(seconds: float, limit: float) -> None:
    assert pace(seconds) == limit


def test_verdicts_together_are_ok_if_all_are() -> None:
    full = health(QUOTA | {"total_pods": 300})
    lost = unreachable("timeout", "no connection within 5 s", ("versions",))
    assert together(lost, full, full) == Verdict(
        ok=False,
        reasons=("timeout", "quota"),
        immediate=True,
        pods=full.pods,
        quota=300,
        checks={"versions": False, "Pod quota": False},
        details=("no connection within 5 s", *full.details),
    )
    assert together(Verdict(ok=True), health(QUOTA)) == health(QUOTA)
    assert together() == Verdict(ok=True)


def test_check_in_two_verdicts_passed_if_it_did_in_both() -> None:
    verdicts = Verdict(ok=False, checks={"versions": False}), Verdict(ok=True, checks={"versions": True})
    assert together(*verdicts).checks == together(*reversed(verdicts)).checks == {"versions": False}


def observed(state: HealthState, *verdicts: Verdict) -> list[bool]:
    return [state.observe(verdict) for verdict in verdicts]


GOOD, LOST = Verdict(ok=True), unreachable("timeout")
FULL = Verdict(ok=False, reasons=("quota",), immediate=True)


def test_member_falls_after_so_many_failures_in_a_row() -> None:
    state = HealthState(rise=1, fall=3)
    assert observed(state, LOST, LOST, GOOD, LOST, LOST) == [False] * 5
    assert not state.reasons
    assert state.observe(LOST)
    assert not state.healthy
    assert list(state.reasons) == ["timeout"]
    assert repr(state) == "<HealthState unhealthy against=0>"


def test_immediate_failure_acts_at_once_and_turns_once() -> None:
    state = HealthState(rise=1, fall=3)
    assert observed(state, FULL, FULL) == [True, False]


def test_reasons_follow_the_last_failure() -> None:
    state = HealthState(rise=1, fall=1)
    observed(state, LOST, FULL)
    assert list(state.reasons) == ["quota"]


def test_member_rises_after_so_many_successes_in_a_row() -> None:
    state = HealthState(rise=2, fall=1)
    assert observed(state, LOST, GOOD, LOST, GOOD) == [True, False, False, False]
    assert list(state.reasons) == ["timeout"]
    assert state.observe(GOOD)
    assert state.healthy
    assert not state.reasons
    assert repr(state) == "<HealthState healthy against=0>"
