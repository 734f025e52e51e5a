"""Debian's Prometheus scrapes a running edge with the rules that are shipped: alerts fire, and resolve."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import trustme
import yaml

from fedproxy.demo.toy import Mode, ToyBinderHub
from tests.rig import programs
from tests.rig.command import Program, fedproxy
from tests.rig.dashboard import QUERIES
from tests.rig.redis import REDIS, redis

pytestmark = [REDIS, *(programs.needs(each, "prometheus") for each in ("prometheus", "promtool"))]

RULES = Path(__file__).parents[2] / "conf" / "prometheus"
#: Names of federation-redirect's that promtool does not like, kept for existing dashboards.
KEPT_NAMES = {"federation_redirect_count"}
WITHIN = 30.0  # seconds that a test waits for what must come


def hastened(rules: str) -> str:
    """The shipped rules with every `for` and every range cut down to what a test can wait for."""
    rules = re.sub(r"\bfor: \w+$", "for: 400ms", rules, flags=re.MULTILINE)
    return re.sub(r"\[\w+(:\w+)?\]", lambda found: "[4s:200ms]" if found[1] else "[4s]", rules)


@dataclass(frozen=True)
class Watched:
    """Two toy members, an edge in front of them and a Prometheus that watches it."""

    members: dict[str, ToyBinderHub]
    edge: Program
    public: str
    admin: str
    prometheus: str
    session: aiohttp.ClientSession

    async def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of Prometheus's API."""
        async with self.session.get(f"{self.prometheus}/api/v1/{path}", params=query) as response:
            answer = await response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def comes(self, path: str, good: Callable[[Any], bool], **query: str) -> Any:
        """Asks until the data are good."""
        data = None
        try:
            async with asyncio.timeout(WITHIN):
                while not good(data := await self.ask(path, **query)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{path} {query} stays {data}") from None
        return data

    async def fires(self, alert: str) -> dict[str, Any]:
        """The one alert of that name, once it fires."""
        data = await self.comes("alerts", lambda data: any(_is_firing(alert, one) for one in data["alerts"]))
        (found,) = (one for one in data["alerts"] if _is_firing(alert, one))
        return dict(found)

    async def resolves(self, alert: str) -> None:
        """Returns when no alert of that name is there any more, not even a pending one."""
        await self.comes(
            "alerts", lambda data: all(one["labels"]["alertname"] != alert for one in data["alerts"])
        )

    async def serves(self, member: str) -> None:
        """Returns once the member serves visitors, as it is now: what was scraped may be from before."""
        served = None
        async with asyncio.timeout(WITHIN):
            while True:
                async with self.session.get(f"{self.admin}/members/{member}") as response:
                    now = await response.json()
                if not now["healthy"] or now["breaker"] != "closed":
                    served = None
                elif served is None:
                    served = now["requests"]
                elif now["requests"] >= served + 20:
                    return

    async def launch(self) -> None:
        """Launches one repository after the other, each until it is ready or has failed."""
        number = 0
        while True:
            number += 1
            address = f"{self.public}/build/gh/some/launch-{number}/HEAD"
            headers = {"Accept": "text/event-stream", "Connection": "close"}
            async with self.session.get(address, headers=headers) as response:
                async for line in response.content:
                    if b'"ready"' in line or b'"failed"' in line:
                        break

    @asynccontextmanager
    async def visited(self, *others: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """While the block runs, visitors come one by one, each for another repository, beside others.

        Each has a connection of its own: every worker gets some, and can try a member that was unhealthy.
        """

        async def visit() -> None:
            number = 0
            while True:
                number += 1
                address = f"{self.public}/v2/gh/some/repository-{number}/HEAD"
                async with self.session.get(address, headers={"Connection": "close"}) as response:
                    await response.read()

        visitors = [asyncio.create_task(each) for each in (visit(), *others)]
        try:
            yield
        finally:
            for each in visitors:
                each.cancel()
            ended = await asyncio.gather(*visitors, return_exceptions=True)
            assert {type(each) for each in ended} == {asyncio.CancelledError}, ended


def _is_firing(alert: str, found: dict[str, Any]) -> bool:
    return bool(found["labels"]["alertname"] == alert and found["state"] == "firing")


@asynccontextmanager
async def watched(folder: Path, **ovh: Any) -> AsyncIterator[Watched]:
    """ovh: further settings of that member."""
    async with AsyncExitStack() as stack:
        # Launches come as fast as they are served, and none may fill a member.
        members = {name: ToyBinderHub(name, pace=0, quota=1_000_000) for name in ("gesis", "ovh")}
        for toy in members.values():
            await toy.start()
            stack.push_async_callback(toy.stop)
        # Only an edge that shares a store has all metrics.
        server = await stack.enter_async_context(redis())
        config = _edge(folder, members, server.url, ovh)
        edge = await stack.enter_async_context(fedproxy("serve", "--config", config))
        host, port = await edge.address("listening on ")
        admin = "{}:{}".format(*await edge.address("admin on "))
        running = stack.enter_context(ExitStack())
        own = programs.free_port()
        # In a thread: the members answer the edge's probes while Prometheus starts.
        await asyncio.to_thread(
            running.enter_context,
            programs.running(_prometheus(folder, admin, own), folder, port=own, ready="/-/ready"),
        )
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(10))
        )
        urls = f"http://{host}:{port}", f"http://{admin}", f"http://127.0.0.1:{own}"
        found = Watched(members, edge, *urls, session)
        await found.comes(
            "targets", lambda data: [one["health"] for one in data["activeTargets"]] == ["up"], state="active"
        )
        yield found


