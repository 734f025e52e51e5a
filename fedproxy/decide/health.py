"""What a probe's answer means, and when a member's health turns.

Answers come from a member and may be anything: judging one gives a verdict, never an exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_QUOTA_SERVICE: Final = "Pod quota"
_MOST_REASONS: Final = 16
_LONGEST_REASON: Final = 64
_MOST_PODS: Final = 2**53
_PODS: Final = {"total": "total_pods", "build": "build_pods", "user": "user_pods"}


@dataclass(frozen=True)
class Verdict:
    """What one probe says.

    reasons: why not `ok`, as labels: a failed check's name, or `health`, `quota`, `versions`, or what the
    caller gave. immediate: a failure that acts at once, not only when it comes again. pods by kind, quota:
    numbers of pods, as far as the member gave them.
    """

    ok: bool
    reasons: tuple[str, ...] = ()
    immediate: bool = False
    pods: Mapping[str, int] = field(default_factory=dict)
    quota: int | None = None


def unreachable(reason: str) -> Verdict:
    """The member gave no answer."""
    return Verdict(ok=False, reasons=(reason,))


def together(*verdicts: Verdict) -> Verdict:
    """One verdict of several probes: ok if all are, and what any of them says about pods."""
    pods: dict[str, int] = {}
    for verdict in verdicts:
        pods.update(verdict.pods)
    return Verdict(
        ok=all(verdict.ok for verdict in verdicts),
        reasons=tuple(dict.fromkeys(reason for verdict in verdicts for reason in verdict.reasons)),
        immediate=any(verdict.immediate for verdict in verdicts),
        pods=pods,
        quota=next((verdict.quota for verdict in verdicts if verdict.quota is not None), None),
    )


def judge_versions(body: bytes, reference: bytes | None) -> Verdict:
    """Whether a member runs what prime runs: its `/versions` is the same JSON as `reference`, prime's.

    With no usable reference there is nothing to differ from. An answer that is no JSON object tells no
    version: it is a failure like one to connect.
    """
    versions = _object(body)
    if versions is None:
        return unreachable("versions")
    expected = _object(reference) if reference is not None else None
    if expected is None or versions == expected:
        return Verdict(ok=True)
    return Verdict(ok=False, reasons=("versions",), immediate=True)


def judge_health(status: int, body: bytes, pod_headroom: int) -> Verdict:
    """What BinderHub's `/health` says, with status 200 or 503.

    Each check must be `ok`, except one that says `_ignore_failure`. The quota is judged by its numbers: too
    few are left when `total_pods + pod_headroom >= quota`.
    """
    health = _object(body)
    checks = health.get("checks") if health is not None else None
    if health is None or not isinstance(checks, list):
        return unreachable("health")
    reasons: list[str] = []
    pods: dict[str, int] = {}
    quota: int | None = None
    for check in checks:
        if not isinstance(check, dict):
            reasons.append("health")
            continue
        if check.get("service") == _QUOTA_SERVICE:
            pods = {kind: n for kind, name in _PODS.items() if (n := _count(check.get(name))) is not None}
            quota = _count(check.get("quota"))
        if check.get("ok") is not True and check.get("_ignore_failure") is not True:
            reasons.append(_label(check.get("service")))
    full = quota is not None and "total" in pods and pods["total"] + pod_headroom >= quota
    if full:
        reasons.insert(0, "quota")
    if not reasons and (status != 200 or health.get("ok") is not True):
        reasons.append("health")
    labels = tuple(dict.fromkeys(reasons))[:_MOST_REASONS]
    return Verdict(ok=not reasons, reasons=labels, immediate=full, pods=pods, quota=quota)


class HealthState:
    """A member's health over many verdicts.

    `healthy` until `fall` failures in a row or an immediate one, then not until `rise` successes in a row.
    `reasons`: those of the last failure, while it is not healthy.
    """

    def __init__(self, rise: int = 1, fall: int = 3) -> None:
        self.rise = rise
        self.fall = fall
        self.healthy = True
        self.reasons: tuple[str, ...] = ()
        self._in_a_row = 0

    def __repr__(self) -> str:
        return f"<HealthState {'healthy' if self.healthy else 'unhealthy'} against={self._in_a_row}>"

    def observe(self, verdict: Verdict) -> bool:
        """Takes one verdict; True if the member's health turned."""
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
    """A number of pods: small enough for every program that will read it."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_PODS:
        return value
    return None


def _label(service: object) -> str:
    """A check's name as a label: of a member's choosing, so cut and printable."""
    if not isinstance(service, str):
        return "health"
    name = "".join(filter(str.isprintable, service))[:_LONGEST_REASON].strip()
    return name or "health"
