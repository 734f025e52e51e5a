import re
import signal
import socket

import aiohttp

from fedproxy.demo.toy import Mode
from tests.rig.client import RawClient
from tests.rig.command import fedproxy
from tests.rig.h2 import H2Client, request

LAST = "Ctrl-C stops everything."


async def test_demo_serves_what_it_prints_and_ends_at_ctrl_c() -> None:
    async with fedproxy("demo", "--port", 0, "--members", 2) as demo:
        await demo.line(LAST)
        said = dict(re.findall(r"^  (?!curl)(\S.*?) +(http://\S+)$", demo.output, re.MULTILINE))
        assert list(said) == [
            "the edge",
            "a launch",
            "who serves me?",
            "the federation",
            "for operators",
            "for Prometheus",
            "toy-oxford",
            "toy-leuven",
            "a candidate",
            "to break them",
        ]
        async with aiohttp.ClientSession() as client:
            for name, url in said.items():
                async with client.get(url) as response:
                    assert response.status == 200, name
            async with client.get(said["to break them"]) as response:
                links = re.findall(r'<a href="(\S+)">', await response.text())
                assert {said["the edge"], said["who serves me?"], said["for operators"]} <= set(links)
            async with client.get(said["the federation"]) as response:
                assert set((await response.json())["active_hosts"]) == {"toy-oxford", "toy-leuven"}
        demo.signal(signal.SIGINT)
        assert await demo.ended() == 0
        assert demo.lines[-1] == "Stopping."


async def test_demo_tells_of_every_mode_on_a_screen_of_eighty_columns() -> None:
    async with fedproxy("demo", "--port", 0) as demo:
        await demo.line(LAST)
        text = re.sub(r"\S+ -m fedproxy", "fedproxy", demo.output)
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) <= 40
        assert set(Mode) <= set(re.findall(r"[a-z]+", text))
        demo.signal(signal.SIGINT)
        assert await demo.ended() == 0


async def test_examples_that_the_demo_prints_do_what_they_say() -> None:
    async with fedproxy("demo", "--port", 0, "--members", 1) as demo:
        await demo.line(LAST)
        edge, operators = (
            re.findall(rf"^  {label} +(http://\S+)/$", demo.output, re.MULTILINE)[0]
            for label in ("the edge", "for operators")
        )
        failing, healthy = re.findall(r"curl -X POST (\S+)$", demo.output, re.MULTILINE)
        token = re.findall(r"FEDPROXY_ADMIN_TOKEN=(\S+)", demo.output)[0]
        assert f"FEDPROXY_ADMIN={operators} " in demo.output
        (candidate,) = re.findall(r"^  a candidate +(http://\S+)/$", demo.output, re.MULTILINE)
        typed = re.findall(r"^  \S+ -m fedproxy (.+)$", demo.output, re.MULTILINE)
        assert typed == [
            "drain toy-oxford",
            "members",
            "ready toy-oxford",
            f"join toy-leuven {candidate} --share 20% --over 1m",
            "leave toy-leuven",
        ]
        async with aiohttp.ClientSession() as client:
            for url, status in (failing, 503), (healthy, 200):
                async with client.post(url) as response:
                    assert response.status == 200
                async with client.get(edge) as response:
                    assert response.status == status
            async with client.patch(
                f"{operators}/members/toy-oxford",
                json={"state": "drain"},
                headers={"Authorization": f"Bearer {token}"},
            ) as response:
                assert response.status == 200
        demo.signal(signal.SIGTERM)
        assert await demo.ended() == 0


async def test_demo_speaks_http2_with_those_who_begin_with_it() -> None:
    async with fedproxy("demo", "--port", 0, "--members", 1) as demo:
        await demo.line(LAST)
        host, port = re.findall(r"^  the edge +http://(\S+):(\d+)/$", demo.output, re.MULTILINE)[0]
        visitor = await H2Client(await RawClient.connect((host, int(port)))).begin()
        assert (await visitor.ask(request(b"/"))).status == 200
        await visitor.leave()
        demo.signal(signal.SIGINT)
        assert await demo.ended() == 0


async def test_demo_on_a_taken_port_says_how_to_take_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with fedproxy("demo", "--port", port) as demo:
            assert await demo.ended() == 1
        (line,) = demo.lines
        assert line.startswith(f"fedproxy demo: cannot listen on 127.0.0.1:{port}: Address already in use;")
        assert line.endswith("choose another port with --port N")
