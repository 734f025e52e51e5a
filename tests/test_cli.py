import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop
import yaml
from click.testing import CliRunner, Result

from fedproxy.cli import base, files, main
from fedproxy.cli import serving as running_commands
from fedproxy.config.load import parse
from fedproxy.config.model import Organisation
from fedproxy.demo.toy import Mode, ToyBinderHub
from tests.rig import Conn, Ended, Message, RawClient, Script, Scripted, answer, per_request, refusing, until
from tests.rig.command import Program, fedproxy
from tests.rig.state import State
from tests.rig.thread import admin_listener

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOKEN = "a word"
MEMBERS = {
    "leuven": {"url": "http://127.0.0.1:1", "weight": 3, "prime": True},
    "oxford": {"url": "http://127.0.0.1:2", "run_by": {"name": "Toy [Computing]", "url": "http://c.example"}},
}
LOOPBACK = {"listen": [{"address": "127.0.0.1:0"}], "admin": {"address": "127.0.0.1:0"}}
LEGACY = {"hosts": {"a": {"url": "https://a.example", "weight": 2, "prime": True}, "b": None}}

FAULTY = "timeouts: {connect: soon}\nmebers: 3\nmembers:\n  a: {url: 'ftp://x'}\n"
FAULTS = [
    "1:21: timeouts.connect: is 'soon', expected a duration above 0, such as 250ms, 15s or 4h",
    "2:1: mebers: is not a known key, did you mean 'members'?",
    "4:12: members.a.url: is 'ftp://x', expected an http:// or https:// URL with no path, or unix:/PATH",
]
UNWISE = "members: {a: {url: 'https://a'}}\ntimeouts: {response_head: 1s}\n"
WARNING = (
    "2:27: warning: response-head-short: timeouts.response_head: is 1s, "
    "expected more than the 25s that the first event of a build can take"
)


def run(*arguments: object, **env: str) -> Result:
    """A command in this process, with these of the program's own environment variables and no others."""
    clean = {"FEDPROXY_ADMIN": None, "FEDPROXY_ADMIN_TOKEN": None, "COLUMNS": "100"}
    words = [str(word) for word in arguments]
    return CliRunner().invoke(main, words, env={**clean, **env}, prog_name="fedproxy")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    """Writes the config file: text as it is, anything else as YAML."""

    def write(what: object) -> Path:
        file = tmp_path / "edge.yaml"
        file.write_text(what if isinstance(what, str) else yaml.safe_dump(what, sort_keys=False))
        return file

    return write


Write = Callable[[object], Path]


# Commands that read a file


def test_check_of_a_valid_file_counts_its_members(write: Write) -> None:
    file = write({"members": MEMBERS})
    result = run("check", file)
    assert (result.exit_code, result.output) == (0, f"{file}: valid, 2 members\n")


def test_check_of_a_faulty_file_says_every_fault(write: Write) -> None:
    file = write(FAULTY)
    result = run("check", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"{file}:{fault}" for fault in FAULTS]


def test_check_of_an_unwise_file_warns_and_is_status_0(write: Write) -> None:
    file = write(UNWISE)
    result = run("check", file)
    assert (result.exit_code, result.stdout) == (0, f"{file}: valid, 1 member\n")
    assert result.stderr == f"{file}:{WARNING}\n"
    assert run("check", write(f"silence: [response-head-short]\n{UNWISE}")).stderr == ""


def test_check_is_json_for_programs(write: Write) -> None:
    for text, status, rows in (
        (FAULTY, 2, [("error", None, 1, 21), ("error", None, 2, 1), ("error", None, 4, 12)]),
        (UNWISE, 0, [("warning", "response-head-short", 2, 27)]),
        (yaml.safe_dump({"members": MEMBERS}), 0, []),
    ):
        file = write(text)
        result = run("check", file, "--json")
        assert (result.exit_code, result.stderr) == (status, "")
        found = json.loads(result.stdout)
        assert [(row["level"], row["name"], row["line"], row["column"]) for row in found] == rows
        assert all(row["file"] == str(file) for row in found)
    result = run("check", file.with_name("none"), "--json")
    assert (result.exit_code, json.loads(result.stdout)[0]["line"]) == (2, None)


