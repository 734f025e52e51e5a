"""Listening sockets: which there are, who shares them, and what is said when there can be none."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedproxy.config.address import Address
from fedproxy.config.model import ListenerSettings
from fedproxy.serve.sockets import BACKLOG, Left, Sockets, listen_on, silence
from tests.rig.command import Program, fedproxy
from tests.rig.running import ACTIVATED, Hub, asks, running, write


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    sockets.close()


def listeners(*addresses: str) -> list[ListenerSettings]:
    return [ListenerSettings.model_validate({"address": address}) for address in addresses]


ANY = listeners("127.0.0.1:0")


def ports(found: list[list[socket.socket]]) -> set[int]:
    return {sock.getsockname()[1] for own in found for sock in own}


def test_each_slot_has_a_socket_of_its_own_on_one_port(sockets: Sockets) -> None:
    sockets.open(ANY, 2)
    first, second = sockets.of(ANY, 0, 2), sockets.of(ANY, 1, 2)
    assert first[0][0].fileno() != second[0][0].fileno()
    assert ports(first) == ports(second) == {sockets.bound(ANY)[0][1]}


def test_nobody_is_sent_to_a_socket_that_nobody_listens_on(sockets: Sockets) -> None:
    sockets.open(ANY, 3)
    ((only,),) = sockets.of(ANY, 1, 3)
    only.listen(BACKLOG)
    for _ in range(20):
        with socket.create_connection(sockets.bound(ANY)[0]):
            only.setblocking(True)
            visitor, _ = only.accept()
            visitor.close()


def test_any_port_twice_are_two_ports(sockets: Sockets) -> None:
    twice = listeners("127.0.0.1:0", "127.0.0.1:0")
    sockets.open(twice, 2)
    assert len(ports(sockets.of(twice, 0, 2))) == 2


def test_slots_that_are_left_look_after_the_queue_of_those_that_are_gone(sockets: Sockets) -> None:
    sockets.open(ANY, 3)
    group = [sockets.of(ANY, slot, 3)[0][0] for slot in range(3)]
    for sock in group[:2]:
        sock.listen(BACKLOG)
    sockets.close_others(ANY, 1)
    # The one that nobody listened on has no queue.
    assert sockets.of(ANY, 0, 1) == [group[:2]]
    assert group[2].fileno() == -1
    sockets.open(ANY, 2)
    assert sockets.of(ANY, 1, 2) == [[group[1]]]


def test_what_was_opened_in_vain_is_closed_but_not_where_visitors_may_wait(sockets: Sockets) -> None:
    sockets.open(ANY, 2)
    both = listeners("127.0.0.1:0", "127.0.0.1:0")
    undo = sockets.open(both, 4)
    used, new = (own[0] for own in sockets.of(both, 3, 4))
    unused = sockets.of(both, 2, 4)[0][0]
    used.listen(BACKLOG)
    undo()
    assert new.fileno() == unused.fileno() == -1
    assert all(sock.fileno() > 0 for slot in range(2) for sock in sockets.of(ANY, slot, 2)[0])
    assert len(sockets.bound(ANY)) == 1
    assert list(sockets.left_over(ANY, 2)) == [2]
    assert list(sockets.own(ANY, 2)) == [(0, used)]


def test_slot_has_a_socket_of_its_own_to_lend_once_somebody_has_listened(
    sockets: Sockets, tmp_path: Path
) -> None:
    mixed = listeners(f"unix:{tmp_path / 'edge.sock'}", "127.0.0.1:0")
    sockets.open(mixed, 2)
    assert list(sockets.own(mixed, 0)) == []
    ((_,), (tcp,)) = sockets.of(mixed, 0, 2)
    tcp.listen(BACKLOG)
    assert list(sockets.own(mixed, 0)) == [(1, tcp)]
    assert list(sockets.own(mixed, 2)) == []
    assert sockets.are_given(mixed) == [False, False]


def test_silenced_socket_takes_nobody_new_and_loses_nobody(sockets: Sockets) -> None:
    sockets.open(ANY, 1)
    ((only,),) = sockets.of(ANY, 0, 1)
    only.listen(BACKLOG)
    address = sockets.bound(ANY)[0]
    with socket.create_connection(address) as early, socket.socket() as late:
        sockets.silence()
        late.setblocking(False)
        assert late.connect_ex(address) == errno.EINPROGRESS
        visitor, _ = only.accept()
        with visitor:
            early.sendall(b"x")
            visitor.setblocking(True)
            assert visitor.recv(1) == b"x"
        with pytest.raises(BlockingIOError):
            only.accept()


def test_silenced_unix_socket_is_not_found_any_more(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    sockets.open(listeners(f"unix:{path}"), 1)
    sockets.silence()
    assert not path.exists()


def taken_over(left: list[Left], address: str) -> tuple[Sockets, list[ListenerSettings]]:
    successor, wanted = Sockets(), listeners(address)
    successor.inherit(left)
    successor.open(wanted, 2)
    return successor, wanted


def test_sockets_of_those_without_a_control_process_are_taken_over(sockets: Sockets) -> None:
    sockets.open(ANY, 3)
    left = [sockets.of(ANY, slot, 3)[0][0] for slot in range(3)]
    for sock in left:
        sock.listen(BACKLOG)
    host, port = sockets.bound(ANY)[0]
    # As one that gives up does, in the same moment.
    silence(left[0])
    successor, wanted = taken_over([(sock.dup(), False) for sock in left], f"{host}:{port}")
    silence(left[1])
    successor.relieve()
    sockets.close()
    assert successor.bound(wanted) == [(host, port)]
    ((own, over),) = successor.of(wanted, 0, 2)
    assert [*successor.own(wanted, 1)] == [(0, successor.of(wanted, 1, 2)[0][0])]
    assert own.fileno() != over.fileno()
    for _ in range(20):
        socket.create_connection((host, port), timeout=10).close()
    successor.close()


def test_what_is_not_needed_of_those_without_a_control_process_is_given_up() -> None:
    theirs = [socket.create_server(("127.0.0.1", 0), reuse_port=True) for _ in range(3)]
    wanted, other, given = (f"127.0.0.1:{sock.getsockname()[1]}" for sock in theirs)
    successor, _ = taken_over(
        [(theirs[0].dup(), False), (theirs[1].dup(), False), (theirs[2].dup(), True)], wanted
    )
    successor.relieve()
    with socket.socket() as late, socket.socket() as fine:
        late.setblocking(False)
        assert late.connect_ex(theirs[1].getsockname()) == errno.EINPROGRESS
        fine.settimeout(10)
        fine.connect(theirs[2].getsockname())
    successor.close()
    for sock in theirs:
        sock.close()
    assert other != given


def test_unix_socket_that_is_taken_over_keeps_its_file_unless_the_start_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        failed, _ = taken_over([(theirs.dup(), False), (theirs.dup(), False)], f"unix:{path}")
        failed.close()
        assert path.exists()
        successor, _ = taken_over([(theirs.dup(), False)], f"unix:{path}")
        successor.relieve()
        successor.close()
        assert not path.exists()


def test_socket_that_a_predecessor_was_given_is_never_silenced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        host, port = theirs.getsockname()
        successor, wanted = taken_over([(theirs.dup(), True)], f"{host}:{port}")
        successor.relieve()
        assert successor.are_given(wanted) == [True]
        successor.silence()
        successor.close()
        socket.create_connection((host, port), timeout=10).close()


@pytest.mark.parametrize("in_group", [False, True])
def test_port_in_use_is_named_and_nothing_new_is_left_open(sockets: Sockets, in_group: bool) -> None:
    with socket.socket() as taken:
        if in_group:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(OSError, match=f"cannot listen on {address}: Address already in use"):
            sockets.open(listeners("127.0.0.1:0", address), 2)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        with pytest.raises(OSError, match=f"cannot listen on {address}: Address already in use"):
            listen_on(Address("127.0.0.1", taken.getsockname()[1]))


def test_address_of_somebody_else_is_named(sockets: Sockets) -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:80: Cannot assign requested address"):
        sockets.open(listeners("192.0.2.1:80"), 1)


def test_unix_socket_is_one_for_all_slots_and_its_file_goes_with_it(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    unix = listeners(f"unix:{path}")
    sockets.open(unix, 2)
    assert sockets.of(unix, 0, 2) == sockets.of(unix, 1, 2)
    assert sockets.bound(unix) == []
    sockets.close_others(ANY, 2)
    assert not path.exists()


def test_socket_file_that_was_left_behind_is_taken(sockets: Sockets, tmp_path: Path) -> None:
    path = str(tmp_path / "edge.sock")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(path)
    sockets.open(listeners(f"unix:{path}"), 1)
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(path)


def test_unix_socket_that_somebody_listens_on_is_left_alone(sockets: Sockets, tmp_path: Path) -> None:
    path = str(tmp_path / "edge.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(OSError, match=f"cannot listen on unix:{path}: Address already in use"):
            sockets.open(listeners(f"unix:{path}"), 1)
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(path)


def test_file_that_is_no_socket_is_left_alone(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match=f"cannot listen on unix:{path}: a file with that name exists"):
        sockets.open(listeners(f"unix:{path}"), 1)
    assert path.read_text() == "precious"


def test_inherited_socket_is_taken_for_its_address_and_others_are_closed() -> None:
    given, other = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    address = listeners(f"127.0.0.1:{given.getsockname()[1]}")
    sockets = Sockets([other, given])
    sockets.open(address, 2)
    assert sockets.of(address, 0, 2) == sockets.of(address, 1, 2) == [[given]]
    assert sockets.bound(address) == [given.getsockname()]
    sockets.silence()
    sockets.close()
    assert given.fileno() == other.fileno() == -1


# The program


async def test_port_of_another_fedproxy_is_in_use(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        host, port = edge.public
        file = tmp_path / "second.yaml"
        write(file, edge.hub, listen=[{"address": f"{host}:{port}"}])
        async with fedproxy("serve", "--config", file) as second:
            assert await second.ended() == 1
        text = f"edge.failed cannot listen on {host}:{port}: Address already in use"
        assert second.lines[-1].endswith(text)
        assert (await edge.ask()).body == b"ok"


async def test_workers_share_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    hub = Hub()
    await hub.member.start()
    file = tmp_path / "edge.yaml"
    write(file, hub, listen=[{"address": f"unix:{path}"}])
    async with fedproxy("serve", "--config", file) as program:
        assert await program.line("listening on ") == f"unix:{path}"
        assert len(program.workers()) == 2
        for _ in range(10):
            assert b'"active_hosts"' in asks(str(path), socket.AF_UNIX)
        program.signal(15)
        assert await program.ended() == 0
        assert not path.exists()
    await hub.member.stop()


async def test_systemd_is_told_and_its_socket_is_served_by_every_worker(tmp_path: Path) -> None:
    hub = Hub()
    await hub.member.start()
    file = tmp_path / "edge.yaml"
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        host, port = given.getsockname()
        write(file, hub, listen=[{"address": f"{host}:{port}"}])
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        arguments = (given.fileno(), "serve", "--config", file)
        async with fedproxy(
            *arguments, env=environ, pass_fds=[given.fileno()], before=("-c", ACTIVATED)
        ) as program:
            await served(program, (host, port), systemd)
    await hub.member.stop()


async def served(program: Program, address: tuple[str, int], systemd: socket.socket) -> None:
    assert await program.address("listening on ") == address
    await program.line("admin on ")
    assert systemd.recv(4096) == b"READY=1"
    assert len(program.workers()) == 2
    for _ in range(10):
        assert b'"active_hosts"' in asks(address)
    program.signal(15)
    assert await program.ended() == 0
    said: list[bytes] = []
    while not said or not said[-1].startswith(b"STOPPING=1\n"):
        said.append(systemd.recv(4096))
    assert b"READY=1" not in said
