import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import aiohttp
import pytest
import trustme
import yaml

from fedproxy.config.load import parse
from fedproxy.config.model import Config
from fedproxy.control.messages import ApplyConfig
from fedproxy.control.prober import Report
from fedproxy.errors import ConfigError, Fault, NameFailed
from fedproxy.proxy.resolver import Resolver
from fedproxy.serve.planes import Common, Inside
from fedproxy.serve.service import Service
from tests.rig import RawClient, Scripted, answer, edge, guard, until
from tests.rig.service import config_of

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(tmp_path / "chain.pem", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return {name: str(tmp_path / f"{name}.pem") for name in ("key", "chain", "ca")}


def service_of(config: Config, reread: Callable[[], Config] | None = None) -> Service:
    """It serves in this process, and its members are not probed."""
    return Service(config, log=lambda line: None, reread=reread, probe=False)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def tls_listener(files: dict[str, str]) -> list[dict[str, object]]:
    return [
        {"address": "127.0.0.1:0", "tls": {"certificate": files["chain"], "private_key": files["key"]}},
    ]


async def test_visitor_over_tls_is_told_apart(authority: trustme.CA, files: dict[str, str]) -> None:
    async with edge(answer(OK), listen=tls_listener(files)) as running:
        client = await RawClient.connect(("127.0.0.1", running.address[1]), tls=trusting(authority))
        response = await client.ask(GET)
        await client.leave()
        assert response.body == b"ok"
        assert b"; Secure" in (response.value("set-cookie") or b"")
        assert running.member.requests[0].value("x-forwarded-proto") == b"https"


async def test_own_page_over_tls_is_whole(authority: trustme.CA, files: dict[str, str]) -> None:
    async with edge(answer(OK), listen=tls_listener(files)) as running:
        client = await RawClient.connect(("127.0.0.1", running.address[1]), tls=trusting(authority))
        response = await client.ask(b"GET /active_hosts HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.leave()
        assert list(json.loads(response.body)["active_hosts"]) == ["a"]


class Member(asyncio.Protocol):
    """Answers each request that comes in one piece, with no task of its own."""

    def __init__(self, seen: list[bytes]) -> None:
        self.seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)
        self.transport.write(OK)


@pytest.fixture
async def https_member(files: dict[str, str]) -> AsyncIterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files["chain"], files["key"])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Member([]), "127.0.0.1", 0, ssl=context)
    yield f"https://localhost:{server.sockets[0].getsockname()[1]}"
    server.close()


async def test_https_member_is_verified_by_its_ca(https_member: str, files: dict[str, str]) -> None:
    async with edge({"a": https_member}, settings={"a": {"ca": files["ca"]}}) as running:
        response = await running.ask(GET)
        assert response.body == b"ok"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_https_member_of_an_unknown_ca_is_not_trusted(https_member: str) -> None:
    async with edge({"a": https_member}) as running:
        response = await running.ask(GET)
        assert response.status == 502
        assert set(running.errors("a")) == {"tls"}


async def test_member_and_listener_on_unix_sockets(tmp_path: Path) -> None:
    seen: list[bytes] = []
    loop = asyncio.get_running_loop()
    member = await loop.create_unix_server(lambda: Member(seen), str(tmp_path / "member.sock"))
    listen = [{"address": f"unix:{tmp_path / 'edge.sock'}"}]
    config = {
        "listen": listen,
        "admin": {"address": f"unix:{tmp_path / 'admin.sock'}"},
        "workers": 1,
        "members": {"a": {"url": f"unix:{tmp_path / 'member.sock'}"}},
    }
    service = service_of(parse(yaml.safe_dump(config), {}))
    await service.start()
    async with guard():
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "edge.sock"))
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.7\r\nConnection: close\r\n\r\n")
        answered = await reader.read()
        writer.close()
    await service.stop()
    member.close()
    assert answered.startswith(b"HTTP/1.1 200 OK") and answered.endswith(b"ok")
    assert b"X-Real-IP: 192.0.2.7\r\n" in seen[0]
    assert b"Host: localhost\r\n" in seen[0]


async def test_member_and_visitor_over_ipv6() -> None:
    seen: list[bytes] = []
    member = await asyncio.get_running_loop().create_server(lambda: Member(seen), "::1", 0)
    port = member.sockets[0].getsockname()[1]
    async with edge({"a": f"http://[::1]:{port}"}, listen=[{"address": "[::1]:0"}]) as running, guard():
        reader, writer = await asyncio.open_connection("::1", running.address[1])
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nok")
        writer.close()
    member.close()
    assert f"Host: [::1]:{port}\r\n".encode() in seen[0]
    assert b"X-Forwarded-For: ::1\r\n" in seen[0]