def test_people_are_shown_the_line_itself_without_its_secrets(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("admin: {token: hunter2, adress: x}\nmembers:\n  a: {url: https://a, hosts: ['日本']}\nx: [")
    monkeypatch.setattr(files, "_is_terminal", lambda: True)
    result = run("check", file)
    assert result.stderr.splitlines()[0].startswith(f"{file}:4:5: not valid YAML")
    assert result.stderr.splitlines()[1:] == ["    x: [", "        ^"]
    file.write_text(file.read_text().removesuffix("x: ["))
    assert run("check", file).stderr.splitlines() == [
        f"{file}:1:25: admin.adress: is not a known key, did you mean 'address'?",
        "    admin: {token: ***, adress: x}",
        "                        ^",
        f"{file}:3:31: members.a.hosts.0: is '日本', expected a host name or IP address, no port",
        "      a: {url: https://a, hosts: ['日本']}",
        "                                  ^",
    ]
    missing = run("check", file.with_name("none"))
    assert missing.stderr == f"{file.with_name('none')}: cannot be read: No such file or directory\n"


def test_schema_is_printed_for_editors() -> None:
    result = run("schema")
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(json.loads(result.stdout)["properties"]) >= {"members", "silence"}


def logged(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the edge's own log, which a thread writes to the file that stands in for stderr."""
    text, until = "", time.monotonic() + 10
    while not text.endswith("\n") and time.monotonic() < until:
        text += capfd.readouterr().err
        time.sleep(0.005)
    return text.splitlines()


def test_check_says_what_serve_would_refuse(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(f"admin: {{address: '0.0.0.0:8080'}}\n{UNWISE}")
    expected = (
        f"{file}:1:18: admin.address: is '0.0.0.0:8080', which listen.0.address uses by default, "
        "expected an address of its own"
    )
    assert run("check", file).stderr.splitlines()[0] == expected
    done = run("serve", "--config", file)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = logged(capfd)
    assert line.endswith(f" error   config.refused {expected}")


def test_check_looks_at_the_world_if_it_is_told_to(write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = write({**LOOPBACK, "listen": [{"address": address}], "members": MEMBERS})
        assert run("check", file).exit_code == 0
        result = run("check", file, "--live")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"listen.0.address: cannot listen on {address}: Address already in use" in result.stderr
    assert "warning: member-unhealthy: members.oxford: is unhealthy: no connection" in result.stderr
    assert run("check", write(FAULTY), "--live").stderr.splitlines() == [f"{file}:{each}" for each in FAULTS]


@pytest.mark.parametrize("command", [("check",), ("import",), ("page", "--config")])
def test_file_that_is_not_there_is_said(command: tuple[str, ...], tmp_path: Path) -> None:
    result = run(*command, tmp_path / "none.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("command", [("check",), ("import",), ("page", "--config"), ("serve", "--config")])
def test_faulty_file_is_status_2_though_nobody_can_be_told(command: tuple[str, ...], tmp_path: Path) -> None:
    reading, broken = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for writing in (full, broken):
        words = [sys.executable, "-m", "fedproxy", *command, str(tmp_path / "none.yaml")]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stderr=writing, timeout=60, check=False)
        assert done.returncode == 2
        os.close(writing)


def test_import_prints_a_config_that_is_valid(write: Write) -> None:
    result = run("import", write(json.dumps(LEGACY)))
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(parse(result.stdout, {}).members) == ["a"]
    assert run("check", write(result.stdout)).exit_code == 0


def test_import_of_another_format_is_refused(write: Write) -> None:
    file = write({"members": MEMBERS})
    result = run("import", file)
    assert (result.exit_code, result.stdout) == (2, "")
    expected = "is in fedproxy's own format already, expected a file of another program"
    assert result.stderr == f"{file}: {expected}\n"


def test_import_of_the_paperwork_prints_members_and_says_what_it_could_not_keep(write: Write) -> None:
    file = write(
        "- {url_binderhub: 'https://a.example.org', funded_by: A, funded_by_link: 'http://a', logo: x}\n"
    )
    result = run("import", file)
    assert result.exit_code == 0
    assert parse(result.stdout, {}).members["a.example.org"].funded_by == Organisation(
        name="A", url="http://a"
    )
    expected = "0.logo: is 'x' and was left out: write an http:// or https:// URL, percent-encoded"
    assert result.stderr == f"{file}:1:92: warning: {expected}\n"
    assert run("import", write("- url_binderhub: gopher://x\n")).exit_code == 2


def test_import_of_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'{"hosts": "\xff"}')
    result = run("import", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{file}:1:12: is not UTF-8: invalid start byte at byte 11\n"


def test_page_is_html_unless_markdown_is_asked_for(write: Write) -> None:
    file = write({"members": MEMBERS})
    html = run("page", "--config", file)
    assert html.exit_code == 0
    assert html.stdout.startswith("<!doctype html>")
    assert "Toy [Computing]" in html.stdout
    markdown = run("page", "--config", file, "--format", "markdown")
    assert markdown.exit_code == 0
    assert "[Toy \\[Computing\\]](" in markdown.stdout
    past = run("page", "--config", file, "--format", "myst", "--past")
    assert (past.exit_code, past.stdout) == (0, "There are no past members.\n")
    assert json.loads(run("page", "--config", file, "--format", "json").stdout)["past"] == []


# Commands that ask the admin listener


@pytest.fixture
def admin(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an admin listener that runs in another thread; its section of the config may be given."""
    settings = getattr(request, "param", {"token": TOKEN})
    state = State(yaml.safe_dump({"admin": settings, "members": MEMBERS}, sort_keys=False))
    with admin_listener(state) as url:
        yield url


def shown(admin: str) -> dict[str, dict[str, Any]]:
    result = run("members", "--json", "--admin", admin)
    assert result.exit_code == 0
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_members_are_shown_as_a_table(admin: str) -> None:
    result = run("members", FEDPROXY_ADMIN=admin)
    assert result.exit_code == 0
    rows = [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert rows == [
        ["name", "state", "health", "breaker", "weight", "share", "in flight", "launches"],
        ["leuven (prime)", "available", "healthy", "closed", "3", "75%", "0", "0"],
        ["oxford", "available", "healthy", "closed", "1", "25%", "0", "0"],
    ]


def test_narrow_terminal_folds_no_word_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    headings = ("name", "state", "health", "breaker", "weight", "share", "in flight", "launches")
    rows = [
        ("toy-oxford (prime)", "unhealthy", "versions, JupyterHub API", "half-open", "50", "50%", "0", "0")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setenv("TTY_COMPATIBLE", "1")
        base.table(headings, rows, "name", "health")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    words = {word for row in (headings, *rows) for cell in row for word in cell.split()}
    assert set(shown.split()) == words
    assert max(map(len, shown.splitlines())) <= 80
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        base.table(headings, rows, "name", "health")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_members_are_shown_as_json(admin: str) -> None:
    members = shown(admin)
    assert list(members) == ["leuven", "oxford"]
    assert members["leuven"]["prime"] is True
    assert (members["oxford"]["state"], members["oxford"]["weight"]) == ("ready", 1)


@pytest.mark.parametrize("admin", [{"token": TOKEN, "read": "token"}], indirect=True)
def test_members_are_read_with_the_token_where_that_is_needed(admin: str) -> None:
    result = run("members", "--json", "--admin", admin, FEDPROXY_ADMIN_TOKEN=TOKEN)
    assert [row["name"] for row in json.loads(result.stdout)] == ["leuven", "oxford"]
    result = run("members", "--admin", admin)
    expected = f"{admin}: 401: Reading needs a token here. FEDPROXY_ADMIN_TOKEN is not set.\n"
    assert (result.exit_code, result.stderr) == (1, expected)


@pytest.mark.parametrize("state", ["drain", "maint"])
def test_member_leaves_rotation_and_comes_back(state: str, admin: str) -> None:
    for word in state, "ready":
        result = run(word, "oxford", "--admin", admin, FEDPROXY_ADMIN_TOKEN=TOKEN)
        assert (result.exit_code, result.output) == (0, f"oxford: {word}\n")
        members = shown(admin)
        assert (members["oxford"]["state"], members["leuven"]["state"]) == (word, "ready")


def test_several_members_change_and_those_that_cannot_are_said(admin: str) -> None:
    names = ["oxford", "nobody", "leuven", "oxford"]
    result = run("drain", *names, "--admin", admin, FEDPROXY_ADMIN_TOKEN=TOKEN)
    assert (result.exit_code, result.stdout) == (1, "oxford: drain\nleuven: drain\n")
    assert result.stderr == f"nobody: {admin}: 404: There is no member with that name.\n"
    assert {row["state"] for row in shown(admin).values()} == {"drain"}


def test_several_members_are_not_asked_for_when_nobody_may(admin: str) -> None:
    result = run("drain", "oxford", "leuven", "--admin", admin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1


def test_weight_is_left_to_the_edge(admin: str) -> None:
    for given in "7", "auto":
        result = run("weight", "oxford", given, "--admin", admin, FEDPROXY_ADMIN_TOKEN=TOKEN)
        assert (result.exit_code, result.output) == (0, f"oxford: weight {given}\n")
    assert shown(admin)["oxford"]["auto"] is True
    assert shown(admin)["leuven"]["auto"] is False


@pytest.mark.parametrize("number", ["0", "2.5", "1234567"])
def test_weight_is_set_and_said_in_full(number: str, admin: str) -> None:
    result = run("weight", "oxford", number, "--admin", admin, FEDPROXY_ADMIN_TOKEN=TOKEN)
    assert (result.exit_code, result.output) == (0, f"oxford: weight {number}\n")
    assert shown(admin)["oxford"]["weight"] == float(number)


@pytest.mark.parametrize("number", ["heavy", "inf", "nan"])
def test_weight_that_is_no_number_changes_nothing(number: str, admin: str) -> None:
    result = run("weight", "oxford", number, "--admin", admin, FEDPROXY_ADMIN_TOKEN=TOKEN)
    assert result.exit_code == 2
    assert f"{number!r} is not auto or a number of at least 0" in result.stderr
    assert shown(admin)["oxford"]["weight"] == 1


def test_change_without_the_token_is_refused(admin: str) -> None:
    result = run("drain", "oxford", "--admin", admin)
    assert result.exit_code == 1
    assert result.output == f"{admin}: 401: This needs the admin token. FEDPROXY_ADMIN_TOKEN is not set.\n"
    assert shown(admin)["oxford"]["state"] == "ready"


def test_change_with_another_token_is_refused(admin: str) -> None:
    result = run("weight", "oxford", 7, "--admin", admin, FEDPROXY_ADMIN_TOKEN="another")
    assert result.exit_code == 1
    assert (
        result.output
        == f"{admin}: 401: This needs the admin token. FEDPROXY_ADMIN_TOKEN is a different one.\n"
    )
    assert shown(admin)["oxford"]["weight"] == 1


@pytest.mark.parametrize("name", ["nobody", "a b/ü?#", "%2e%2e"])
def test_name_of_no_member_is_said(name: str, admin: str) -> None:
    result = run("drain", name, "--admin", admin, FEDPROXY_ADMIN_TOKEN=TOKEN)
    assert (result.exit_code, result.output) == (1, f"{admin}: 404: There is no member with that name.\n")


def test_nothing_listening_is_said() -> None:
    with refusing() as url:
        result = run("members", "--admin", url)
    assert result.exit_code == 1
    assert result.output == f"{url}: Connection refused; is the edge running there?\n"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8081",
        "ftp://h",
        "file:///etc/passwd",
        "http://",
        "http://h:x",
        "http://[::1",
        "http://h/a b",
    ],
)
def test_address_that_is_no_url_is_refused(url: str) -> None:
    result = run("members", "--admin", url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{url!r} is not an http:// or https:// URL" in result.stderr


@contextmanager
def something_else(says: bytes, sent: list[bytes] | None = None) -> Iterator[str]:
    """The URL of a listener that answers one connection with these bytes; `sent` gets what it was sent."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            received = connection.recv(65536)
            if sent is not None:
                sent.append(received)
            connection.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        yield "http://{}:{}".format(*listener.getsockname())
        thread.join(10)


def json_of(what: object) -> bytes:
    body = json.dumps(what).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    "says",
    [
        b"SSH-2.0-x\r\n",
        OK,
        json_of([]),
        json_of({"members": 5}),
        json_of({"members": [{"name": "a"}]}),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
    ],
)
def test_something_else_that_answers_is_said(says: bytes) -> None:
    with something_else(says) as url:
        result = run("members", "--admin", url)
    assert result.exit_code == 1
    assert result.output == f"{url}: what answers there is not the edge's admin listener\n"


def test_what_a_member_says_is_no_markup() -> None:
    row = {
        "name": "a",
        "prime": False,
        "state": "ready",
        "healthy": False,
        "reasons": ["[/red] :warning:"],
        "breaker": "closed",
        "weight": 1,
        "in_flight": 0,
        "launches": 0,
    }
    with something_else(json_of({"members": [row]})) as url:
        result = run("members", "--admin", url)
    assert result.exit_code == 0
    assert "[/red] :warning:" in result.stdout


def test_refusal_that_breaks_off_is_said() -> None:
    with something_else(b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n{") as url:
        result = run("members", "--admin", url)
    assert (result.exit_code, result.output) == (1, f"{url}: 500: No\n")


def test_token_is_sent_to_read_too() -> None:
    for command in ["members"], ["drain", "a"]:
        sent: list[bytes] = []
        with something_else(json_of([]), sent) as url:
            run(*command, "--admin", url, FEDPROXY_ADMIN_TOKEN=TOKEN)
        (request,) = sent
        assert TOKEN.encode() in request


# Completion


def completed(*words: str, **env: str) -> list[str]:
    """What the shell is offered for the last of these words."""
    *_, start = words
    shell = {"_FEDPROXY_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["fedproxy", *words])}
    result = run(COMP_CWORD=str(len(words)), **shell, **env)
    assert (result.exit_code, result.stderr) == (0, ""), start
    return [line.removeprefix("plain,") for line in result.stdout.splitlines() if line]


def test_shell_is_given_a_script() -> None:
    result = run(_FEDPROXY_COMPLETE="bash_source")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "_fedproxy_completion" in result.stdout


def test_commands_and_members_names_are_completed(admin: str) -> None:
    assert {"drain", "demo"} <= set(completed("d"))
    assert completed("drain", "", FEDPROXY_ADMIN=admin) == ["leuven", "oxford"]
    assert completed("drain", "--admin", admin, "ox") == ["oxford"]
    assert completed("drain", "oxford", "", FEDPROXY_ADMIN=admin) == ["leuven"]
    assert completed("weight", "le", FEDPROXY_ADMIN=admin) == ["leuven"]


def test_completion_says_nothing_when_there_is_nobody_to_ask() -> None:
    with refusing() as url:
        assert completed("drain", "", FEDPROXY_ADMIN=url) == []
    assert completed("drain", "", FEDPROXY_ADMIN="nonsense") == []
    with something_else(OK) as url:
        assert completed("drain", "", FEDPROXY_ADMIN=url) == []


# probe


@contextmanager
def toy(mode: Mode = Mode.HEALTHY) -> Iterator[str]:
    """The URL of a toy BinderHub in another thread."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    hub = ToyBinderHub("toy", pace=0.3)
    hub.mode = mode
    try:
        asyncio.run_coroutine_threadsafe(hub.start(), loop).result(10)
        yield hub.url
        asyncio.run_coroutine_threadsafe(hub.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_probe_of_a_member_that_is_well_says_so() -> None:
    with toy() as url:
        result = run("probe", url, "--reference", url, COLUMNS="80")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:20])) <= 80
    assert lines[0].split() == ["check", "verdict", "seen"]
    assert ["unbuffered", "ok", "the"] in [line.split()[:3] for line in lines]
    assert lines[-1] == f"{url} is fit to join"
    assert "\naddress: warning\n  expected: an https:// URL\n  to fix: Serve it over https" in result.stdout


def test_probe_of_a_member_that_is_ill_says_what_to_mend() -> None:
    with toy(Mode.SICK) as url:
        result = run("probe", url)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "\nhealth: JupyterHub API: failed\n  expected: ok\n  to fix: Fix this service" in result.stdout
    assert result.stdout.endswith(f"\n{url} is not fit to join: 2 checks failed\n")


def test_probe_is_json_for_programs() -> None:
    with toy() as url:
        result = run("probe", url, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["url"], report["fit"]) == (url, True)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["pods"] == {
        "name": "pods",
        "verdict": "ok",
        "seen": "37 of 300",
        "expected": "a quota, with more than 10 pods free",
        "fix": "",
        "values": {"pods": {"total": 37, "build": 4, "user": 33}, "quota": 300},
    }


def test_probe_is_markdown_for_an_issue(write: Write) -> None:
    with toy() as url:
        members = {"oxford": {"url": url}, "leuven": {"url": "http://127.0.0.1:1"}}
        file = write({"members": members})
        result = run("probe", url, "--launches", 1, "--format", "markdown", "--config", file, "--name", "new")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"## Probe of `{url}`\n\n**It is fit to join, with 2 warnings.**\n")
    assert "| `membership` | **warning** | `it is the member oxford already` |\n" in result.stdout
    assert "| `websocket` | ok | `a kernel answered in " in result.stdout
    assert "| launch | end | first bytes | waiting | fetching | building |" in result.stdout


def test_probe_tells_of_each_launch() -> None:
    with toy(Mode.FULL) as url:
        result = run("probe", url, "--launches", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    said = "\nlaunch 1: failed (no room: Too many users on this BinderHub! Try again soon.) after "
    assert said in result.stdout


def test_probe_with_a_config_that_is_not_valid_asks_nobody(write: Write) -> None:
    result = run("probe", "http://127.0.0.1:1", "--config", write(FAULTY))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("edge.yaml:") == 3


def test_probe_asks_below_a_path() -> None:
    with toy() as url:
        result = run("probe", url, "--base-path", "/services/binder", "--json")
    # The toy has its page everywhere, and the rest only at /.
    assert (result.exit_code, result.stderr) == (1, "")
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["versions"]["seen"] == "answered HTML where JSON belongs"


def test_probe_of_nobody_is_a_verdict() -> None:
    with refusing() as url:
        result = run("probe", url, "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout)["fit"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["ftp://a.example"],
        ["http://a.example/path"],
        ["unix:/run/a.sock"],
        ["http://a.example", "--reference", "nonsense"],
        ["http://a.example", "--origin", "a.example"],
        ["http://a.example", "--base-path", "services/binder"],
        ["http://a.example", "--base-path", "/a?b"],
        ["http://a.example", "--base-path", "//a/"],
        ["http://a.example", "--repository", "gh"],
        ["http://a.example", "--repository", "gh/a b"],
        ["http://a.example", "--timeout", "0"],
        ["http://a.example", "--launches", "4"],
        ["http://a.example", "--launches", "-1"],
        ["http://a.example", "--launch-timeout", "0"],
        ["http://a.example", "--format", "html"],
        ["http://a.example", "--name", "a b"],
        ["http://a.example", "--ca", "/no/such/file"],
        ["http://a.example", "--ca", __file__],
        [],
    ],
)
def test_probe_of_what_is_no_url_is_a_wrong_use(arguments: list[str]) -> None:
    result = run("probe", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: ")


# serve, as a process


Address = tuple[str, int]


def write_config(file: Path, url: str, weight: float, **changes: object) -> None:
    config = {**LOOPBACK, "members": {"a": {"url": url, "weight": weight}}, **changes}
    file.write_text(yaml.safe_dump(config))


@dataclass(frozen=True)
class Serving:
    """A running `serve`, the file that it read, its one member and where it listens."""

    program: Program
    file: Path
    member: Scripted
    public: Address
    admin: Address

    def write(self, weight: float, **changes: object) -> None:
        write_config(self.file, self.member.url, weight, **changes)

    async def weight(self) -> float:
        client = await RawClient.connect(self.admin)
        response = await client.ask(b"GET /members/a HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.leave()
        return float(json.loads(response.body)["weight"])


@asynccontextmanager
async def serving(file: Path, script: Script) -> AsyncIterator[Serving]:
    member = Scripted(script)
    await member.start()
    try:
        write_config(file, member.url, weight=1)
        async with fedproxy("serve", "--config", file) as program:
            public = await program.address("listening on ")
            admin = await program.address("admin on ")
            yield Serving(program, file, member, public, admin)
    finally:
        await member.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "edge.yaml"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_passes_requests_through_until_a_signal(number: int, file: Path) -> None:
    async with serving(file, answer(OK)) as edge:
        client = await RawClient.connect(edge.public)
        response = await client.ask(GET)
        assert (response.status, response.body) == (200, b"ok")
        edge.program.signal(number)
        # The visitor's connection is idle: nothing to wait for.
        assert await client.closed() == "eof"
        await client.leave()
        assert await edge.program.ended() == 0


async def test_hangup_puts_a_changed_file_in_force(file: Path) -> None:
    async with serving(file, answer(OK)) as edge:
        assert await edge.weight() == 1
        edge.write(7)
        edge.program.signal(signal.SIGHUP)
        assert await edge.program.line("[signal] reloaded ") == str(file)
        assert await edge.weight() == 7


async def test_hangup_with_a_broken_file_keeps_the_old_config(file: Path) -> None:
    async with serving(file, answer(OK)) as edge:
        file.write_text(FAULTY)
        edge.program.signal(signal.SIGHUP)
        await edge.program.line("the config in force is kept")
        said = [line.partition(" config.refused [signal] ")[2] for line in edge.program.lines[-4:-1]]
        assert said == [f"{file}:{fault}" for fault in FAULTS]
        assert await edge.weight() == 1
        client = await RawClient.connect(edge.public)
        assert (await client.ask(GET)).body == b"ok"
        await client.leave()


async def test_warnings_are_said_at_the_start_and_new_ones_after_a_reload(file: Path) -> None:
    member = Scripted(answer(OK))
    await member.start()
    short, many = {"timeouts": {"response_head": "1s"}}, {"retry": {"budget": 2}}
    try:
        write_config(file, member.url, weight=1, **short)
        async with fedproxy("serve", "--config", file) as program:
            await program.address("admin on ")
            assert [line.split(": ")[2] for line in program.lines if ": warning: " in line] == [
                "response-head-short"
            ]
            for changes, expected in ((short | many, ["retries-multiply"]), (many, [])):
                before = len(program.lines)
                write_config(file, member.url, weight=1, **changes)
                program.signal(signal.SIGHUP)
                await program.line("reloaded ")
                warned = [line for line in program.lines[before:] if ": warning: " in line]
                assert [line.split(": ")[2] for line in warned] == expected
    finally:
        await member.stop()


async def test_request_under_way_at_sigterm_is_finished(file: Path) -> None:
    told = asyncio.Event()

    async def when_told(conn: Conn, request: Message) -> None:
        await told.wait()
        conn.send(OK)

    async with serving(file, per_request(when_told)) as edge:
        client = await RawClient.connect(edge.public)
        await client.send(GET)
        await until(lambda: edge.member.has(requests=1), "the request at the member")
        edge.program.signal(signal.SIGTERM)
        await edge.program.line("draining for at most 600 s")
        told.set()
        response = await client.response()
        assert (response.status, response.body) == (200, b"ok")
        await client.leave()
        assert await edge.program.ended() == 0


async def test_second_signal_cuts_what_is_under_way(file: Path) -> None:
    async def never(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await conn.stall()

    async with serving(file, never) as edge:
        client = await RawClient.connect(edge.public)
        await client.send(GET)
        await client.head()
        edge.program.signal(signal.SIGTERM)
        await edge.program.line("a second signal ends it at once")
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.ended() == 0
        with pytest.raises(Ended):
            await client.exactly(10)
        await client.leave()


async def test_serve_on_a_taken_port_says_which(write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = write({**LOOPBACK, "listen": [{"address": address}], "members": MEMBERS})
        async with fedproxy("serve", "--config", file) as program:
            assert await program.ended() == 1
    (line,) = program.lines[1:]
    assert line.endswith(f" error   edge.failed cannot listen on {address}: Address already in use")


async def test_serve_of_a_faulty_file_says_every_fault(write: Write) -> None:
    file = write(FAULTY)
    async with fedproxy("serve", "--config", file) as program:
        assert await program.ended() == 2
    said = [line.partition(" error   config.refused ")[2] for line in program.lines]
    assert said == [f"{file}:{fault}" for fault in FAULTS]


async def test_serve_on_unix_sockets_says_where(tmp_path: Path, write: Write) -> None:
    public, admin = f"unix:{tmp_path / 'e.sock'}", f"unix:{tmp_path / 'a.sock'}"
    file = write({"listen": [{"address": public}], "admin": {"address": admin}, "members": MEMBERS})
    async with fedproxy("serve", "--config", file) as program:
        assert await program.line("listening on ") == public
        assert await program.line("admin on ") == admin
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0


def test_serve_without_a_config_takes_the_usual_one_or_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = (tmp_path / "config.yaml", tmp_path / "config.json")
    monkeypatch.setattr(running_commands, "_USUAL", usual)
    result = run("serve")
    assert result.exit_code == 2
    assert all(str(file) in result.stderr for file in usual)
    for file in reversed(usual):
        # The first that exists.
        file.write_text("{}")
        result = run("serve")
        assert result.exit_code == 2
        (line,) = logged(capfd)
        assert f" config.refused {file}:1:1: members: " in line
