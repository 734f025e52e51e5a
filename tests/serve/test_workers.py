"""Several processes on one port: none is missed when it ends, and nobody is cut off who need not be."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Conn, Ended, Message, RawClient, Scripted, per_request
from tests.rig.command import fedproxy
from tests.rig.running import (
    CLOSING,
    GET,
    LAUNCH,
    OK,
    PAUSE,
    SLOW,
    Hub,
    Running,
    patience,
    refuses,
    running,
    serving,
    until,
    write,
)

pytestmark = pytest.mark.no_cover  # the edge is a process of its own

KILL, TERM, STOP, CONT = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGCONT
HUP = signal.SIGHUP


async def kept_with(edge: Running, worker: int, count: int = 40) -> RawClient:
    """A connection that is kept by that worker, and was not used yet."""
    for _ in range(count):
        client = await edge.client()
        port = client.writer.get_extra_info("sockname")[1]
        async with patience():
            while not (owner := owner_of(port, edge.program.workers())):
                await asyncio.sleep(PAUSE)
        if owner == worker:
            return client
    raise AssertionError(f"no connection came to worker {worker}")


def owner_of(port: int, pids: list[int]) -> int | None:
    """Which process has the edge's end of the connection from that port of this one."""
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port:04X}") and fields[9] != "0":
            inode = f"socket:[{fields[9]}]"
    for pid in pids:
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) == inode:
                        return pid
    return None