async def test_port_in_use_is_named_and_nothing_is_left_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = service_of(config_of("http://127.0.0.1:1", listen=[{"address": f"127.0.0.1:{port}"}]))
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await service.start()
    assert not asyncio.all_tasks() - {asyncio.current_task()}


async def test_reload_puts_members_in_force_and_keeps_the_state_of_those_that_stay() -> None:
    first, second = Scripted(answer(OK)), Scripted(answer(OK))
    await first.start()
    await second.start()
    configs = [
        config_of(first.url, members={"a": {"url": first.url, "weight": 0}, "b": {"url": second.url}}),
    ]
    service = service_of(config_of(first.url), lambda: configs[0])
    await service.start()
    client = await RawClient.connect(service.addresses[0])
    assert (await client.ask(GET)).body == b"ok"
    kept = service.federation.by_name["a"]
    assert await service.reload() == []
    assert service.federation.by_name["a"] is kept
    assert ((await client.ask(GET)).value("set-cookie") or b"").startswith(b"fedproxy_member=b!")
    assert service.reloads == {"success": 1, "failure": 0}
    await client.leave()
    await service.stop()
    await first.stop()
    await second.stop()


async def test_reload_of_a_wrong_config_changes_nothing_and_says_why() -> None:
    def reread() -> Config:
        raise ConfigError([Fault("members", "is missing")])

    service = service_of(config_of("http://127.0.0.1:1"), reread)
    await service.start()
    before = service.federation
    assert await service.reload() == [Fault("members", "is missing")]
    assert service.federation is before
    assert service.reloads == {"success": 0, "failure": 1}
    await service.stop()


async def test_drain_lets_a_request_end_and_closes_idle_connections() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await go_on.wait()
        writer.write(OK)
        await reader.read()
        writer.close()

    member = await asyncio.start_server(serve, "127.0.0.1", 0)
    service = service_of(config_of(f"http://127.0.0.1:{member.sockets[0].getsockname()[1]}"))
    await service.start()
    busy, idle = await RawClient.connect(service.addresses[0]), await RawClient.connect(service.addresses[0])
    await until(lambda: len(service.edge.connections) == 2, "both connections accepted")
    await busy.send(GET)
    await asked.wait()
    stopping = asyncio.ensure_future(service.stop(drain=10))
    assert await idle.closed() == "eof"
    assert not stopping.done()
    go_on.set()
    assert (await busy.response()).body == b"ok"
    await busy.leave()
    await idle.leave()
    await stopping
    member.close()


async def test_request_that_was_not_read_yet_keeps_its_connection_open() -> None:
    async with edge(answer(OK)) as running:
        client = await running.client()
        assert (await client.ask(GET)).body == b"ok"
        later = running.service.edge.clock() + 1
        # Past the loop: it is there, and the edge has not looked yet.
        os.write(client.writer.get_extra_info("socket").fileno(), GET)
        running.service.edge.close_idle(later)
        assert (await client.response()).body == b"ok"
        running.service.edge.close_idle(later)
        assert await client.closed() == "eof"


async def test_drain_does_not_wait_for_whoever_keeps_an_answered_connection_open() -> None:
    async with edge(answer(OK)) as running:
        client = await running.client()
        closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert (await client.ask(closing)).body == b"ok"
        assert await client.closed() == "eof"
        edge_of_it = running.service.edge
        (lingering,) = edge_of_it.connections
        # Something may be on its way yet, that a reset would answer.
        edge_of_it.close_idle(edge_of_it.clock() - 1)
        assert not lingering.transport.is_closing()

        def is_gone() -> bool:
            edge_of_it.close_idle(edge_of_it.clock())
            return not edge_of_it.connections

        await until(is_gone, "the connection is gone although its visitor is not")


async def test_drain_waits_for_whoever_has_not_received_the_answer_yet() -> None:
    body = bytes(256 * 1024)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with edge(answer(head + body)) as running:
        client = await running.client(receive_buffer=4096)
        await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        edge_of_it = running.service.edge
        (connection,) = edge_of_it.connections
        await until(lambda: getattr(connection, "linger_until", None), "the answer is out")
        for _ in range(10):
            edge_of_it.close_idle(edge_of_it.clock() + 1)
            await asyncio.sleep(0)
        assert (await client.response()).body == body


async def test_address_that_was_just_given_up_can_be_opened_anew() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        going = {"address": f"127.0.0.1:{free.getsockname()[1]}"}
    staying = {"address": "127.0.0.1:0"}
    url = "http://127.0.0.1:1"
    wanted = [config_of(url, listen=[staying, going]), config_of(url, listen=[staying])]
    configs = [wanted[at] for at in (0, 1, 0)]
    service = service_of(configs.pop(0), lambda: configs.pop(0))
    await service.start()
    async with guard():
        assert await service.reload() == []
        assert await service.reload() == []
        client = await RawClient.connect(service.addresses[1])
        await client.leave()
        await service.stop()


