"""What a candidate's plain answers say: versions, clock, health, pods, files."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from fedproxy.config.model import HealthSettings
from fedproxy.control.candidate.check import (
    CLOCK_OFF,
    SLOW_LINE,
    Candidate,
    Check,
    CheckOutcome,
    make,
    show_time,
    skip,
)
from fedproxy.control.candidate.client import CandidateClient, Silence, is_page, remedy, unexpected
from fedproxy.control.fetch import Fetched
from fedproxy.decide.health import Verdict, judge_health, judge_versions

_LARGEST_FILE: Final = 32 << 20
_SMALLEST_FILE: Final = 100_000  # of which a rate says something
# Without a second way to match, so that no page is slow to search.
_PATH: Final = re.compile(r"""["'](/[^"'\s<>]+)["']""")
_PASSED_ON: Final = "BinderHub serves this path: does what stands in front of it pass the request on?"
_HTML: Final = (
    "This may be a login, an error or BinderHub's own page: is --base-path right, and is this path forwarded "
    "to BinderHub without a login?"
)


def judge_the_versions(
    candidate: Candidate, found: Fetched | Silence, reference: Fetched | Silence | None
) -> Check:
    """Whether it runs what the reference runs."""
    if isinstance(found, Silence) or found.status != 200:
        # It was connected to before, so that alone says nothing of a restart.
        fix = _PASSED_ON if isinstance(found, Silence) else remedy(candidate, found, _PASSED_ON)
        return make("versions", CheckOutcome.FAILED, unexpected(found), fix)
    own = judge_versions(found.body, None)
    if not own.ok:
        if is_page(found):
            return make("versions", CheckOutcome.FAILED, "answered HTML where JSON belongs", _HTML)
        return make("versions", CheckOutcome.FAILED, "; ".join(own.details), _PASSED_ON)
    versions = json.loads(found.body, parse_constant=str, parse_float=_finite)
    seen = json.dumps(versions)
    if reference is None:
        return make("versions", CheckOutcome.OK, seen, versions=versions)
    if isinstance(reference, Silence) or reference.status != 200:
        fix = "Try again when the reference answers."
        seen = f"the reference: {unexpected(reference)}"
        return make("versions", CheckOutcome.WARNING, seen, fix, versions=versions)
    same = judge_versions(found.body, reference.body)
    if not same.ok:
        fix = "Deploy the versions of the reference: an edge treats a member with others as unhealthy."
        return make("versions", CheckOutcome.FAILED, "; ".join(same.details), fix, versions=versions)
    return make("versions", CheckOutcome.OK, f"same as the reference: {seen}", versions=versions)


def _finite(number: str) -> float | str:
    """A number that JSON can have again."""
    found = float(number)
    return found if math.isfinite(found) else number


def judge_again(again: Fetched | Silence, *, reused: bool) -> Check:
    """Whether a second request could use the connection of the first."""
    if isinstance(again, Silence):
        fix = (
            "It answered the first request but not the second: does it, or a proxy in front, limit requests?"
        )
        return make("keep-alive", CheckOutcome.FAILED, again.why, fix)
    if not reused:
        fix = "Allow keep-alive for 75 s or more: otherwise each request costs a connection and a handshake."
        return make("keep-alive", CheckOutcome.WARNING, "it closed the connection after one response", fix)
    return make("keep-alive", CheckOutcome.OK, f"the second response took {show_time(again.seconds)}")


@dataclass(frozen=True)
class Offset:
    """How far a member's clock is ahead of this machine's, in seconds, and how wrong that may be."""

    seconds: float
    uncertain: float

    @property
    def off(self) -> bool:
        """Whether it is certainly too far."""
        return abs(self.seconds) - self.uncertain > CLOCK_OFF

    def __sub__(self, other: Offset) -> Offset:
        return Offset(self.seconds - other.seconds, self.uncertain + other.uncertain)


def offset_of(found: Fetched | Silence | None, now: float) -> Offset | None:
    """What an answer's Date says of its clock. `now`: when its last byte came, in seconds since the epoch."""
    if found is None or isinstance(found, Silence):
        return None
    try:
        date = parsedate_to_datetime(found.headers.get("Date", ""))
        # A stored response has the Date of its origin.
        age = float(int(found.headers.get("Age", "0")))
    except (TypeError, ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    # Date is cut to seconds, and was written between the request and the response.
    middle = now - found.seconds / 2
    return Offset(date.timestamp() + age + 0.5 - middle, 0.5 + found.seconds / 2)


def judge_clock(own: Offset | None, reference: Offset | None) -> Check:
    """Whether the clocks agree, and which may be wrong."""
    name = "clock"
    if own is None:
        return make(name, CheckOutcome.SKIPPED, "its answers have no valid Date")
    values: dict[str, Any] = {
        "ahead": round(own.seconds, 1),
        "uncertain": round(own.uncertain, 1),
        "reference_ahead": None if reference is None else round(reference.seconds, 1),
    }
    fix = (
        "Synchronise the clocks (NTP): build tokens are valid for five minutes. Date is that of what "
        "answers, which may be a proxy in front of BinderHub: check both."
    )
    if not own.off:
        seen = f"within {abs(own.seconds) + own.uncertain:.0f} s of this machine's"
        if reference is not None and reference.off:
            # The two clocks here agree, and only another member's differs.
            seen += f"; the reference's is {_ahead(reference.seconds)} both"
        return make(name, CheckOutcome.OK, seen, **values)
    seen = f"its clock is {_ahead(own.seconds)} this machine's"
    if reference is None:
        return make(name, CheckOutcome.WARNING, f"{seen}: either may be wrong", fix, **values)
    if not reference.off:
        return make(name, CheckOutcome.WARNING, f"{seen} and the reference's: it is wrong", fix, **values)
    if not (own - reference).off:
        seen = f"agrees with the reference's; both are {_ahead(own.seconds)} this machine's, which is wrong"
        return make(name, CheckOutcome.OK, seen, **values)
    seen += f", and the reference's is {_ahead(reference.seconds)} it: at least two are wrong"
    return make(name, CheckOutcome.WARNING, seen, fix, **values)


def _ahead(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


def judge_the_health(candidate: Candidate, found: Fetched | Silence) -> list[Check]:
    """The checks of `/health`, and those within it."""
    if isinstance(found, Silence) or found.status not in (200, 503):
        fix = remedy(candidate, found, _PASSED_ON)
        return [make("health", CheckOutcome.FAILED, unexpected(found), fix), *_pods_unknown()]
    verdict = judge_health(found.status, found.body, HealthSettings().pod_headroom)
    if "health" in verdict.reasons and is_page(found):
        seen = f"{found.status}: answered HTML where JSON belongs"
        return [make("health", CheckOutcome.FAILED, seen, _HTML), *_pods_unknown()]
    parts = [_judge_part(label, ok) for label, ok in verdict.checks.items() if label != "Pod quota"]
    return [_whole_health(found.status, verdict), *parts, *_judge_pods(verdict)]


def _judge_part(label: str, passed: bool) -> Check:
    name = f"health: {label}"
    if passed:
        return make(name, CheckOutcome.OK, "ok")
    return make(name, CheckOutcome.FAILED, "not ok", "Fix this service; see BinderHub's log.")


def _whole_health(status: int, verdict: Verdict) -> Check:
    # A full quota is reported by the check of the pods: it passes here.
    reasons = [reason for reason in verdict.reasons if reason != "quota"]
    if reasons:
        seen = f"{status}: {'; '.join(verdict.details)}"
        fix = "An edge sends no visitors to a member whose health is not ok; see BinderHub's log."
        return make("health", CheckOutcome.FAILED, seen, fix)
    return make("health", CheckOutcome.OK, f"{status}, {len(verdict.checks)} checks")


def _pods_unknown() -> list[Check]:
    return skip("not in its health", "pods")


def _judge_pods(verdict: Verdict) -> list[Check]:
    if "health" in verdict.reasons and not verdict.checks:
        return _pods_unknown()
    values: dict[str, Any] = {"pods": dict(verdict.pods), "quota": verdict.quota}
    if verdict.quota is None:
        fix = "Set BinderHub.pod_quota, so that an edge sees when it is full."
        return [make("pods", CheckOutcome.WARNING, "no quota", fix, **values)]
    seen = f"{verdict.pods.get('total', 'an unknown number')} of {verdict.quota}"
    if "quota" in verdict.reasons:
        fix = "It is full for now. If it often is, ask for a smaller weight, or raise the quota."
        return [make("pods", CheckOutcome.WARNING, seen, fix, **values)]
    return [make("pods", CheckOutcome.OK, seen, **values)]


async def fetch_script(candidate: Candidate, client: CandidateClient) -> list[Check]:
    """The checks of a large file: whether it arrives whole, and how fast."""
    base = candidate.base_path
    page = await client.get(base)
    if isinstance(page, Silence) or page.status != 200:
        fix = remedy(candidate, page, f"BinderHub's page is at {base}: does a proxy in front forward it?")
        failed = make("static files", CheckOutcome.FAILED, f"{base}: {unexpected(page)}", fix)
        return [failed, *skip("there is no page", "bandwidth")]
    paths = _PATH.findall(page.body.decode("utf-8", "replace"))
    names = [html.unescape(name) for name in paths if name.endswith(".js") or ".js?" in name]
    if not names:
        return skip(f"its page at {base} references no script", "static files", "bandwidth")
    name = next((name for name in names if "bundle" in name), names[0])
    script = await client.get(name, most=_LARGEST_FILE)
    if isinstance(script, Silence) or script.status != 200:
        fix = remedy(
            candidate, script, "Pages stay empty without it: does a proxy in front limit sizes or times?"
        )
        failed = make("static files", CheckOutcome.FAILED, f"{name}: {unexpected(script)}", fix)
        return [failed, *skip("the file did not arrive", "bandwidth")]
    size = len(script.body)
    seen = f"{name}: {size / 1e6:.1f} MB in {show_time(script.seconds)}"
    return [
        make("static files", CheckOutcome.OK, seen, bytes=size, seconds=script.seconds),
        judge_bandwidth(size, script.seconds),
    ]


def judge_bandwidth(size: int, seconds: float) -> Check:
    """How fast a file of so many bytes came, with the time of its request."""
    rate = round(size / max(seconds, 1e-6))
    values: Mapping[str, Any] = {"bytes": size, "seconds": seconds, "bytes_per_second": rate}
    if size < _SMALLEST_FILE:
        seen = f"the largest script has only {size} bytes, too few to tell"
        return make("bandwidth", CheckOutcome.SKIPPED, seen, **values)
    seen = f"{rate / 1e6:.1f} MB/s"
    if rate < SLOW_LINE:
        fix = "Its first page takes seconds to load: is its line, a proxy or this machine's own network slow?"
        return make("bandwidth", CheckOutcome.WARNING, seen, fix, **values)
    return make("bandwidth", CheckOutcome.OK, seen, **values)


def judge_end(candidate: Candidate, first: Fetched, last: Fetched | Silence) -> Check:
    """Whether it answers at the end as it did at the start."""
    name = "still there"
    if isinstance(last, Silence) or last.status != first.status:
        fix = (
            "It went away during the checks: does it restart, is it overloaded, or does something in front "
            "of it block this address? See its log, and try again."
        )
        return make(name, CheckOutcome.FAILED, unexpected(last), fix)
    if last.body != first.body:
        fix = "Another version was deployed meanwhile, or servers behind one name differ: probe again."
        return make(name, CheckOutcome.WARNING, "its versions changed during the checks", fix)
    return make(name, CheckOutcome.OK, f"the same versions in {show_time(last.seconds)}")