async def test_two_workers_serve_on_one_port(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        workers = edge.program.workers()
        assert len(workers) == 2
        for worker in workers:
            client = await kept_with(edge, worker)
            assert (await client.ask(GET)).body == b"ok"
        assert await edge.metric("fedproxy_workers") == 2
        await edge.counts(2, "fedproxy_requests_total", member="a")
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0
        assert edge.program.processes() == []


async def test_many_members_are_told_of_part_by_part_and_all_are_there(tmp_path: Path) -> None:
    names = [f"m{number:02}" for number in range(95)]
    members = {name: {"url": "http://127.0.0.1:1"} for name in names}
    async with running(tmp_path, members=members) as edge:
        for _ in range(2):
            assert list(await edge.members()) == names
        for name in ("m00", "m94"):
            client = await edge.client()
            cookie = f"GET / HTTP/1.1\r\nHost: h\r\nCookie: fedproxy_member={name}\r\n\r\n"
            assert (await client.ask(cookie.encode())).status == 502
        found = await edge.members()
        assert found["m00"]["errors"].keys() == found["m94"]["errors"].keys() == {"connect"}
        await edge.counts(95, "fedproxy_member_up")


async def test_killed_worker_is_replaced_and_counters_do_not_fall(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        first, second = edge.program.workers()
        for worker in (first, second):
            client = await kept_with(edge, worker)
            for _ in range(5):
                await client.ask(GET)
        # What was told stays.
        await edge.counts(10, "fedproxy_requests_total", member="a")
        held = await kept_with(edge, second)
        os.kill(first, KILL)
        assert (await held.ask(GET)).body == b"ok"
        assert await edge.program.line(f"worker {first} ended with ") == "signal 9"
        await until(lambda: len(edge.program.workers()) == 2, "another worker")
        await edge.counts(11, "fedproxy_requests_total", member="a")
        (new,) = set(edge.program.workers()) - {second}
        client = await kept_with(edge, new)
        assert (await client.ask(GET)).body == b"ok"
        await edge.counts(12, "fedproxy_requests_total", member="a")


async def test_worker_that_starts_later_shows_the_same_pages_and_a_reload_shows_others(
    tmp_path: Path,
) -> None:
    missing = b"GET /tea HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\n\r\n"
    folder = tmp_path / "pages"
    folder.mkdir()
    template = folder / "error.html"
    template.write_text("before {{ status }}")
    pages: dict[str, Any] = {"pages": {"templates": str(folder)}, "routes": [{"path": "/tea", "status": 418}]}
    async with running(tmp_path, **pages) as edge:
        first, second = edge.program.workers()
        # As it cannot be used, it is not put in force when it is seen.
        template.write_text("{{ anything }}")
        os.kill(first, KILL)
        (new,) = set(await edge.replaced([first], [second])) - {second}
        client = await kept_with(edge, new)
        assert (await client.ask(missing)).body == b"before 418"
        template.write_text("after {{ status }}")
        edge.program.signal(HUP)
        await edge.program.line("reloaded ")
        async with patience():
            while (await client.ask(missing)).body != b"after 418":
                await asyncio.sleep(PAUSE)
        template.write_text("{{ nothing }}")
        edge.program.signal(HUP)
        fault = await edge.program.line("pages.templates: ")
        assert fault == f"{template}:1: 'nothing' is undefined"
        await edge.program.line("the config in force is kept")
        assert (await client.ask(missing)).body == b"after 418"


async def test_visitors_in_the_queue_of_a_killed_worker_are_served_by_the_next(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        first, second = edge.program.workers()
        for worker in (first, second):
            os.kill(worker, STOP)
        waiting = [await edge.client() for _ in range(20)]
        for client in waiting:
            await client.send(CLOSING)
        os.kill(first, KILL)
        os.kill(second, CONT)
        for client in waiting:
            assert (await client.response()).body == b"ok"


async def test_worker_that_keeps_dying_leaves_its_visitors_to_the_others(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        steady, doomed = edge.program.workers()
        os.kill(doomed, KILL)
        (doomed,) = set(await edge.replaced([doomed], kept=[steady])) - {steady}
        os.kill(doomed, KILL)
        await edge.program.line("starting the worker again in ")
        # Nobody waits for it meanwhile.
        for _ in range(20):
            assert (await edge.ask()).body == b"ok"
        (new,) = set(await edge.replaced([doomed], kept=[steady])) - {steady}
        assert (await (await kept_with(edge, new)).ask(GET)).body == b"ok"


async def test_visitors_in_the_queue_of_a_worker_that_is_given_up_are_served_by_the_others(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as edge:
        steady, doomed = edge.program.workers()
        os.kill(doomed, KILL)
        (doomed,) = set(await edge.replaced([doomed], kept=[steady])) - {steady}
        for worker in (steady, doomed):
            os.kill(worker, STOP)
        waiting = [await edge.client() for _ in range(30)]
        for client in waiting:
            await client.send(CLOSING)
        os.kill(doomed, KILL)
        await edge.program.line("starting the worker again in ")
        os.kill(steady, CONT)
        for client in waiting:
            assert (await client.response()).body == b"ok"
        # And so are those who come meanwhile, and who come when it serves again.
        for _ in range(20):
            assert (await edge.ask()).body == b"ok"
        (new,) = set(await edge.replaced([doomed], kept=[steady])) - {steady}
        assert (await (await kept_with(edge, new)).ask(GET)).body == b"ok"
        for _ in range(20):
            assert (await edge.ask()).body == b"ok"


async def test_visitors_are_served_while_two_of_three_workers_keep_dying(tmp_path: Path) -> None:
    async with running(tmp_path, workers=3) as edge:
        steady, *doomed = edge.program.workers()
        for _ in range(2):
            for worker in doomed:
                os.kill(worker, KILL)
            for _ in range(20):
                assert (await edge.ask()).body == b"ok"
            doomed = sorted(set(await edge.replaced(doomed, kept=[steady])) - {steady})
        for worker in (steady, *doomed):
            assert (await (await kept_with(edge, worker, count=100)).ask(GET)).body == b"ok"


async def test_worker_told_to_end_is_replaced_first_and_loses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        old = edge.program.workers()
        kept = [await kept_with(edge, worker) for worker in old]
        streams = [await edge.stream() for _ in range(4)]
        slow = await edge.client()
        await slow.send(SLOW)
        await until(lambda: edge.hub.member.has(requests=5), "the slow request at the member")
        for worker in old:
            os.kill(worker, TERM)
        await until(lambda: len(edge.program.workers()) == 4, "their successors")
        for client in kept:
            assert (await client.ask(GET)).body == b"ok"
        assert (await edge.ask()).body == b"ok"
        await edge.hub.event()
        for stream in streams:
            async with patience():
                assert b"building" in await stream.chunk()
        await edge.hub.end()
        assert (await slow.response()).body == b"ok"
        for stream in streams:
            async with patience():
                while await stream.chunk():
                    pass
        await edge.replaced(old)
        await edge.counts(8, "fedproxy_requests_total", member="a")
        assert not [line for line in edge.program.lines if "ended with" in line]


async def test_workers_outlive_the_control_process_and_end_when_told(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        first, second = edge.program.workers()
        stream = await edge.stream()
        kept = await kept_with(edge, first)
        edge.program.signal(KILL)
        await until(
            lambda: edge.program.pid not in edge.program.processes(), "the end of the control process"
        )
        assert (await kept.ask(GET)).body == b"ok"
        for _ in range(10):
            assert (await edge.ask()).body == b"ok"
        for worker in (first, second):
            os.kill(worker, TERM)
        await until(lambda: refuses(edge.public), "nobody accepts")
        await edge.hub.event()
        async with patience():
            assert b"building" in await stream.chunk()
            await edge.hub.end()
            while await stream.chunk():
                pass
        await until(lambda: not edge.program.processes(), "the end of the workers")


async def without_its_control_process(edge: Running) -> list[int]:
    """The workers that are left when the control process is killed."""
    workers = edge.program.workers()
    edge.program.signal(KILL)
    await until(lambda: edge.program.pid not in edge.program.processes(), "the end of the control process")
    return workers


def at(edge: Running) -> dict[str, object]:
    """The config's listeners for the port that was found."""
    return {"listen": [{"address": "{}:{}".format(*edge.public)}]}


async def test_next_control_process_takes_over_with_those_who_wait_and_old_workers_end_with_their_streams(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as edge:
        stream = await edge.stream()
        await without_its_control_process(edge)
        edge.write(**at(edge))
        failed: list[object] = []
        over = asyncio.Event()

        async def visit() -> None:
            while not over.is_set():
                try:
                    assert (await edge.ask()).body == b"ok"
                except (Ended, OSError, AssertionError) as error:
                    failed.append(error)

        visitors = [asyncio.create_task(visit()) for _ in range(8)]
        async with serving(edge.file, edge.hub) as again:
            assert again.public == edge.public
            assert "took over from 2 workers" in again.program.output
            await edge.hub.event()
            assert b"building" in await stream.chunk()
            assert edge.program.workers()
            await edge.hub.end()
            async with patience():
                while await stream.chunk():
                    pass
            await until(lambda: not edge.program.workers(), "the end of the old workers")
            for _ in range(20):
                assert (await again.ask()).body == b"ok"
            over.set()
            await asyncio.gather(*visitors)
            assert not failed


async def test_visitors_who_wait_for_workers_without_a_control_process_are_served_by_the_next(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as edge:
        first, _ = await without_its_control_process(edge)
        os.kill(first, STOP)
        waiting = [await edge.client() for _ in range(20)]
        for client in waiting:
            await client.send(CLOSING)
        os.kill(first, CONT)
        edge.write(**at(edge), workers=1)
        async with serving(edge.file, edge.hub) as again:
            await until(lambda: not edge.program.workers(), "the end of the old workers")
            for client in waiting:
                assert (await client.response()).body == b"ok"
            for _ in range(20):
                assert (await again.ask()).body == b"ok"


async def test_control_process_at_another_address_leaves_workers_of_others_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        workers = await without_its_control_process(edge)
        async with serving(edge.file, edge.hub) as other:
            assert other.public != edge.public
            assert (await other.ask()).body == b"ok"
            assert edge.program.workers() == workers
            assert (await edge.ask()).body == b"ok"


async def test_start_that_fails_leaves_the_workers_that_it_would_have_relieved(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        workers = await without_its_control_process(edge)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            admin = {"address": f"127.0.0.1:{taken.getsockname()[1]}"}
            edge.write(**at(edge), admin=admin)
            async with fedproxy("serve", "--config", edge.file) as again:
                assert await again.ended() == 1
        assert edge.program.workers() == workers
        for _ in range(20):
            assert (await edge.ask()).body == b"ok"


async def test_sigterm_ends_what_runs_and_loses_no_request_that_is_on_its_way(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        kept = [await kept_with(edge, worker) for worker in edge.program.workers()]
        for client in kept:
            await client.ask(GET)
        idle = await edge.client()
        await idle.ask(GET)
        stream = await edge.stream()
        slow = await edge.client()
        await slow.send(SLOW)
        await until(lambda: edge.hub.member.has(requests=5), "the slow request at the member")
        edge.program.signal(TERM)
        await edge.program.line("draining for at most 600 s")
        await until(lambda: refuses(edge.public), "nobody accepts")
        for client in kept:
            response = await client.ask(GET)
            assert (response.body, response.value("connection")) == (b"ok", b"close")
            assert await client.closed() == "eof"
        assert await idle.closed() == "eof"
        await edge.hub.event()
        assert b"building" in await stream.chunk()
        await edge.hub.end()
        response = await slow.response()
        assert (response.body, response.value("connection")) == (b"ok", b"close")
        async with patience():
            while await stream.chunk():
                pass
        assert await edge.program.ended() == 0
        assert edge.program.processes() == []


async def test_visitors_in_the_queues_are_served_before_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        workers = edge.program.workers()
        for worker in workers:
            os.kill(worker, STOP)
        waiting = [await edge.client() for _ in range(30)]
        for client in waiting:
            await client.send(GET)
        edge.program.signal(TERM)
        await edge.program.line("draining for at most ")
        for worker in workers:
            os.kill(worker, CONT)
        for client in waiting:
            assert (await client.response()).body == b"ok"
        assert await edge.program.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_whoever_got_a_connection_is_served_however_the_address_is_given_up(
    tmp_path: Path, workers: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        given_up = free.getsockname()
    staying = {"address": "127.0.0.1:0"}
    both = [{"address": "{}:{}".format(*given_up)}, staying]
    async with running(tmp_path, workers=workers, listen=both) as edge:
        assert edge.public == given_up
        host, _, port = edge.program.lines[-2].rpartition("listening on ")[2].rpartition(":")
        edge.public = host, int(port)

        def reload() -> None:
            edge.write(workers=workers, listen=[staying])
            edge.program.signal(signal.SIGHUP)

        def end() -> None:
            edge.program.signal(TERM)

        for address, give_up in ((given_up, reload), (edge.public, end)):
            lost: list[object] = []
            visitors = [asyncio.to_thread(visit_until_refused, address, lost) for _ in range(4)]
            visiting = asyncio.gather(*visitors)
            for _ in range(20):
                assert (await edge.ask()).body == b"ok"
            give_up()
            async with patience():
                await visiting
            assert not lost
        assert await edge.program.ended() == 0


def read_to_end(visitor: socket.socket) -> bytes:
    return b"".join(iter(lambda: visitor.recv(65536), b""))


def visit_until_refused(address: tuple[str, int], lost: list[object]) -> None:
    """One visit after the other; `lost` gets those that had a connection and no answer. For a thread."""
    while True:
        try:
            visitor = socket.create_connection(address, timeout=30)
        except ConnectionRefusedError:
            return
        with visitor:
            try:
                visitor.sendall(CLOSING)
                answered = read_to_end(visitor)
            except OSError as error:
                lost.append(error)
            else:
                if not answered.endswith(b"ok"):
                    lost.append(answered)


async def test_second_signal_cuts_what_is_left(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        streams = [await edge.stream() for _ in range(4)]
        edge.program.signal(TERM)
        await edge.program.line("a second signal ends it at once")
        edge.program.signal(TERM)
        for stream in streams:
            with pytest.raises(Ended):
                async with patience():
                    await stream.chunk()
        assert await edge.program.ended() == 0


async def test_streams_longer_than_the_drain_are_cut(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"drain": "200ms"}) as edge:
        stream = await edge.stream()
        edge.program.signal(TERM)
        with pytest.raises(Ended):
            async with patience():
                await stream.chunk()
        assert await edge.program.ended() == 0


@pytest.mark.parametrize("number", [TERM, signal.SIGINT, signal.SIGHUP])
async def test_signal_while_it_starts_is_no_accident(tmp_path: Path, number: int) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(
        "{listen: [{address: '127.0.0.1:0'}], admin: {address: '127.0.0.1:0'}, workers: 2,"
        " members: {a: {url: 'http://127.0.0.1:1'}}}"
    )
    async with fedproxy("serve", "--config", file) as program:
        await program.line("1 member from ")
        await until(lambda: len(program.processes()) >= 3, "the workers come")
        program.signal(number)
        await program.address("listening on ")
        if number == signal.SIGHUP:
            await program.line("reloaded ")
            program.signal(TERM)
        assert await program.ended() == 0


async def test_stop_during_a_reload_that_brings_new_workers_leaves_nobody_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        edge.write(workers=3)
        edge.program.signal(signal.SIGHUP)
        await until(lambda: len(edge.program.workers()) > 2, "new workers come")
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0
        await until(lambda: not edge.program.processes(), "the end of all")


async def test_worker_that_hangs_holds_up_neither_operators_nor_visitors(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        hung, well = edge.program.workers()
        kept = await kept_with(edge, well)
        os.kill(hung, STOP)
        assert await edge.metric("fedproxy_workers") == 2
        status, _ = await edge.admin_ask("PATCH", "/members/a", {"weight": 5})
        assert status == 200
        assert (await kept.ask(GET)).body == b"ok"
        os.kill(hung, CONT)
        # What was told meanwhile is in force there too.
        async with patience():
            while (await edge.members())["a"]["weight"] != 5:
                await asyncio.sleep(PAUSE)
        client = await kept_with(edge, hung)
        assert (await client.ask(GET)).body == b"ok"


async def test_intent_reaches_every_worker_before_it_is_answered_and_survives_a_restart(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as edge:
        clients = [await kept_with(edge, worker) for worker in edge.program.workers()]
        status, _ = await edge.admin_ask("PATCH", "/members/a", {"state": "maint", "weight": 7})
        assert status == 200
        for client in clients:
            assert (await client.ask(GET)).status == 503
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0
        async with serving(edge.file, edge.hub) as again:
            member = (await again.members())["a"]
            assert (member["state"], member["weight"]) == ("maint", 7)
            assert (await again.ask()).status == 503
            assert (await again.admin_ask("PATCH", "/members/a", {"state": "ready"}))[0] == 200
            assert (await again.ask()).status == 200


async def test_breaker_that_opens_in_one_worker_opens_in_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    breaker = {"failures": 3, "open": "1h", "open_max": "1h", "max_ejected": 1}
    retry = {"attempts": 1}
    async with running(tmp_path, members={"a": {"url": nobody}}, breaker=breaker, retry=retry) as edge:
        first, second = edge.program.workers()
        client, other = await kept_with(edge, first), await kept_with(edge, second)
        for _ in range(3):
            assert (await client.ask(GET)).status == 502
        async with patience():
            while await edge.metric("fedproxy_breaker_transitions_total", member="a", to="open") < 2:
                await asyncio.sleep(PAUSE)
        assert (await other.ask(GET)).status == 503


async def test_launches_in_flight_are_counted_across_workers(tmp_path: Path) -> None:
    async with running(tmp_path, member={"max_launches": 1}) as edge:
        first, second = edge.program.workers()
        launching, other = await kept_with(edge, first), await kept_with(edge, second)
        await launching.send(LAUNCH)
        assert (await launching.head()).status == 200

        async def refused() -> bool:
            client = await kept_with(edge, second)
            await client.send(LAUNCH)
            head = await client.head()
            body = (
                await client.exactly(int(head.value("content-length") or 0))
                if head.value("content-length")
                else b""
            )
            await client.leave()
            return b"busy" in body

        async with patience():
            while not await refused():
                pass
        assert (await other.ask(GET)).body == b"ok"
        await edge.hub.end()
        async with patience():
            while await launching.chunk():
                pass
            while await edge.metric("fedproxy_launches_in_flight", member="a"):
                await asyncio.sleep(PAUSE)
            while await refused():
                pass


async def test_launch_rate_is_one_for_all_workers(tmp_path: Path) -> None:
    async with running(tmp_path, rate={"launches": 2, "per": "1h"}) as edge:
        await edge.hub.end()
        first, second = edge.program.workers()
        for worker in (first, first):
            client = await kept_with(edge, worker)
            assert b"Too many" not in (await client.ask(LAUNCH)).body
        async with patience():
            while b"Too many" not in (await (await kept_with(edge, second)).ask(LAUNCH)).body:
                pass


def says(event: bytes) -> Scripted:
    """A member whose launches have this one event."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(event)

    async def handle(conn: Conn, request: Message) -> None:
        conn.send(head, event)

    return Scripted(per_request(handle))


def launches(member: Scripted) -> int:
    return sum(request.target.startswith(b"/build/") for request in member.requests)


async def test_launch_that_moved_is_known_to_the_other_workers(tmp_path: Path) -> None:
    full = says(
        b'data: {"phase": "failed", "status_code": 503, "message": "Too many users on this BinderHub!"}\n\n'
    )
    well = says(b'data: {"phase": "ready"}\n\n')
    await full.start()
    await well.start()
    members = {"a": {"url": full.url, "weight": 1e6}, "b": {"url": well.url, "weight": 1e-6}}
    try:
        async with running(tmp_path, members=members) as edge:
            one, other = edge.program.workers()
            assert b"ready" in (await (await kept_with(edge, one)).ask(LAUNCH)).body
            assert (launches(full), launches(well)) == (1, 1)
            await edge.members()  # what was said before has been passed on by now
            await edge.members()
            assert b"ready" in (await (await kept_with(edge, other)).ask(LAUNCH)).body
            assert (launches(full), launches(well)) == (1, 2)
    finally:
        await full.stop()
        await well.stop()


# -- what one visitor sees in one worker


class Picky(Hub):
    """Fails what is no GET, as one visitor can make it at will."""

    async def _serve(self, conn: Conn, request: Message) -> None:
        conn.send(OK if request.method == b"GET" else FAILS)


FAILS = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
ALONE: dict[str, Any] = {
    "workers": 3,
    "trusted_proxies": ["127.0.0.0/8"],
    "breaker": {"max_ejected": 1.0, "open": "60s"},
}


def of(client: bytes, method: bytes = b"GET", *, target: bytes = b"/x") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: %b\r\n\r\n" % (method, target, client)


@pytest.mark.parametrize("target", [b"/x", b"/user/alive/x"])
async def test_visitor_who_is_alone_in_a_worker_opens_no_breaker_while_another_worker_serves_others(
    tmp_path: Path, target: bytes
) -> None:
    hub = Picky()
    await hub.member.start()
    write(tmp_path / "edge.yaml", hub, **ALONE)
    async with serving(tmp_path / "edge.yaml", hub) as edge:
        kept = await edge.client()
        for _ in range(40):
            assert (await kept.ask(of(b"203.0.113.2", target=target))).body == b"ok"
            response = await edge.ask(of(b"203.0.113.1", b"DELETE"))
            assert (response.status, response.body) == (503, b"")
    await hub.member.stop()


async def test_visitor_who_is_alone_in_all_workers_opens_breakers_as_before(tmp_path: Path) -> None:
    hub = Picky()
    await hub.member.start()
    write(tmp_path / "edge.yaml", hub, **ALONE)
    async with serving(tmp_path / "edge.yaml", hub) as edge, patience():
        # The edge's own answer has a body.
        while not (await edge.ask(of(b"203.0.113.1", b"DELETE"))).body:
            pass
    await hub.member.stop()
