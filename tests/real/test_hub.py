"""Whole sessions of real programs behind the edge: JupyterHub, its proxy, Jupyter Server, kernels.

No request may fail and no session may be lost, whatever happens to the members' availability and to the
edge. Only where connections are cut (a worker is killed, the edge is restarted) a visitor connects anew, as
browsers do by themselves: a request that may be repeated is repeated once, a WebSocket is opened again.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from fedproxy.control.candidate import Candidate, CheckOutcome, examine
from tests.rig.browser import Launched, Notebook, Visitor, at_work, terminal_says, turned, visiting
from tests.rig.federated import Edge, federated
from tests.rig.members import BOOK, PASSWORD, PUBLIC, Member, members, needed
from tests.rig.running import patience

pytestmark = [
    needed(),
    pytest.mark.no_cover,  # the edge is a process of its own
    pytest.mark.asyncio(loop_scope="module"),
]

SPEC = "gh/binder-examples/requirements/HEAD"
UPLOAD = 4_000_000
OTHER = {"one": "two", "two": "one"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Member]]:
    with members(tmp_path_factory.mktemp("members"), "one", "two") as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(both: dict[str, Member]) -> dict[str, Launched]:
    """A server that runs at each member; no edge has seen its launch."""

    async def launch(member: Member) -> Launched:
        async with visiting(member.address) as visitor:
            return Launched.of(await visitor.launch(SPEC))

    return dict(zip(both, await asyncio.gather(*map(launch, both.values())), strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(both: dict[str, Member], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    async with federated(tmp_path_factory.mktemp("edge"), both) as edge:
        yield edge


@pytest_asyncio.fixture(loop_scope="module")
async def edge(running: Edge) -> AsyncIterator[Edge]:
    """The one edge of all tests: each finds it and its members as they were at the start."""
    yield running
    for name, member in running.members.items():
        member.binder.full = member.binder.sick = False
        member.binder.signed_in = None
        await running.operate(name, state="ready", weight=1)
        await running.shows(name, healthy=True)


async def enter(visitor: Visitor, launched: Launched) -> None:
    """Goes to a server as the page of a launch does at its end: from then on a cookie lets the visitor in."""
    await visitor.visit(f"{launched.base}?token={launched.token}")


async def upload(visitor: Visitor, base: str) -> None:
    """Some megabytes through the contents API, in one piece, and back."""
    data = base64.b64encode(random.Random(4).randbytes(UPLOAD)).decode()
    content = {"type": "file", "format": "base64", "content": data}
    await visitor.ask("PUT", f"{base}api/contents/upload.bin", content=content, expect=(200, 201))
    shown = await visitor.ask("GET", f"{base}api/contents/upload.bin?format=base64")
    assert shown.json["content"].replace("\n", "") == data


async def work(visitor: Visitor, base: str) -> None:
    """All that a session is used for, once."""
    async with Notebook.opened(visitor, base):
        await terminal_says(visitor, base, "echo $((6*7))", "42")
        await upload(visitor, base)


async def log_in(visitor: Visitor, name: str) -> None:
    form = await visitor.visit("/hub/login")
    token = visitor.cookie("_xsrf", "/hub/")
    assert token and token in form.text
    typed = {"username": name, "password": PASSWORD, "_xsrf": token}
    await visitor.visit("/hub/login?next=%2Fhub%2Fhome", form=typed)


async def log_in_and_spawn(visitor: Visitor, name: str) -> str:
    """Where the server is that somebody who logged in has started, and may enter."""
    await log_in(visitor, name)
    answer = await visitor.visit("/hub/spawn")
    assert answer.path.startswith(f"/hub/spawn-pending/{name}")
    token = visitor.cookie("_xsrf", "/hub/")
    progress = [e async for e in visitor.events(f"/hub/api/users/{name}/server/progress?_xsrf={token}")]
    base = f"/user/{name}/"
    assert progress[-1]["ready"] and progress[-1]["url"] == base, progress
    # A page that asks who comes: to the hub, which knows it, and back with a code for the server.
    page = await visitor.visit(f"{base}api/spec.yaml")
    assert page.path == f"{base}api/spec.yaml"
    assert visitor.cookie(f"jupyterhub-user-{name}", base)
    return base


async def launched_at(edge: Edge, name: str, visitor: Visitor) -> Launched:
    """A launch while the other member takes nobody new."""
    await edge.operate(OTHER[name], weight=0)
    launched = Launched.of(await visitor.launch(SPEC))
    await edge.operate(OTHER[name], weight=1)
    return launched


# What visitors come for


async def test_login_and_a_server_of_one_s_own(edge: Edge) -> None:
    async with visiting(edge.address) as visitor, patience():
        base = await log_in_and_spawn(visitor, "ada")
        home = visitor.member
        await work(visitor, base)
        await visitor.ask("DELETE", "/hub/api/users/ada/server", expect=(202, 204))
        # What is asked of a server that has stopped is answered by the hub.
        while (await visitor.ask("GET", f"{base}api/kernels", expect=(200, 424, 503))).status != 424:
            await asyncio.sleep(0.05)
        assert visitor.member == home


async def test_launch_in_a_browser_and_all_that_a_session_is_used_for(edge: Edge) -> None:
    async with visiting(edge.address) as visitor, patience():
        for member in edge.members.values():
            member.binder.origins.clear()
        launched = await visitor.launched(SPEC)
        origins = [origin for member in edge.members.values() for origin in member.binder.origins]
        assert origins == ["hub.test", "hub.test"]
        await enter(visitor, launched)
        await work(visitor, launched.base)
        # The server compares whose page asks with the Host that the visitor typed.
        visitor.origin = "https://elsewhere.test"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await visitor.socket(f"{launched.base}api/events/subscribe")


async def test_probe_launches_a_server_uses_it_by_websocket_and_stops_it(both: dict[str, Member]) -> None:
    member, reference = both["one"], both["two"].url
    # No edge is between.
    member.binder.public = member.url
    try:
        async with patience():
            candidate = Candidate(member.url, reference=reference, origin=PUBLIC, launches=1, timeout=60)
            report = await examine(candidate)
    finally:
        member.binder.public = PUBLIC
    assert report.fit, report
    checks = {check.name: check for check in report.checks}
    for name in "versions", "build token", "unbuffered", "trial launches", "websocket", "still there":
        assert checks[name].outcome is CheckOutcome.OK, checks[name]
    assert checks["websocket"].values["with"] == "a kernel"
    # Its servers are for one other site.
    assert checks["session"].seen == f"127.0.0.1: Access-Control-Allow-Origin: {BOOK}"
    assert [(trial.end, trial.stopped) for trial in report.trials] == [("ready", True)]


async def test_launch_from_a_book_without_cookies(edge: Edge) -> None:
    async with visiting(edge.address, cookies=False, origin=BOOK) as visitor, patience():
        launched = await launched_at(edge, "two", visitor)
        # Nobody is sent there by chance.
        await edge.operate("two", weight=0)
        await visitor.ask("OPTIONS", f"{launched.base}api/kernels", expect=(200, 204))
        visitor.key = launched.token
        await work(visitor, launched.base)
        visitor.key = ""
        for _ in range(20):
            # Each on a connection of its own, so at any worker.
            async with visiting(edge.address, cookies=False, origin=BOOK) as again:
                await again.ask("GET", f"{launched.base}api/kernels?token={launched.token}")


async def test_tabs_at_two_members_are_both_usable(edge: Edge) -> None:
    async with visiting(edge.address) as visitor, patience():
        first = await visitor.launched(SPEC)
        home = visitor.member
        assert home is not None
        await enter(visitor, first)
        async with Notebook.opened(visitor, first.base) as here:
            edge.members[home].binder.full = True
            async with at_work(here):
                second = await visitor.launched(SPEC)
                assert visitor.member == OTHER[home]
                await enter(visitor, second)
                async with Notebook.opened(visitor, second.base) as there, at_work(there):
                    await turned(here, there)
            # Neither takes the cookie back to where it is.
            assert visitor.member == OTHER[home]


async def test_servers_of_one_person_at_two_members_are_told_apart(edge: Edge) -> None:
    for member in edge.members.values():
        member.binder.signed_in = "grace"
    async with AsyncExitStack() as stack, patience():
        notebooks = []
        for name in edge.members:
            visitor = await stack.enter_async_context(visiting(edge.address, cookies=False))
            launched = await launched_at(edge, name, visitor)
            assert launched.base.startswith("/user/grace/")
            visitor.key = launched.token
            notebooks.append(await stack.enter_async_context(Notebook.opened(visitor, launched.base)))
        async with at_work(*notebooks):
            await turned(*notebooks, count=5)


# What happens while sessions run


@asynccontextmanager
async def restarted_hub(edge: Edge) -> AsyncIterator[None]:
    """The hub goes and comes again; its proxy and the servers stay."""
    member = edge.members["one"]
    await asyncio.to_thread(member.stop_hub)
    await edge.shows("one", healthy=False)
    yield
    await asyncio.to_thread(member.start_hub)
    await edge.shows("one", healthy=True)


@asynccontextmanager
async def full(edge: Edge) -> AsyncIterator[None]:
    edge.members["one"].binder.full = True
    await edge.shows("one", healthy=False)
    yield
    edge.members["one"].binder.full = False
    await edge.shows("one", healthy=True)


@asynccontextmanager
async def sick(edge: Edge) -> AsyncIterator[None]:
    edge.members["one"].binder.sick = True
    await edge.shows("one", healthy=False)
    yield
    edge.members["one"].binder.sick = False
    await edge.shows("one", healthy=True)


@asynccontextmanager
async def reloaded(edge: Edge) -> AsyncIterator[None]:
    edge.write({"one": {"max_launches": 5}}, limits={"member_requests": 500})
    await edge.reload()
    yield
    edge.write()
    await edge.reload()


@asynccontextmanager
async def drained(edge: Edge) -> AsyncIterator[None]:
    await edge.operate("one", state="drain")
    yield
    await edge.operate("one", state="ready")


@asynccontextmanager
async def weightless(edge: Edge) -> AsyncIterator[None]:
    await edge.operate("one", weight=0)
    yield
    await edge.operate("one", weight=1)


@asynccontextmanager
async def killed_worker(edge: Edge) -> AsyncIterator[None]:
    await edge.kill_worker()
    yield


@asynccontextmanager
async def restarted_edge(edge: Edge) -> AsyncIterator[None]:
    await edge.stop()
    await edge.start()
    yield


Happening = Callable[[Edge], AbstractAsyncContextManager[None]]
AVAILABILITY: list[Happening] = [restarted_hub, full, sick, reloaded, drained, weightless]
CUTTING: list[Happening] = [killed_worker, restarted_edge]


async def go_on(edge: Edge, happens: Happening, *notebooks: Notebook) -> None:
    """Notebooks at work go on while it happens, and afterwards."""
    for notebook in notebooks:
        notebook.visitor.cuts = happens in CUTTING
        notebook.meanwhile = happens.__name__
    async with happens(edge):
        await turned(*notebooks)
    await turned(*notebooks)


@asynccontextmanager
async def notebooks_of(edge: Edge, servers: dict[str, Launched]) -> AsyncIterator[list[Notebook]]:
    """One at each member, at work, of a visitor whom only a cookie leads there."""
    async with AsyncExitStack() as stack, patience():
        notebooks = []
        for name, launched in servers.items():
            visitor = await stack.enter_async_context(visiting(edge.address))
            visitor.member = name
            await enter(visitor, launched)
            notebooks.append(await stack.enter_async_context(Notebook.opened(visitor, launched.base)))
        async with at_work(*notebooks):
            yield notebooks
        assert [notebook.visitor.member for notebook in notebooks] == list(servers)


async def test_sessions_go_on_whatever_their_member_is_said_to_be(
    edge: Edge, servers: dict[str, Launched]
) -> None:
    async with notebooks_of(edge, servers) as notebooks:
        for happens in AVAILABILITY:
            await go_on(edge, happens, *notebooks)


@pytest.mark.parametrize("happens", CUTTING, ids=lambda happens: happens.__name__)
async def test_sessions_go_on_after_their_connections_were_cut(
    edge: Edge, servers: dict[str, Launched], happens: Happening
) -> None:
    async with notebooks_of(edge, servers) as notebooks:
        await go_on(edge, happens, *notebooks)


async def test_maintenance_is_said_to_whose_session_it_stops_and_loses_none(
    edge: Edge, servers: dict[str, Launched]
) -> None:
    async with visiting(edge.address) as visitor, patience():
        visitor.member, base = "one", servers["one"].base
        await enter(visitor, servers["one"])
        await edge.operate("one", state="maint")
        assert "one" in (await visitor.visit(base, expect=503)).text
        await visitor.ask("GET", f"{base}api/kernels", expect=503)
        await edge.operate("one", state="ready")
        await visitor.ask("GET", f"{base}api/kernels")
        assert visitor.member == "one"


@pytest.mark.timeout(180)
async def test_an_hour_in_fast_motion(edge: Edge, servers: dict[str, Launched]) -> None:
    async with AsyncExitStack() as stack, asyncio.timeout(150):

        async def visitor(**settings: Any) -> Visitor:
            return await stack.enter_async_context(visiting(edge.address, **settings))

        browser, owner, elsewhere = [await visitor() for _ in range(3)]
        book = await visitor(cookies=False, origin=BOOK)
        for each in (browser, owner):
            each.member = "one"
        elsewhere.member = "two"
        launched = await browser.launched(SPEC)
        await enter(browser, launched)
        await enter(elsewhere, servers["two"])
        embedded = await launched_at(edge, "one", book)
        book.key = embedded.token
        places = {
            browser: launched.base,
            elsewhere: servers["two"].base,
            owner: await log_in_and_spawn(owner, "emmy"),
        }
        notebooks = [
            await stack.enter_async_context(Notebook.opened(who, base)) for who, base in places.items()
        ]
        # Without a cookie, only those who know of the launch can tell where it led.
        notebooks.append(await stack.enter_async_context(Notebook.opened(book, embedded.base)))
        async with at_work(*notebooks):
            for happens in (*AVAILABILITY, *CUTTING):
                await go_on(edge, happens, *notebooks)
                # Whoever logged in is known still, where it was.
                home = await owner.visit("/hub/home")
                assert home.path == "/hub/home"
        assert [who.member for who in places] == ["one", "two", "one"]
