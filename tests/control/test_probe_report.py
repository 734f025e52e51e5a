"""The report of a probe: it can be pasted into an issue, whatever a candidate says."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fedproxy import __version__
from fedproxy.control.candidate import Candidate, Check, CheckOutcome, Examination, Trial
from fedproxy.control.candidate.check import EXPECTED, Redaction, make
from fedproxy.control.candidate.report import QUESTIONS, to_markdown, to_plain, verdict
from tests.rig.candidate import FAILED, OK, SKIPPED, WARNING

JOINING = Path(__file__).parents[2] / "docs" / "joining.md"
CANDIDATE = Candidate("https://binder.example", reference="https://prime.example", base_path="/b/")


def report(*checks: Check, trials: tuple[Trial, ...] = ()) -> Examination:
    return Examination(CANDIDATE.url, checks, trials, 0.0, 3700.0)


def rendered(made: str) -> str:
    """The report as HTML, where raw HTML in it stays, as in an issue."""
    return str(MarkdownIt("gfm-like", {"linkify": False}).render(made))


def in_code(made: str) -> list[str]:
    return [html.unescape(code) for code in re.findall(r"<code>(.*?)</code>", rendered(made), re.DOTALL)]


def outside_code(made: str) -> str:
    return re.sub(r"<code>.*?</code>", "", rendered(made), flags=re.DOTALL)


def test_verdict_is_one_sentence() -> None:
    assert verdict(report(make("tls", OK, "x"))) == "It is fit to join."
    assert verdict(report(make("tls", WARNING, "x", "y"))) == "It is fit to join, with 1 warning."
    both = report(make("tls", FAILED, "x", "y"), *[make("pods", WARNING, "x", "y")] * 2)
    assert verdict(both) == "It is not fit to join: 1 check failed, and 2 warnings."


def test_report_has_all_that_an_issue_needs() -> None:
    trials = (
        Trial("ready", 61.0, first=0.2, phases={"building": 50.0, "launching": 11.0}, stopped=True),
        Trial("failed", 3.0, "no room", "Too many users", 0.1, {"built": 0.1}),
    )
    checks = (
        make("address", OK, "https://binder.example"),
        make("cors", WARNING, "no Access-Control-Allow-Origin", 'Set BinderHub.cors_allow_origin to "*".'),
        make("build token", FAILED, "refused: Invalid build token", "Set BINDERHUB_BUILD_TOKEN_SECRET."),
        make("pods", SKIPPED, "not in its health"),
    )
    made = to_markdown(CANDIDATE, report(*checks, trials=trials))
    shown = rendered(made)
    assert made.startswith("## Probe of `https://binder.example`\n\n**It is not fit to join: 1 check failed")
    assert shown.count("<table>") == 2
    assert "<h3>What failed, and how to fix it</h3>" in shown
    assert "to fix: Set BINDERHUB_BUILD_TOKEN_SECRET." in shown
    assert "<summary>Warnings (1)</summary>" in shown
    assert "<th>building</th>\n<th>built</th>\n<th>launching</th>" in shown
    assert "<td>50.0 s</td>" in shown and "<code>failed: no room</code>" in shown
    assert f"fedproxy {__version__}, 1970-01-01 00:00 to 01:01 UTC" in shown
    assert "below <code>/b/</code>, compared with <code>https://prime.example</code>" in shown
    assert made.endswith("</sub>\n")


def test_form_has_the_questions_of_the_documentation() -> None:
    page = JOINING.read_text().partition("\n## What the federation asks you\n")[2].partition("\n## ")[0]
    asked = re.findall(r"^\| ([A-Z].*) \| (.+) \|$", page, re.MULTILINE)
    assert asked == list(QUESTIONS)
    made = outside_code(to_markdown(CANDIDATE, report()))
    assert all(question in made for question, _ in QUESTIONS)


def test_many_failures_are_folded() -> None:
    failed = [make(name, FAILED, "x", "y") for name in list(EXPECTED)[:6]]
    assert "<summary>What failed, and how to fix it (6)</summary>" in to_markdown(CANDIDATE, report(*failed))


HOSTILE = (
    "@octocat fixes #1 | `code` <script>alert(1)</script> <!-- ![i](http://h/i.png) [l](http://h) **b** \\| "
    "https://h/x </details> &amp; \\` ``"
)


def test_what_a_candidate_says_is_only_code() -> None:
    trials = (Trial("failed", 1.0, "no room", HOSTILE),)
    checks = [
        make(name, outcome, HOSTILE, "y" if outcome in (WARNING, FAILED) else "")
        for name, outcome in zip(EXPECTED, CheckOutcome, strict=False)
    ]
    checks.append(make("health: @octocat|", OK, "ok"))
    made = to_markdown(CANDIDATE, report(*checks, trials=trials))
    rest = outside_code(made)
    for part in ("octocat", "script", "<img", "<a ", "<strong>b", "http://h", "#1", "<!--"):
        assert part not in rest, rest
    # Every row of the table of checks has its three cells.
    assert {row.count("<td>") for row in re.findall(r"<tr>.*?</tr>", rendered(made), re.DOTALL)} <= {0, 3, 5}
    assert rest.count("<details>") == rest.count("</details>") == 1
    assert any("@octocat fixes #1" in code for code in in_code(made))


@given(st.text(alphabet=st.sampled_from(list("`|\\<>*_[]()!@# a\n-\u2028")), max_size=60))
def test_no_text_leaves_its_code(text: str) -> None:
    plain = make("tls", OK, "x" + text + "x").seen
    made = to_markdown(CANDIDATE, report(make("tls", OK, "x" + text + "x")))
    shown = plain.replace("`", "'").replace("|", "\N{BROKEN BAR}")
    # A renderer may fold white space within code.
    assert re.sub(r"\s+", " ", shown) in [re.sub(r"\s+", " ", code) for code in in_code(made)]
    assert "xx" not in outside_code(made)


def test_json_has_the_keys_that_programs_know() -> None:
    trial = Trial("ready", 1.0, first=0.5, phases={"built": 0.25}, stopped=True)
    plain = json.loads(
        json.dumps(to_plain(CANDIDATE, report(make("tls", OK, "x", version="TLSv1.3"), trials=(trial,))))
    )
    assert plain["checks"] == [
        {
            "name": "tls",
            "verdict": "ok",
            "seen": "x",
            "expected": "TLS 1.2 or 1.3",
            "fix": "",
            "values": {"version": "TLSv1.3"},
        }
    ]
    assert plain["launches"][0]["phases"] == {"built": 0.25}
    assert (plain["started"], plain["ended"]) == ("1970-01-01T00:00:00Z", "1970-01-01T01:01:40Z")
    page = JOINING.read_text().partition("\n## The report for programs\n")[2].partition("\n## ")[0]
    named = {
        name
        for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for name in re.findall("`(.+?)`", row)
    }
    assert named == set(plain)


def test_addresses_of_others_and_tokens_are_taken_out() -> None:
    redaction = Redaction(["192.0.2.1", "2001:db8::1"])
    redaction.hide("a-long-secret")
    redaction.hide("a")
    seen = (
        "203.0.113.9, 192.0.2.1:443, [2001:db8::1], 2001:db8::2 with a-long-secret at 12:30:45, 1.2.3, "
        "999.1.1.1"
    )
    values = {"a": ["203.0.113.9", 1], "b": {"c": "a-long-secret"}}
    check = redaction.check(make("launch", WARNING, seen, "ask 203.0.113.9", **values))
    assert check.seen == (
        "(an address), 192.0.2.1:443, [2001:db8::1], (an address) with *** at 12:30:45, 1.2.3, 999.1.1.1"
    )
    assert check.fix == "ask (an address)"
    assert check.values == {"a": ["(an address)", 1], "b": {"c": "***"}}
    assert redaction.trial(Trial("failed", 1.0, message="for 203.0.113.9")).message == "for (an address)"
    # A version of four numbers is none.
    assert redaction.check(make("versions", OK, "1.2.3.4")).seen == "1.2.3.4"
