"""Launches that are followed to their end: what each took, and how it failed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from fedproxy.control.candidate.check import Candidate, Check, CheckOutcome, Trial, make, show_time, words
from fedproxy.control.candidate.client import Heard, Silence, unexpected
from fedproxy.control.candidate.visitors import RATE_LIMIT
from fedproxy.decide.launch import End, LaunchVerdict

_KINDS: Final = {
    LaunchVerdict.FULL: "no room",
    LaunchVerdict.FAULTY: "fault of the BinderHub",
    LaunchVerdict.REPEATS: "fault of the repository",
}
_LIMITED: Final = "rate limit"
#: Failures that say nothing against the candidate.
_EVERYDAY: Final = frozenset((_LIMITED, _KINDS[LaunchVerdict.FULL]))


def trial_of(heard: Heard | Silence, seconds: float, *, stopped: bool | None = None) -> Trial:
    """How a launch went that took so many seconds."""
    if isinstance(heard, Silence) or heard.status != 200 or heard.launch is None:
        return Trial("no stream", seconds, kind="no stream", message=words(unexpected(heard)))
    launch = heard.launch
    first = heard.reads[0][0] if heard.reads else None
    phases = {name: spent for name, spent in launch.phases.items() if name is not None}
    if launch.end is End.READY:
        return Trial("ready", seconds, first=first, phases=phases, stopped=stopped)
    if launch.end is End.FAILED:
        message = words(str((heard.failure or {}).get("message", "")))
        kind = (
            _LIMITED
            if message.startswith(RATE_LIMIT)
            else _KINDS.get(launch.verdict or LaunchVerdict.REPEATS, "")
        )
        if launch.phase == "failed" and launch.verdict is LaunchVerdict.REPEATS and _was_built(phases):
            kind = "the build failed"
        return Trial("failed", seconds, kind, message, first, phases)
    if heard.late:
        last = launch.phase or "nothing"
        return Trial("timed out", seconds, "time", f"its last phase: {last}", first, phases)
    return Trial(
        "lost", seconds, "the stream ended", words(heard.broken or "before it was ready"), first, phases
    )


def worth_another(trials: Sequence[Trial]) -> bool:
    """Whether the next launch can go otherwise than the last one."""
    return not trials or (trials[-1].end != "no stream" and trials[-1].kind != _LIMITED)


def _was_built(phases: dict[str, float]) -> bool:
    """Whether the last phase before the failure was one of a build."""
    return bool(phases) and list(phases)[-1] in ("fetching", "building", "pushing", "unknown")


def judge_trials(candidate: Candidate, trials: Sequence[Trial]) -> Check:
    """The check of all launches that were followed to their end."""
    name = "trial launches"
    if not candidate.launches:
        return make(name, CheckOutcome.SKIPPED, "none was asked for: --launches")
    if not trials:
        return make(name, CheckOutcome.SKIPPED, "none could be started")
    ready = [trial.seconds for trial in trials if trial.end == "ready"]
    kinds = [trial.kind for trial in trials if trial.end != "ready"]
    median = statistics.median(ready) if ready else None
    values: dict[str, Any] = {
        "launches": [trial.plain for trial in trials],
        "ready": len(ready),
        "median": None if median is None else round(median, 3),
    }
    seen = f"{len(ready)} of {len(trials)} ready"
    if median is not None:
        seen += f", after {show_time(median)}" + (", the median" if len(ready) > 1 else "")
    if not kinds:
        return make(name, CheckOutcome.OK, seen, **values)
    counted = ", ".join(f"{kind} ({kinds.count(kind)})" for kind in dict.fromkeys(kinds))
    seen += f"; not ready: {counted}"
    if set(kinds) <= _EVERYDAY:
        fix = "Try again later: it is full, or the rate limit of this address is used up for the hour."
        return make(name, CheckOutcome.WARNING, seen, fix, **values)
    fix = "See BinderHub's log for these launches; set a longer --launch-timeout if time ran out in a build."
    return make(name, CheckOutcome.WARNING if ready else CheckOutcome.FAILED, seen, fix, **values)