async def test_listener_that_cannot_be_opened_leaves_the_others_as_they_were() -> None:
    first, second = Scripted(answer(OK)), "127.0.0.1:0"
    await first.start()
    service = service_of(config_of(first.url))
    await service.start()
    plane = cast(Inside, service._planes).plane
    update = ApplyConfig(
        config_of(first.url, listen=[{"address": "127.0.0.1:1"}, {"address": second}]), {}, 1
    )
    planes = Inside(lambda: [[closed_socket()], [closed_socket()]], list, Common(), None)
    planes.plane = plane
    with pytest.raises(OSError, match="Bad file descriptor"):
        await planes.move(update)
    client = await RawClient.connect(service.addresses[0])
    assert (await client.ask(GET)).body == b"ok"
    assert plane.config is service.config
    await client.leave()
    await service.stop()
    await first.stop()


def closed_socket() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


async def test_name_is_resolved_and_an_unknown_one_is_a_failure() -> None:
    now = 0.0
    resolver = Resolver(lambda: now)
    found = await resolver.resolve("localhost", 80)
    assert ("127.0.0.1", 80) in [info[4][:2] for info in found]
    assert await resolver.resolve("localhost", 80) is found
    with pytest.raises(NameFailed):
        await resolver.resolve("no-such-name.invalid", 80)
    await resolver.close()


async def test_certificate_without_its_key_is_a_fault_that_names_both(files: dict[str, str]) -> None:
    tls = {"certificate": files["ca"], "private_key": files["key"]}
    service = service_of(config_of("http://127.0.0.1:1", listen=[{"address": "127.0.0.1:0", "tls": tls}]))
    with pytest.raises(
        ConfigError, match=r"listen\.0\.tls\.certificate: .*ca\.pem does not match .*key\.pem"
    ):
        await service.start()


async def test_unix_listener_in_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    service = service_of(
        config_of("http://127.0.0.1:1", listen=[{"address": f"unix:{tmp_path}/none/edge.sock"}])
    )
    with pytest.raises(OSError, match=r"cannot listen on unix:.*/none/edge\.sock: No such file"):
        await service.start()


async def test_reload_with_a_ca_that_is_none_changes_nothing(files: dict[str, str]) -> None:
    def reread() -> Config:
        member = {"url": "https://localhost", "ca": files["key"], "weight": 7}
        return config_of("", members={"a": member})

    service = service_of(config_of("http://127.0.0.1:1"), reread)
    await service.start()
    message = f"{files['key']} cannot be used, expected certificates as PEM"
    assert await service.reload() == [Fault("members.a.ca", message)]
    assert service.federation.by_name["a"].weight == 1
    await service.stop()


@pytest.mark.parametrize("read", ["open", "token"])
async def test_route_has_the_metrics_on_a_public_listener(read: str, unused_tcp_port: int) -> None:
    admin = {"address": f"127.0.0.1:{unused_tcp_port}", "token": "quiet enough to be one", "read": read}
    routes = [{"path": "/numbers", "page": "metrics"}]
    config = config_of("http://127.0.0.1:1", admin=admin, routes=routes, access_log="off")
    service = Service(config, probe=False)
    await service.start()
    try:
        host, port = service.addresses[0]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            async with session.get("/numbers") as response:
                assert response.status == 200
                assert "fedproxy_build_info{" in await response.text()
                assert response.headers["Content-Type"].startswith("text/plain")
            async with session.get("/federation/numbers") as response:
                assert response.status == 404
    finally:
        await service.stop()


async def test_full_member_is_never_said_to_be_unhealthy() -> None:
    async with edge({"a": answer(OK)}) as running:
        service = running.service
        full = Report("a", healthy=False, reasons=("quota",), details=("60 pods reach the quota of 60",))
        sick = Report("a", healthy=False, reasons=("quota", "hub"), details=("60 pods ...", "hub is not ok"))
        for report in (Report("a", healthy=True), full, full, sick, full, Report("a", healthy=True), sick):
            service.take_report(report)
        service.take_report(Report("a", healthy=True))
        assert [(each.name.value, each.message) for each in service.history.events if each.member == "a"] == [
            ("member.full", "a is full: 60 pods reach the quota of 60"),
            ("member.unhealthy", "a is unhealthy: 60 pods ...; hub is not ok"),
            ("member.full", "a is full: 60 pods reach the quota of 60"),
            ("member.room", "a has room again"),
            ("member.unhealthy", "a is unhealthy: 60 pods ...; hub is not ok"),
            ("member.healthy", "a is healthy again"),
        ]
