"""What a probe's answer means, and when a member's health changes.

Answers come from a member and may be anything: judging one returns a verdict, and never raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_QUOTA_SERVICE: Final = "Pod quota"
_MOST_REASONS: Final = 16
_LONGEST_REASON: Final = 64
_MOST_DIFFERENCES: Final = 4
_MOST_PODS: Final = 2**53
_PODS: Final = {"total": "total_pods", "build": "build_pods", "user": "user_pods"}
#: Seconds. Few, so that a report differs from the last one only if the member became faster or slower.
_PACES: Final[tuple[float, ...]] = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Verdict:
    """The result of one probe.

    reasons: why it is not `ok`, as labels: a failed check's name, or `health`, `quota`, `versions`, or the
    caller's. immediate: a failure that takes effect at once, not only when it repeats. pods by kind, quota:
    numbers of pods, if the member reported them. checks: whether each check of `/health`, by its label, and
    `versions` passed, including those whose failure is ignored. details: why it is not `ok`, as sentences for
    people. seconds: how long `/health` took to answer; None if it did not, or with something else.
    """

    ok: bool
    reasons: tuple[str, ...] = ()
    immediate: bool = False
    pods: Mapping[str, int] = field(default_factory=dict)
    quota: int | None = None
    checks: Mapping[str, bool] = field(default_factory=dict)
    details: tuple[str, ...] = ()
    seconds: float | None = None


def unreachable(reason: str, detail: str = "", checks: tuple[str, ...] = ()) -> Verdict:
    """The member gave no valid answer. checks: those that fail because of that."""
    return Verdict(
        ok=False,
        reasons=(reason,),
        checks=dict.fromkeys(checks, False),
        details=(detail,) if detail else (),
    )


def together(*verdicts: Verdict) -> Verdict:
    """One verdict from several probes: ok if all are, with the pods that any of them reports."""
    pods: dict[str, int] = {}
    checks: dict[str, bool] = {}
    for verdict in verdicts:
        pods.update(verdict.pods)
        for label, passed in verdict.checks.items():
            checks[label] = passed and checks.get(label, True)
    return Verdict(
        ok=all(verdict.ok for verdict in verdicts),
        reasons=tuple(dict.fromkeys(reason for verdict in verdicts for reason in verdict.reasons)),
        immediate=any(verdict.immediate for verdict in verdicts),
        pods=pods,
        quota=next((verdict.quota for verdict in verdicts if verdict.quota is not None), None),
        checks=checks,
        details=tuple(dict.fromkeys(detail for verdict in verdicts for detail in verdict.details)),
        seconds=next((verdict.seconds for verdict in verdicts if verdict.seconds is not None), None),
    )


def pace(seconds: float) -> float:
    """The time limit that an answer kept: the least of a few numbers of seconds that it took no longer than.

    The greatest of them is also for those that took longer.
    """
    return next((limit for limit in _PACES if seconds <= limit), _PACES[-1])


def judge_versions(body: bytes, reference: bytes | None) -> Verdict:
    """Whether a member runs what prime runs: its `/versions` is the same JSON as `reference`, prime's.

    Without a usable reference nothing is compared. An answer that is not a JSON object has no versions: it is
    a failure like a failed connection.
    """
    versions = _object(body)
    if versions is None:
        return unreachable("versions", "answered something other than its versions", ("versions",))
    expected = _object(reference) if reference is not None else None
    if expected is None or versions == expected:
        return Verdict(ok=True, checks={"versions": True})
    return Verdict(
        ok=False,
        reasons=("versions",),
        immediate=True,
        checks={"versions": False},
        details=("versions differ from prime: " + _differences(versions, expected),),
    )


def judge_health(
    status: int, body: bytes, pod_headroom: int, reserve: int = 0, *, seconds: float | None = None
) -> Verdict:
    """The verdict on BinderHub's `/health`, with status 200 or 503, which took so many seconds.

    Each check must be `ok`, except one with `_ignore_failure`. The quota is judged by its numbers: the member
    is full when `total_pods + pod_headroom + reserve >= quota`.
    """
    health = _object(body)
    found = health.get("checks") if health is not None else None
    if health is None or not isinstance(found, list):
        return unreachable("health", "answered something other than its health")
    failed: dict[str, str] = {}
    checks: dict[str, bool] = {}
    pods: dict[str, int] = {}
    quota: int | None = None
    full = False
    for check in found:
        if not isinstance(check, dict):
            failed["health"] = "answered something other than its health"
            continue
        label, passed = _label(check.get("service")), check.get("ok") is True
        if check.get("service") == _QUOTA_SERVICE:
            pods = {kind: n for kind, name in _PODS.items() if (n := _count(check.get(name))) is not None}
            quota = _count(check.get("quota"))
            full = quota is not None and "total" in pods and pods["total"] + pod_headroom + reserve >= quota
        checks[label] = passed and checks.get(label, True) and not (full and label == _QUOTA_SERVICE)
        if not passed and check.get("_ignore_failure") is not True:
            failed[label] = f"reports that {label} is not ok"
    if full:
        kept = f" and a headroom of {pod_headroom}"
        if reserve:
            kept = f", a headroom of {pod_headroom} and a reserve of {reserve}"
        room = f"{pods['total']} pods{kept} reach the quota of {quota}"
        failed = {"quota": room, **failed}
    if not failed and (status != 200 or health.get("ok") is not True):
        failed["health"] = "reports that it is not ok, without a reason"
    return Verdict(
        ok=not failed,
        reasons=tuple(failed)[:_MOST_REASONS],
        immediate=full,
        pods=pods,
        quota=quota,
        checks=dict(list(checks.items())[:_MOST_REASONS]),
        details=tuple(failed.values())[:_MOST_REASONS],
        seconds=seconds,
    )


class HealthState:
    """A member's health over many verdicts.

    `healthy` until `fall` failures in a row or an immediate one, then unhealthy until `rise` successes in a
    row. `reasons`: those of the last failure, while it is unhealthy.
    """

    def __init__(self, rise: int, fall: int) -> None:
        self.rise = rise
        self.fall = fall
        self.healthy = True
        self.reasons: tuple[str, ...] = ()
        self._in_a_row = 0

    def __repr__(self) -> str:
        return f"<HealthState {'healthy' if self.healthy else 'unhealthy'} against={self._in_a_row}>"

    def observe(self, verdict: Verdict) -> bool:
        """Takes one verdict; True if the member's health changed."""
        if verdict.ok == self.healthy:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
        needed = self.fall if self.healthy else self.rise
        turned = self._in_a_row >= needed or (self.healthy and verdict.immediate and not verdict.ok)
        if turned:
            self.healthy = verdict.ok
            self._in_a_row = 0
        self.reasons = () if self.healthy else verdict.reasons or self.reasons
        return turned


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _count(value: object) -> int | None:
    """A number of pods, small enough for every program that may read it."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_PODS:
        return value
    return None


def _label(service: object) -> str:
    """A check's name as a label. A member chooses it, so it is made printable and shortened."""
    return (_printable(service) if isinstance(service, str) else "") or "health"


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text[: 2 * _LONGEST_REASON]))[:_LONGEST_REASON].strip()


def _differences(versions: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first few differences between a member's versions and prime's."""
    ours, theirs = _named(versions), _named(expected)
    names = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    shown = [
        f"{_printable(name)} {_shown(ours.get(name))} against {_shown(theirs.get(name))}"
        for name in names[:_MOST_DIFFERENCES]
    ]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    return ", ".join(shown) or "something else"


def _named(versions: dict[str, Any]) -> dict[str, Any]:
    """Each version by its innermost name, two levels deep, because `builder_info` is a mapping itself."""
    named: dict[str, Any] = {}
    for name, value in versions.items():
        named.update(value if isinstance(value, dict) else {name: value})
    return named


def _shown(version: object) -> str:
    if version is None:
        return "none"
    if isinstance(version, (str, int, float)):
        return _printable(str(version)) or "none"
    return "something else"
