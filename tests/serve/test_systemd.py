from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedproxy.serve.systemd import Notifier, inherited

FIRST = 200  # far from what the test run has open


@pytest.fixture
def open_() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _systemd(open_: ExitStack, address: str) -> socket.socket:
    sock = open_.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(address)
    sock.setblocking(False)
    return sock


def _notifier(open_: ExitStack, **environ: str) -> Notifier:
    notifier = Notifier(environ)
    open_.callback(notifier.close)
    return notifier


@pytest.fixture
def systemd(open_: ExitStack, tmp_path: Path) -> socket.socket:
    return _systemd(open_, str(tmp_path / "notify"))


@pytest.fixture
def notifier(open_: ExitStack, systemd: socket.socket) -> Notifier:
    return _notifier(open_, NOTIFY_SOCKET=systemd.getsockname())


def test_messages_are_one_datagram_each(systemd: socket.socket, notifier: Notifier) -> None:
    assert notifier.ready()
    assert notifier.stopping(600.5)
    assert notifier.alive()
    assert [systemd.recv(4096) for _ in range(3)] == [
        b"READY=1",
        b"STOPPING=1\nEXTEND_TIMEOUT_USEC=600500000",
        b"WATCHDOG=1",
    ]


def test_reloading_says_since_when_on_the_clock_that_systemd_goes_by(
    systemd: socket.socket, notifier: Notifier
) -> None:
    before = time.monotonic_ns() // 1000
    assert notifier.reloading()
    first, second = systemd.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_status_of_several_lines_cannot_say_anything_else(systemd: socket.socket, notifier: Notifier) -> None:
    assert notifier.status("3 members,\nREADY=1 of Köln")
    assert systemd.recv(4096).decode() == "STATUS=3 members, READY=1 of Köln"


def test_socket_without_a_path_is_found(open_: ExitStack) -> None:
    name = f"fedproxy-test-{os.getpid()}"
    systemd = _systemd(open_, f"\0{name}")
    assert _notifier(open_, NOTIFY_SOCKET=f"@{name}").ready()
    assert systemd.recv(4096) == b"READY=1"


@pytest.mark.parametrize("name", ["", "/", "@", "vsock:2:1234", "relative"])
def test_socket_that_is_not_named_or_not_understood_means_silence(open_: ExitStack, name: str) -> None:
    notifier = _notifier(open_, NOTIFY_SOCKET=name)
    assert not notifier.ready()


def test_socket_that_is_gone_is_no_error(open_: ExitStack, tmp_path: Path) -> None:
    assert not _notifier(open_, NOTIFY_SOCKET=str(tmp_path / "nobody")).ready()


def test_full_queue_is_not_waited_for(systemd: socket.socket, notifier: Notifier) -> None:
    limit = 10_000
    assert any(not notifier.alive() for _ in range(limit))
    assert systemd.recv(4096) == b"WATCHDOG=1"


def test_closed_notifier_is_silent(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.close()
    assert not notifier.ready()
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_wants_a_word_in_half_its_time(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog == seconds


def test_what_was_read_is_not_left_to_children(open_: ExitStack, tmp_path: Path) -> None:
    environ = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "1",
        "WATCHDOG_PID": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "http",
        "LISTEN_PIDFDID": "1",
        "HOME": "/",
    }
    open_.callback(Notifier(environ).close)
    assert inherited(environ) == []
    assert environ == {"HOME": "/"}


def _passed(sockets: list[socket.socket], **environ: str) -> list[socket.socket]:
    """What is inherited if systemd hands over these."""
    for index, sock in enumerate(sockets):
        os.dup2(sock.fileno(), FIRST + index)
    named = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), **environ}
    return inherited(named, FIRST)


def _listening(open_: ExitStack, family: int, address: str | tuple[str, int]) -> socket.socket:
    sock = open_.enter_context(socket.socket(family, socket.SOCK_STREAM))
    sock.bind(address)
    sock.listen()
    return sock


def test_listening_sockets_are_taken_over_in_order(open_: ExitStack, tmp_path: Path) -> None:
    made = [
        _listening(open_, socket.AF_INET, ("127.0.0.1", 0)),
        _listening(open_, socket.AF_UNIX, str(tmp_path / "http")),
    ]
    taken = [open_.enter_context(sock) for sock in _passed(made)]
    assert [sock.getsockname() for sock in taken] == [sock.getsockname() for sock in made]
    assert [sock.family for sock in taken] == [socket.AF_INET, socket.AF_UNIX]
    assert not any(sock.getblocking() or sock.get_inheritable() for sock in taken)


@pytest.mark.parametrize("environ", [{"LISTEN_PID": "1"}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "-1"}])
def test_sockets_of_another_process_are_left_alone(open_: ExitStack, environ: dict[str, str]) -> None:
    made = _listening(open_, socket.AF_INET, ("127.0.0.1", 0))
    assert _passed([made], **environ) == []
    os.close(FIRST)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_socket_that_does_not_listen_is_refused_by_name_and_nothing_stays_open(
    open_: ExitStack, kind: int
) -> None:
    good = _listening(open_, socket.AF_INET, ("127.0.0.1", 0))
    bad = open_.enter_context(socket.socket(socket.AF_INET, kind))
    with pytest.raises(OSError, match=rf"descriptor {FIRST + 1} \(https\), which does not listen"):
        _passed([good, bad], LISTEN_FDNAMES="http:https")
    for number in (FIRST, FIRST + 1):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


def test_file_in_the_place_of_a_socket_is_refused(open_: ExitStack, tmp_path: Path) -> None:
    file = open_.enter_context((tmp_path / "file").open("w"))
    os.dup2(file.fileno(), FIRST)
    open_.callback(os.close, FIRST)
    with pytest.raises(OSError, match=rf"descriptor {FIRST}, which is not a socket"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, FIRST)


def test_first_socket_has_the_number_that_systemd_gives_it(open_: ExitStack) -> None:
    made = _listening(open_, socket.AF_INET, ("127.0.0.1", 0))
    program = (
        "import os; from fedproxy.serve.systemd import inherited;"
        "os.dup2(int(os.environ['MADE']), 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        "print(inherited(os.environ)[0].getsockname()[1], 'LISTEN_FDS' in os.environ)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MADE": str(made.fileno())},
        pass_fds=[made.fileno()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{made.getsockname()[1]} False\n"
