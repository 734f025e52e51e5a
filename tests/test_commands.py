"""Commands that ask a running edge for more than its members: what is in force, why, and what happens."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedproxy.cli import watching
from fedproxy.cli.asking import Failed
from fedproxy.serve.service import Service
from tests.rig import blackhole
from tests.rig.thread import edge_of
from tests.test_cli import admin, run, shown

__all__ = ["admin"]

QUIET = "quiet enough to be a token"


@pytest.fixture
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path, Service]]:
    """A real edge without probes in another thread: its admin URL, its file and itself."""
    file = tmp_path / "edge.yaml"
    file.write_text(yaml.safe_dump(RUNNING, sort_keys=False))
    with edge_of(file) as (admin, service):
        yield admin, file, service


RUNNING = {
    "listen": [{"address": "127.0.0.1:0"}],
    "admin": {"address": "127.0.0.1:0", "token": QUIET, "state": "off"},
    "workers": 1,
    "access_log": "off",
    "members": {
        "leuven": {"url": "http://127.0.0.1:1", "prime": True},
        "oxford": {"url": "http://127.0.0.1:2", "weight": 3},
    },
}
Running = tuple[str, Path, Service]


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def asked(running: Running, *words: object, token: str = QUIET) -> Result:
    return run(*words, FEDPROXY_ADMIN=running[0], FEDPROXY_ADMIN_TOKEN=token)


def test_diff_and_reload_say_what_differs(running: Running, tmp_path: Path) -> None:
    file = running[1]
    same = asked(running, "diff", file)
    assert (same.exit_code, same.stdout, same.stderr) == (0, "", "")
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text().replace("weight: 3", "weight: 4").replace(QUIET, f"{QUIET}!"))
    result = asked(running, "diff", other)
    assert (result.exit_code, result.stdout) == (1, "members.oxford.weight: 3.0 -> 4.0\n")
    rows = json.loads(asked(running, "diff", other, "--json").stdout)
    assert rows == [{"key": "members.oxford.weight", "before": 3.0, "after": 4.0}]
    assert asked(running, "weight", "oxford", 9).exit_code == 0
    # What operators set is not the file's.
    assert asked(running, "diff", file).exit_code == 0
    assert "weight: 9.0" in asked(running, "config").stdout
    assert "weight: 3.0" in asked(running, "config", "--own").stdout
    file.write_text(other.read_text())
    result = asked(running, "reload", "--dry-run")
    # The weight that an operator set is over another one now.
    assert result.stdout == 'members.oxford.weight: 9.0 -> 4.0\nadmin.token: "***" -> "***"\n'
    result = asked(running, "reload")
    assert (result.exit_code, result.stdout) == (0, "reloaded\n")
    assert asked(running, "reload").exit_code == 1
    assert asked(running, "reload", "--dry-run", token=f"{QUIET}!").stdout == "nothing would change\n"
    assert json.loads(asked(running, "reload", "--json", token=f"{QUIET}!").stdout) == {"reloaded": True}


def test_faults_of_a_reload_are_a_line_each(running: Running) -> None:
    file = running[1]
    change(file, "weight: 3", "wieght: 3")
    change(file, "workers: 1", "workers: none")
    for words in ("reload",), ("reload", "--dry-run"):
        result = asked(running, *words)
        assert (result.exit_code, result.stdout) == (1, "")
        lines = result.stderr.splitlines()
        assert lines[0].endswith("workers: is 'none', expected auto or a whole number from 1 to 1024")
        assert lines[1].endswith("members.oxford.wieght: is not a known key, did you mean 'weight'?")
        assert all(re.match(r"\d+:\d+: ", line) for line in lines)
    found = json.loads(asked(running, "reload", "--json").stdout)
    assert (found["reloaded"], len(found["faults"])) == (False, 2)
    result = asked(running, "diff", file)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 2)


def test_dry_run_of_a_command_changes_nothing(running: Running) -> None:
    result = asked(running, "drain", "oxford", "leuven", "--dry-run")
    assert result.stdout.splitlines() == [
        f'members.{name}.state: "ready" -> "drain"' for name in ("oxford", "leuven")
    ]
    assert asked(running, "weight", "oxford", 5, "--dry-run").stdout == "members.oxford.weight: 3.0 -> 5.0\n"
    assert asked(running, "weight", "oxford", 3, "--dry-run").stdout == "nothing would change\n"
    assert {row["state"] for row in shown(running[0]).values()} == {"ready"}
    assert asked(running, "maint", "nobody", "--dry-run").exit_code == 1


def test_config_is_yaml_that_is_valid_again(running: Running, tmp_path: Path) -> None:
    result = asked(running, "config")
    file = tmp_path / "again.yaml"
    file.write_text(result.stdout)
    assert run("check", file).exit_code == 0
    assert json.loads(asked(running, "config", "--json").stdout)["admin"]["token"] == "***"


def test_explanation_is_for_people_or_programs(running: Running) -> None:
    result = asked(running, "explain", "/v2/gh/a/b/HEAD", "--client", "192.0.2.1")
    assert result.exit_code == 0
    lines = [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]
    assert lines[:3] == [
        ["kind:", "page"],
        ["route:", "none matches: to any member"],
        ["key:", "/build/gh/a/b"],
    ]
    assert lines[3][1].endswith(", by the key") and lines[6][0] == "rendezvous: the highest score wins"
    assert lines[7] == ["member", "score", "share", "in flight", "out"]
    found = json.loads(asked(running, "explain", "/", "--cookie", "oxford", "--json").stdout)
    assert (found["member"], found["source"]) == ("oxford", "cookie")
    assert found["origin"] == "config"
    assert "random: chosen by chance" in asked(running, "explain", "/").stdout
    assert "status 404" in asked(running, "explain", "/metrics").stdout
    assert asked(running, "explain", "no slash").exit_code == 1
    asked(running, "maint", "leuven", "oxford")
    assert "refused: no_member" in asked(running, "explain", "/").stdout


def test_log_is_shown_and_followed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(running, "drain", "oxford")
    result = asked(running, "log")
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"\S+ info    operator.drain \[admin 127.0.0.1\] oxford was set to drain.*", last)
    assert json.loads(asked(running, "log", "--json").stdout.splitlines()[-1])["member"] == "oxford"
    words = ["ready", "maint"]

    def sleep(seconds: float) -> None:
        if not words:
            raise KeyboardInterrupt
        asked(running, words.pop(0), "oxford")

    monkeypatch.setattr("fedproxy.cli.watching.time.sleep", sleep)
    result = asked(running, "log", "--follow")
    assert result.exit_code == 0
    assert [line.split()[2] for line in result.stdout.splitlines()][-3:] == [
        "operator.drain",
        "operator.ready",
        "operator.maint",
    ]


def test_log_is_followed_over_a_restart(admin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [[event(1)], Failed("gone"), Failed("gone"), [event(2)]]

    def events(admin: str) -> list[dict[str, Any]]:
        if not answers:
            raise KeyboardInterrupt
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return list(found)

    monkeypatch.setattr(watching, "_events", events)
    monkeypatch.setattr("fedproxy.cli.watching.time.sleep", lambda seconds: None)
    result = run("log", "--follow", FEDPROXY_ADMIN=admin)
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["1", "2"]
    assert result.stderr == "gone\n"


def event(number: int) -> dict[str, Any]:
    return {
        "time": "2026-01-01T00:00:00+00:00",
        "level": "info",
        "event": "a.b",
        "member": None,
        "who": None,
        "message": str(number),
    }


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_what_was_not_seen_is_what_came_since(kept: int, new: int, dropped: int) -> None:
    log = [event(number) for number in range(kept + new)]
    before, now = log[:kept], log[min(dropped, kept) :]
    assert list(watching.unseen(before, now)) == log[kept:] or not before or dropped >= kept


def test_top_is_printed_once_where_there_is_no_terminal(running: Running) -> None:
    result = asked(running, "top", "--interval", "0.2")
    assert result.exit_code == 0
    lines = [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]
    assert lines[0] == ["0 requests/s, 0 refused/s, 0 failures/s of members"]
    assert lines[2] == [
        "member", "status", "share", "requests/s", "failures/s", "in flight", "launches", "pods", "why",
    ]  # fmt: skip
    assert [line[0] for line in lines[3:5]] == ["leuven (prime)", "oxford"]
    rows = json.loads(asked(running, "top", "--interval", "0.2", "--json").stdout)
    assert rows[0]["requests_per_second"] == 0 and rows[0]["name"] == "leuven"


def test_pods_are_the_total_that_the_quota_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"state": "ready", "prime": False, "in_flight": 0, "launches": 0, "max_launches": 7}
    rates = {"requests_per_second": 0.0, "errors_per_second": 0.0}
    pods = {"total": 37, "build": 4, "user": 33}
    shown = watching._shown(
        [
            {**row, **rates, "name": "a", "pods": pods, "quota": 60},
            {**row, **rates, "name": "b", "pods": pods, "quota": None},
            {**row, **rates, "name": "c", "pods": {}, "quota": None},
        ],
        (),
        "",
    )
    Console(width=200).print(shown)
    found = [line.split() for line in capsys.readouterr().out.splitlines()[3:6]]
    assert [line[6:] for line in found] == [["0/7", "37/60"], ["0/7", "37"], ["0/7"]]


def test_rates_are_of_the_time_between_and_the_worst_come_first() -> None:
    def row(name: str, requests: int, status: str = "available", **errors: int) -> dict[str, Any]:
        return {"name": name, "requests": requests, "errors": errors, "status": status}

    told = {"requests": 40, "refused": {"no_member": 4, "rate": 1}}
    before = watching.Sample(10.0, [row("a", 10), row("b", 50, connect=1)], told)
    members = [row("a", 14), row("d", 1, "full"), row("b", 5, "unhealthy", connect=1, reset=4), row("c", 9)]
    later = {"requests": 60, "refused": {"no_member": 14, "rate": 1, "banned": 1}}
    now = watching.Sample(12.0, members, later)
    assert watching.totals(before, now) == "10 requests/s, 5.5 refused/s (no member, banned)"
    assert watching.totals(before, before._replace(edge={})) == "0 requests/s, 0 refused/s"
    found = watching.rates(before, now)
    assert [(each["name"], each["requests_per_second"], each["errors_per_second"]) for each in found] == [
        ("b", 0.0, 2.0),
        ("d", 0.0, 0.0),
        ("a", 2.0, 0.0),
        ("c", 0.0, 0.0),
    ]


def test_top_is_live_on_a_terminal(running: Running) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = [sys.executable, "-m", "fedproxy", "top", "--interval", "0.2", "--admin", running[0]]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(words, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        seen = b""
        while b"oxford" not in seen:
            seen += os.read(parent, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):
            while os.read(parent, 65536):
                pass
        assert process.wait(30) == 0
    os.close(parent)
    assert b"requests/s" in seen


def test_probe_shows_what_it_does_and_ends_with_ctrl_c() -> None:
    parent, child = pty.openpty()
    with blackhole() as url:
        words = [sys.executable, "-m", "fedproxy", "probe", url]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=child) as process:
            os.close(child)
            seen = b""
            while b"name: not checked" not in seen:
                seen += os.read(parent, 65536)
            process.send_signal(signal.SIGINT)
            with suppress(OSError):
                while piece := os.read(parent, 65536):
                    seen += piece
            assert process.stdout is not None
            assert (process.wait(30), process.stdout.read()) == (1, b"")
    os.close(parent)
    assert seen.startswith(b"\r\x1b[K1 done; address: warning")
    assert seen.endswith(b"\r\x1b[Kinterrupted: there is no report\r\n")


def test_certificates_are_shown_with_their_ends(admin: str) -> None:
    result = run("certificates", FEDPROXY_ADMIN=admin)
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["name", "expires"],
        ["mybinder.org", "2027-01-15T08:00:00+00:00"],
    ]
    assert json.loads(run("certificates", "--json", FEDPROXY_ADMIN=admin).stdout)[0]["name"] == "mybinder.org"


@pytest.mark.parametrize("words", [("log",), ("config",), ("certificates",), ("explain", "/"), ("top",)])
def test_commands_say_that_no_edge_is_there(words: tuple[str, ...]) -> None:
    result = run(*words, FEDPROXY_ADMIN="http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "http://127.0.0.1:1: Connection refused; is the edge running there?\n"
    assert run("diff", __file__, FEDPROXY_ADMIN="http://127.0.0.1:1").exit_code == 2


def test_help_names_the_environment(tmp_path: Path) -> None:
    assert "FEDPROXY_ADMIN_TOKEN  the admin token" in run("--help").stdout
