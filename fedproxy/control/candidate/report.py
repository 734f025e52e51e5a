"""An examination to paste into an issue of the federation, or for programs.

What a candidate says is only shown as code: there it mentions nobody, links nowhere, and is no HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fedproxy import __version__
from fedproxy.control.candidate.check import (
    Candidate,
    Check,
    CheckOutcome,
    Examination,
    Trial,
    show_time,
    words,
)

#: What a federation asks who wants to join, with what each answer is for.
QUESTIONS: Final = (
    ("Who runs it", "the institution and the people, as the member page names them"),
    ("Who pays", "the funder, as the member page names it"),
    ("Capacity", "the pod quota, CPU and memory of a pod, and whether it may grow"),
    ("Contact", "an address that is read on working days, and one for an outage"),
    ("Who has control", "the federation's team or its own people: who deploys, who may drain it"),
    ("Kept for its own community", "pods of the quota that the federation leaves free, its reserve"),
    ("Until when", "the date until which it is funded, and how early its end is announced"),
)

_MARKS: Final = {
    CheckOutcome.OK: "ok",
    CheckOutcome.WARNING: "**warning**",
    CheckOutcome.FAILED: "**failed**",
    CheckOutcome.SKIPPED: "not checked",
}
#: The phases of a launch in order; others follow.
_PHASES: Final = ("waiting", "fetching", "unknown", "building", "pushing", "built", "launching")
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|~])")


def verdict(report: Examination) -> str:
    """The verdict in one sentence."""
    failed = count(report, CheckOutcome.FAILED)
    warnings = count(report, CheckOutcome.WARNING)
    noted = f"{warnings} warning{'s' if warnings != 1 else ''}"
    if failed:
        more = f", and {noted}" if warnings else ""
        return f"It is not fit to join: {failed} check{'s' if failed != 1 else ''} failed{more}."
    return f"It is fit to join, with {noted}." if warnings else "It is fit to join."


def count(report: Examination, outcome: CheckOutcome) -> int:
    """How many checks had that outcome."""
    return sum(check.outcome is outcome for check in report.checks)


def to_plain(candidate: Candidate, report: Examination) -> dict[str, Any]:
    """The examination as JSON has it. Its keys stay."""
    return {
        "url": report.url,
        "fit": report.fit,
        "verdict": verdict(report),
        "fedproxy": __version__,
        "started": _time(report.started, "%Y-%m-%dT%H:%M:%SZ"),
        "ended": _time(report.ended, "%Y-%m-%dT%H:%M:%SZ"),
        "repository": candidate.launch,
        "reference": candidate.reference,
        "origin": candidate.origin,
        "base_path": candidate.base_path,
        "checks": [_plain_check(check) for check in report.checks],
        "launches": [trial.plain for trial in report.trials],
    }


def _plain_check(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "verdict": check.outcome.value,
        "seen": check.seen,
        "expected": check.expected,
        "fix": check.fix,
        "values": dict(check.values),
    }


def to_markdown(candidate: Candidate, report: Examination) -> str:
    """The examination as an issue shows it, with a form for the candidate's people at its end."""
    rows = ((_code(check.name), _MARKS[check.outcome], _code(check.seen)) for check in report.checks)
    parts = [
        f"## Probe of {_code(report.url)}",
        f"**{verdict(report)}**",
        _table(("check", "verdict", "seen"), rows),
        *_details(report.checks, CheckOutcome.FAILED, "What failed, and how to fix it"),
        *_details(report.checks, CheckOutcome.WARNING, "Warnings"),
        *_trials(report.trials),
        _form(),
        _footer(candidate, report),
    ]
    return "\n\n".join(parts) + "\n"


def _details(checks: Sequence[Check], outcome: CheckOutcome, title: str) -> list[str]:
    chosen = [check for check in checks if check.outcome is outcome]
    if not chosen:
        return []
    items = "\n".join(
        f"- {_code(check.name)}: {_code(check.seen)}\n"
        f"  - expected: {_escape(check.expected)}\n"
        f"  - to fix: {_escape(check.fix)}"
        for check in chosen
    )
    if outcome is CheckOutcome.FAILED and len(chosen) <= 5:
        return [f"### {title}", items]
    return [f"<details>\n<summary>{title} ({len(chosen)})</summary>\n\n{items}\n\n</details>"]


def _trials(trials: Sequence[Trial]) -> list[str]:
    if not trials:
        return []
    met = {name for trial in trials for name in trial.phases}
    phases = [*(name for name in _PHASES if name in met), *sorted(met - set(_PHASES))]
    rows = (
        (
            str(number),
            _code(trial.end if not trial.kind else f"{trial.end}: {trial.kind}"),
            "" if trial.first is None else show_time(trial.first),
            *(show_time(trial.phases[name]) if name in trial.phases else "" for name in phases),
            show_time(trial.seconds),
            {True: "yes", False: "**no**", None: ""}[trial.stopped],
        )
        for number, trial in enumerate(trials, 1)
    )
    table = _table(("launch", "end", "first bytes", *phases, "in all", "stopped"), rows)
    said = "\n".join(
        f"- launch {number}: {_code(trial.message)}"
        for number, trial in enumerate(trials, 1)
        if trial.message
    )
    return ["### Trial launches", table, *([said] if said else [])]


def _form() -> str:
    asked = "\n".join(f"- **{question}** ({meant}): " for question, meant in QUESTIONS)
    return f"### About the candidate\n\n{asked}"


def _footer(candidate: Candidate, report: Examination) -> str:
    compared = f", compared with {_code(candidate.reference)}" if candidate.reference else ""
    below = f" below {_code(candidate.base_path)}" if candidate.base_path != "/" else ""
    return (
        f"<sub>fedproxy {_escape(__version__)}, {_time(report.started, '%Y-%m-%d %H:%M')} to "
        f"{_time(report.ended, '%H:%M')} UTC, repository {_code(candidate.launch)}{below}{compared}, as "
        f"{_code(candidate.origin)}</sub>"
    )


def _time(seconds: float, form: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """Text as code. A backtick would end it, and a bar a table's cell, whatever is before them."""
    plain = words(text).replace("`", "'").replace("|", "\N{BROKEN BAR}")
    return f"`{plain}`" if plain else ""


def _escape(text: str) -> str:
    """This program's own text, without the meaning that Markdown would give it."""
    return _SPECIAL.sub(r"\\\1", text)
