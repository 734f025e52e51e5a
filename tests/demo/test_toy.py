"""The toy member behaves as `ToyBinderHub` promises, because other tests lean on it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from fedproxy.config.load import parse
from fedproxy.demo.federation import DemoFederation
from fedproxy.demo.launches import ToyLaunch, ToyOutcome, steps
from fedproxy.demo.toy import Mode, ToyBinderHub

EVENTS = {"Accept": "text/event-stream"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def toy(clock: Clock) -> AsyncIterator[ToyBinderHub]:
    hub = ToyBinderHub("toy-oxford", pace=0, linger=0, clock=clock)
    await hub.start()
    yield hub
    await hub.stop()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def launch(client: aiohttp.ClientSession, toy: ToyBinderHub, target: str) -> list[dict[str, Any]]:
    async with client.get(URL(f"{toy.url}/build/{target}", encoded=True), headers=EVENTS) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Transfer-Encoding"] == "chunked"
        blocks = (await response.text()).split("\n\n")
    assert blocks[0] == ":keepalive"
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block.startswith("data: ")]


def phases(events: list[dict[str, Any]]) -> list[str]:
    """The phases in order, each once; events that have none are left out."""
    return list(dict.fromkeys(event["phase"] for event in events if "phase" in event))


async def test_url_before_the_first_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="toy-oxford"):
        _ = ToyBinderHub("toy-oxford").url


async def test_starting_on_a_taken_port_fails_and_leaves_nothing_to_stop(toy: ToyBinderHub) -> None:
    second = ToyBinderHub("toy-leuven")
    with pytest.raises(OSError, match="in use"):
        await second.start(port=int(toy.url.rpartition(":")[2]))
    await second.stop()


async def test_any_other_path_is_the_page_that_names_the_member(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    for path in ("/", "/about/us", "//twice", "/%7Eme%2Fyou"):
        async with client.get(URL(toy.url + path, encoded=True)) as response:
            page = await response.text()
            assert response.status == 200
            assert response.headers["X-Toy-Member"] == "toy-oxford"
            assert "toy-oxford" in page
            assert 4_000 < len(page) < 5_000


async def test_page_that_is_known_by_its_tag_is_not_sent_again(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    async with client.get(toy.url) as response:
        tag = response.headers["ETag"]
    async with client.get(toy.url, headers={"If-None-Match": tag}) as response:
        assert response.status == 304
        assert response.headers["ETag"] == tag
        assert await response.read() == b""


async def test_pages_carry_no_script_of_their_own(toy: ToyBinderHub, client: aiohttp.ClientSession) -> None:
    async with client.get(f"{toy.url}/v2/gh/a/b/HEAD") as response:
        page = await response.text()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page)
    assert scripts
    for attributes, body in scripts:
        assert body == ""
        source = re.search(r'src="(/static/[^"]+)"', attributes)
        assert source
        async with client.get(toy.url + source[1]) as response:
            assert response.status == 200


async def test_static_files_have_the_size_of_real_ones(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    for path, size in (("bundle.js", 1_900_000), ("styles.css", 407_000)):
        async with client.get(f"{toy.url}/static/dist/{path}") as response:
            assert size <= len(await response.read()) < size + 200
            assert response.headers["Cache-Control"] == "max-age=315360000"
            assert "Content-Encoding" not in response.headers
    async with client.get(f"{toy.url}/static/nothing.js") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-99", 206, slice(0, 100)),
        ("bytes=1000-", 206, slice(1000, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("lines=1-2", 200, slice(None)),
    ],
)
async def test_range_of_a_static_file(
    toy: ToyBinderHub, client: aiohttp.ClientSession, asked: str, status: int, part: slice
) -> None:
    url = f"{toy.url}/static/dist/styles.css"
    async with client.get(url) as response:
        whole, tag = await response.read(), response.headers["ETag"]
    async with client.get(url, headers={"Range": asked, "If-Range": tag}) as response:
        assert response.status == status
        assert await response.read() == whole[part]
    async with client.get(url, headers={"Range": asked, "If-Range": '"older"'}) as response:
        assert response.status == 200


async def test_cached_repository_is_launched_without_a_build(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    events = await launch(client, toy, "gh/binder-examples/cached/HEAD")
    assert phases(events) == ["built", "launching", "ready"]
    ready = events[-1]
    assert ready["url"].startswith(toy.url + "/user/")
    assert ready["token"]
    async with client.get(ready["url"]) as response:
        assert response.status == 200


async def test_new_repository_is_built_and_found_the_next_time(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    first = await launch(client, toy, "gh/a/b/HEAD")
    assert phases(first) == ["waiting", "fetching", "building", "pushing", "built", "launching", "ready"]
    assert max(len(json.dumps(event)) for event in first) > 16_384
    assert any("phase" not in event for event in first)
    second = await launch(client, toy, "gh/a/b/HEAD")
    assert phases(second) == ["built", "launching", "ready"]
    assert toy.launches == 2


async def test_spec_stays_as_it_was_escaped(toy: ToyBinderHub, client: aiohttp.ClientSession) -> None:
    events = await launch(client, toy, "git/https%3A%2F%2Fexample.org%2Fx.git/feature%2Fy")
    assert events[-1]["binder_request"] == "v2/git/https%3A%2F%2Fexample.org%2Fx.git/feature%2Fy"


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [
        ("svn/a/b", 404, "No provider found for prefix svn"),
        ("gh/a/missing/HEAD", 404, "Could not resolve ref for gh:a/missing/HEAD"),
        ("gh/a/banned/HEAD", 403, "is not allowed to launch"),
    ],
)
async def test_launch_that_fails_everywhere(
    toy: ToyBinderHub, client: aiohttp.ClientSession, target: str, status: int, message: str
) -> None:
    (event,) = await launch(client, toy, target)
    assert (event["phase"], event["status_code"]) == ("failed", status)
    assert message in event["message"]


@pytest.mark.parametrize(
    "accept", ["TEXT/Event-Stream", "text/event-stream;q=1", "*/*; text/event-stream ;x"]
)
async def test_build_reads_accept_as_binderhub_does(
    toy: ToyBinderHub, client: aiohttp.ClientSession, accept: str
) -> None:
    async with client.get(f"{toy.url}/build/nope/a/b/HEAD", headers={"Accept": accept}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert b"failed" in await response.read()


async def test_build_without_the_event_stream_type_is_refused(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    for accept in ("*/*", "text/event-stream, */*"):
        async with client.get(f"{toy.url}/build/gh/a/b/HEAD", headers={"Accept": accept}) as response:
            assert response.status == 406
    async with client.options(f"{toy.url}/build/gh/a/b/HEAD") as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_stream_stays_open_after_its_last_event(client: aiohttp.ClientSession) -> None:
    toy = ToyBinderHub("toy-leuven", pace=0)
    await toy.start()
    async with client.get(f"{toy.url}/build/gh/a/cached/HEAD", headers=EVENTS) as response:
        while b'"ready"' not in await response.content.readline():
            pass
        assert await response.content.readline() == b"\n"
        rest = asyncio.ensure_future(response.content.read(1))
        done, _ = await asyncio.wait([rest], timeout=0.05)
        assert not done
        await toy.stop()
        with pytest.raises(aiohttp.ClientError):
            await rest


def test_event_script_without_a_member_ends_in_ready_or_failed() -> None:
    asked = ToyLaunch("gh", "a/b/HEAD", "http://m", "http://m/user/x/", "t")
    for how in ToyOutcome:
        last = list(steps(asked, how))[-1].event["phase"]
        assert last == ("ready" if how in (ToyOutcome.BUILT, ToyOutcome.CACHED) else "failed")


async def test_sessions_count_as_pods_until_they_end(
    toy: ToyBinderHub, client: aiohttp.ClientSession, clock: Clock
) -> None:
    before = toy.total_pods
    await launch(client, toy, "gh/a/cached/HEAD")
    assert toy.total_pods == before + 1
    clock.now += 301
    assert toy.total_pods == before


async def test_full_member_fails_a_build_at_once_and_a_cached_launch_after_built(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    await toy.set_mode(Mode.FULL)
    assert phases(await launch(client, toy, "gh/a/b/HEAD")) == ["failed"]
    assert phases(await launch(client, toy, "gh/a/cached/HEAD")) == ["built", "failed"]
    async with client.get(f"{toy.url}/health") as response:
        report = await response.json()
    assert response.status == 200
    assert report["ok"] is True
    quota = report["checks"][-1]
    assert quota["total_pods"] == quota["quota"]
    assert quota["ok"] is False


async def test_member_with_no_quota_is_never_full(client: aiohttp.ClientSession) -> None:
    toy = ToyBinderHub("toy-bergen", pods=10_000, quota=None)
    assert not toy.full
    assert toy.health()["checks"][-1]["quota"] is None


async def test_sick_member_serves_visitors_and_fails_its_probe(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    await toy.set_mode(Mode.SICK)
    async with client.get(f"{toy.url}/health") as response:
        assert response.status == 503
        assert (await response.json())["ok"] is False
    async with client.get(toy.url) as response:
        assert response.status == 200


async def test_failing_member_refuses_visitors_and_passes_its_probe(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    await toy.set_mode(Mode.FAILING)
    async with client.get(toy.url) as response:
        assert response.status == 503
    for path in ("/health", "/versions"):
        async with client.get(toy.url + path) as response:
            assert response.status == 200


async def test_flapping_member_fails_and_recovers_by_the_clock(
    toy: ToyBinderHub, client: aiohttp.ClientSession, clock: Clock
) -> None:
    await toy.set_mode(Mode.FLAPPING)
    for now, status in ((0, 503), (9, 503), (11, 200), (19, 200), (21, 503)):
        clock.now = now
        async with client.get(toy.url) as response:
            assert response.status == status


async def test_slow_member_answers_all_the_same(toy: ToyBinderHub, client: aiohttp.ClientSession) -> None:
    await toy.set_mode(Mode.SLOW)
    async with client.get(toy.url) as response:
        assert response.status == 200


async def test_resetting_member_sends_a_reset(toy: ToyBinderHub) -> None:
    await toy.set_mode(Mode.RESETTING)
    url = URL(toy.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: toy\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_hanging_member_answers_when_it_is_well_again(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    await toy.set_mode(Mode.HANGING)
    asked = asyncio.ensure_future(client.get(f"{toy.url}/health"))
    done, _ = await asyncio.wait([asked], timeout=0.05)
    assert not done
    async with client.post(f"{toy.url}/_toy/healthy") as response:
        assert await response.json() == {"member": "toy-oxford", "mode": "healthy"}
    async with await asked as response:
        assert response.status == 200


async def test_killed_member_refuses_connections_until_another_mode_is_set(
    toy: ToyBinderHub, client: aiohttp.ClientSession
) -> None:
    url = toy.url
    async with client.get(f"{url}/_toy/kill") as response:
        assert response.status == 200
        assert (await response.json())["mode"] == "kill"
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(url)
    await toy.set_mode(Mode.KILL)
    await toy.set_mode(Mode.HEALTHY)
    assert toy.url == url
    async with client.get(url) as response:
        assert response.status == 200


async def test_unknown_mode_is_named_as_such(toy: ToyBinderHub, client: aiohttp.ClientSession) -> None:
    async with client.post(f"{toy.url}/_toy/sleepy") as response:
        assert response.status == 404
        assert "flapping" in (await response.json())["modes"]
    assert toy.mode is Mode.HEALTHY


async def test_echo_tells_what_arrived(toy: ToyBinderHub) -> None:
    # By hand, because a client library would merge the two spellings of one name.
    url = URL(toy.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"POST /echo?a=%2F&b HTTP/1.1\r\nHost: toy\r\nConnection: close\r\n"
        b"X-Twice: 1\r\nx-twice: 2\r\nContent-Length: 5\r\n\r\n12345"
    )
    seen = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    await writer.wait_closed()
    assert (seen["method"], seen["target"], seen["body_bytes"]) == ("POST", "/echo?a=%2F&b", 5)
    assert seen["headers"][2:4] == [["X-Twice", "1"], ["x-twice", "2"]]


@pytest.mark.parametrize("path", ["/upload", "/user/ada/api/contents/data/big.bin"])
async def test_upload_is_counted_and_digested(
    toy: ToyBinderHub, client: aiohttp.ClientSession, path: str
) -> None:
    body = gzip.compress(b"toy") * 10_000

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 10_000):
            yield body[at : at + 10_000]

    async with client.put(toy.url + path, data=chunks()) as response:
        assert await response.json() == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("path", ["/ws/echo", "/user/ada/api/kernels/1234/channels"])
async def test_websocket_echoes_text_and_bytes(
    toy: ToyBinderHub, client: aiohttp.ClientSession, path: str
) -> None:
    async with client.ws_connect(toy.url + path) as echo:
        await echo.send_str("hello")
        assert await echo.receive_str() == "hello"
        await echo.send_bytes(b"\x00" * 100_000)
        assert await echo.receive_bytes() == b"\x00" * 100_000


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/api/repoproviders", "application/json"),
        ("/badge.svg", "image/svg+xml"),
        ("/metrics", "text/plain"),
        ("/versions", "application/json"),
    ],
)
async def test_small_routes(
    toy: ToyBinderHub, client: aiohttp.ClientSession, path: str, content_type: str
) -> None:
    async with client.get(toy.url + path) as response:
        assert (response.status, response.content_type) == (200, content_type)
        assert await response.read()


async def test_repo_redirects_to_the_launch_page(toy: ToyBinderHub, client: aiohttp.ClientSession) -> None:
    async with client.get(f"{toy.url}/repo/ada/notes", allow_redirects=False) as response:
        assert response.status == 302
        assert response.headers["Location"] == "/v2/gh/ada/notes/HEAD"


async def test_federation_gives_a_config_that_is_valid_and_names_its_members() -> None:
    async with DemoFederation(10, pace=0) as federation:
        parse(json.dumps(federation.config_dict(0, 0)), {})
        config = federation.config_dict(8000, 8001, token="secret")
        parse(json.dumps(config), {})
        assert [hub.name for hub in federation.hubs] == list(config["members"])
        assert [name for name, member in config["members"].items() if member["prime"]] == ["toy-oxford"]
        assert config["admin"]["token"] == "secret"
        assert config["members"]["toy-leuven"]["contact"] == "mailto:binder@leuven.example.org"
        assert len({member["url"] for member in config["members"].values()}) == 10


async def test_federation_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        DemoFederation(0)


async def test_control_page_makes_a_killed_member_well(client: aiohttp.ClientSession) -> None:
    async with DemoFederation(2, pace=0) as federation:
        hub = federation.hubs[1]
        async with client.post(f"{federation.control_url}/{hub.name}/kill") as response:
            assert await response.json() == {"member": hub.name, "mode": "kill"}
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(hub.url)
        form = {"Accept": "text/html"}
        async with client.post(f"{federation.control_url}/{hub.name}/healthy", headers=form) as response:
            assert response.status == 200
            assert hub.name in await response.text()
        async with client.get(hub.url) as response:
            assert response.status == 200
        async with client.post(f"{federation.control_url}/nobody/healthy") as response:
            assert response.status == 404
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(hub.url)
    with pytest.raises(RuntimeError):
        _ = federation.control_url