def _edge(folder: Path, members: dict[str, ToyBinderHub], store: str, ovh: dict[str, Any]) -> Path:
    issued = trustme.CA().issue_cert("localhost")
    chain, key = folder / "tls.crt", folder / "tls.key"
    chain.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    tls = {"certificate": str(chain), "private_key": str(key)}
    config = {
        "listen": [{"address": "127.0.0.1:0"}, {"address": "127.0.0.1:0", "tls": tls}],
        "admin": {"address": "127.0.0.1:0"},
        "store": store,
        "workers": 2,
        "access_log": "off",
        "health": {"interval": "200ms", "unhealthy_interval": "200ms", "fall": 2},
        "breaker": {"open": "500ms", "open_max": "1s"},
        "members": {
            name: {
                "url": toy.url,
                "weight": 50,
                "max_launches": 1000,
                "contact": "mailto:a@b.example",
                **(ovh if name == "ovh" else {}),
            }
            for name, toy in members.items()
        },
    }
    file = folder / "edge.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def _prometheus(folder: Path, target: str, port: int) -> list[str]:
    """The shipped config, asking one target five times a second, and the command that runs it."""
    for name in ("recording.yaml", "alerts.yaml"):
        (folder / name).write_text(hastened((RULES / name).read_text()))
    config = yaml.safe_load((RULES / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    del config["alerting"]
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    return [
        programs.found("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]


async def examples_come(running: Watched) -> None:
    """From the buckets of both workers' histograms an example leads to a trace."""
    asked = [f"{number:032x}" for number in range(1, 9)]
    now = time.time()
    for trace in asked:
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "Connection": "close"}
        async with running.session.get(f"{running.public}/v2/gh/a/b/HEAD", headers=headers) as response:
            assert response.headers["X-Request-ID"] == trace
    for name in ("request_duration", "time_to_first_byte"):
        data = await running.comes(
            "query_exemplars",
            bool,
            query=f"fedproxy_{name}_seconds_bucket",
            start=str(now - 60),
            end=str(now + 600),
        )
        found = [(one["seriesLabels"], each) for one in data for each in one["exemplars"]]
        assert {each["labels"]["trace_id"] for _, each in found} <= set(asked)
        assert all(float(each["value"]) <= float(labels["le"]) for labels, each in found)


async def promtool_accepts_the_metrics(running: Watched) -> None:
    """Its rules: base units, `_total` for counters and nothing else, help texts."""
    async with running.session.get(f"{running.admin}/metrics", headers={"Accept": "text/plain"}) as response:
        text = await response.read()
    promtool = await asyncio.create_subprocess_exec(
        *(programs.found("promtool"), "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    complaints, _ = await promtool.communicate(text)
    assert {line.split()[0] for line in complaints.decode().splitlines()} == KEPT_NAMES, complaints


async def test_alerts_of_an_unhealthy_member_and_of_an_edge_that_ended(tmp_path: Path) -> None:
    async with watched(tmp_path) as running:
        await running.members["ovh"].set_mode(Mode.SICK)
        alert = await running.fires("FedproxyMemberDown")
        assert alert["labels"]["member"] == "ovh"
        assert "reports JupyterHub API" in alert["annotations"]["description"]
        await running.members["ovh"].set_mode(Mode.HEALTHY)
        await running.resolves("FedproxyMemberDown")

        # Only in OpenMetrics a counter's family has a name without "_total".
        data = await running.comes("metadata", bool, metric="fedproxy_requests")
        assert [one["type"] for one in data["fedproxy_requests"]] == ["counter"]
        await examples_come(running)

        running.edge.signal(signal.SIGTERM)
        assert await running.edge.ended() == 0
        alert = await running.fires("FedproxyScrapeFails")
        assert alert["labels"]["job"] == "fedproxy"


async def test_full_member_is_full_and_not_down(tmp_path: Path) -> None:
    async with watched(tmp_path) as running:
        await running.members["gesis"].set_mode(Mode.FULL)
        alert = await running.fires("FedproxyMemberFull")
        assert alert["labels"]["member"] == "gesis"
        data = await running.ask("alerts")
        assert {one["labels"]["alertname"] for one in data["alerts"]} == {"FedproxyMemberFull"}
        await running.members["gesis"].set_mode(Mode.HEALTHY)
        await running.resolves("FedproxyMemberFull")


async def test_alert_of_an_open_breaker_fires_and_resolves(tmp_path: Path) -> None:
    async with watched(tmp_path) as running, running.visited():
        await running.members["gesis"].set_mode(Mode.FAILING)
        alert = await running.fires("FedproxyBreakerOpen")
        assert alert["labels"]["member"] == "gesis"
        data = await running.ask("rules")
        rules = [rule for group in data["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        await running.members["gesis"].set_mode(Mode.HEALTHY)
        await running.resolves("FedproxyBreakerOpen")


async def test_everything_that_the_dashboard_and_the_manual_name_has_data(tmp_path: Path) -> None:
    manual = (RULES.parents[1] / "docs" / "reference" / "metrics.md").read_text()
    named = re.findall(r"^\| `(fed\w+)` \|([\w, ]*)\| ?(.*)\|$", manual, re.MULTILINE)
    assert len(named) > 30
    new = {"weight": "auto", "ramp": {"share": "50%"}}
    async with watched(tmp_path, **new) as running, running.visited(running.launch()):
        await running.comes(
            "query", _some, query='fedproxy_launches_total{member="gesis",outcome="ready"} > 0'
        )
        await running.members["gesis"].set_mode(Mode.KILL)
        await running.comes("query", _some, query='fedproxy_upstream_errors_total{member="gesis"}')
        await running.members["gesis"].set_mode(Mode.HEALTHY)
        await running.serves("gesis")
        await running.members["gesis"].set_mode(Mode.FAILING)
        await running.comes("query", _some, query='fedproxy_retries_total{reason="503"}')
        await running.comes("query", _some, query="fedproxy_launch_failovers_total")
        # The alerts first: they end when all are healthy again, and only then has every member a share.
        for title, expression, _ in sorted(QUERIES, key=lambda query: "ALERTS" not in query[1]):
            if "ALERTS" not in expression:
                await running.members["gesis"].set_mode(Mode.HEALTHY)
            assert await running.comes("query", _some, query=expression), title
        for name, labels, what in named:
            part = "_bucket" if what.startswith("histogram") else ""
            data = await running.comes("query", _some, query=f"{name}{part}")
            found = {label for one in data["result"] for label in one["metric"]}
            if name == "federation_health":
                # It is empty for who is well, which is none to Prometheus.
                found.add("reason")
            wanted = set(labels.replace(",", " ").split())
            assert found - {"__name__", "instance", "job", "le"} == wanted, name
        await promtool_accepts_the_metrics(running)


def _some(data: Any) -> bool:
    return bool(data["result"])
