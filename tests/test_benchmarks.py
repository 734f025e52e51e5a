"""What decides what a figure means, and the visitors against members without a proxy."""

import asyncio
import json
import math
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from xml.etree import ElementTree

import pytest
from aiohttp import ClientSession, DummyCookieJar, web
from click.testing import CliRunner
from yarl import URL

from benchmarks import (
    bench,
    chart,
    counted,
    drills,
    instructions,
    members,
    memos,
    proxies,
    quick,
    report,
    scenarios,
    visitors,
    wrk,
)
from benchmarks.__main__ import main
from benchmarks.histogram import Histogram
from benchmarks.load import Plan, Run, carry_out, markdown, read_mix, require_allowed, result, save
from benchmarks.peers import MEMBERS, PEERS, PLAIN, BenchmarkError, names_of
from benchmarks.scenarios import SCENARIOS, STAGES, Sample


def sample(peer: str, number: int, figure: float, scenario: str = "warm-1k") -> Sample:
    return Sample(scenario, peer, number, 1000, 1.0, figure, user_us=figure / 2, kernel_us=figure / 2)


# What is measured


def test_every_scenario_has_a_stage_and_every_stage_a_scenario() -> None:
    assert {scenario.stage for scenario in SCENARIOS.values()} == set(STAGES)


def test_every_need_of_a_scenario_is_met_by_the_edge_and_its_references() -> None:
    for scenario in SCENARIOS.values():
        for name in (*report.EDGES, *report.REFERENCES):
            assert scenario.needs <= PEERS[name].can


def test_every_target_and_every_quick_scenario_is_measured() -> None:
    assert {target.scenario for target in report.TARGETS} <= set(SCENARIOS)
    assert set(quick.SCENARIOS) <= set(SCENARIOS)


def test_first_members_have_the_names_that_others_know() -> None:
    assert names_of(range(300))[:3] == list(MEMBERS)


@pytest.mark.parametrize("name", PEERS)
def test_command_and_config_are_written_into_the_folder(name: str, tmp_path: Path) -> None:
    command = PEERS[name].command(tmp_path, 18000, [18001, 18002, 18003], PLAIN)
    written = "".join(path.read_text() for path in tmp_path.iterdir()) + " ".join(command)
    assert "18000" in written
    assert "18001" in written


def test_quick_run_has_the_slow_proxies_in_the_first_scenario_only() -> None:
    settings = bench.Settings(tuple(PEERS), 1, 1, 64, 18000, 0, 1, quick=True)
    everybody = list(PEERS.values())
    first = bench.entrants(settings, STAGES["plain"], SCENARIOS["warm-1k"], everybody)
    second = bench.entrants(settings, STAGES["plain"], SCENARIOS["cold-1k"], everybody)
    assert {peer.name for peer, _ in first} == set(PEERS)
    assert {peer.name for peer, _ in second} == scenarios.FIRST
    twice = bench.entrants(settings, STAGES["workers"], SCENARIOS["workers-2"], everybody)
    assert {peer.name for peer, variant in twice if variant.suffix} == {"fedproxy"}


# Figures


def test_ratio_is_the_median_of_the_pairs_of_each_round() -> None:
    samples = [
        *(sample("nginx", number, figure) for number, figure in enumerate((10, 20, 40), start=1)),
        *(sample("fedproxy", number, figure) for number, figure in enumerate((10, 30, 80), start=1)),
    ]
    assert report.ratio(samples, "warm-1k", "fedproxy", "nginx") == 1.5


def test_ratio_of_what_was_not_measured_in_the_same_round_is_none() -> None:
    samples = [sample("nginx", 1, 10), sample("fedproxy", 2, 10)]
    assert report.ratio(samples, "warm-1k", "fedproxy", "nginx") is None
    assert report.verdicts(samples) == []


def test_targets_are_judged_by_ratio_or_by_figure() -> None:
    samples = [
        sample("nginx", 1, 10),
        sample("fedproxy", 1, 11),
        sample("fedproxy", 1, 400, "start"),
    ]
    found = {verdict.target.scenario: (verdict.value, verdict.held) for verdict in report.verdicts(samples)}
    assert found == {"warm-1k": (1.1, False), "start": (400, True)}


def test_results_are_kept_as_json_page_and_chart(tmp_path: Path) -> None:
    samples = [sample("nginx", 1, 10), sample("fedproxy", 1, 11), sample(scenarios.DIRECT, 1, 0)]
    counts = {"warm-1k": {"proxy.runtime.lines": (999, 1)}}
    found = report.result(samples, {"nginx": "1.22"}, {"rounds": 1}, ["a note"], (0.1, 0.2, 0.3), counts)
    kept = report.save(found, tmp_path, "kept")
    assert [path.name for path in kept] == ["kept.json", "kept.md", "kept.svg"]
    assert len(json.loads(kept[0].read_text())["runs"]) == 3
    assert "| fedproxy | 11.0 |" in kept[1].read_text()
    assert "a note" in kept[1].read_text()
    assert "| `proxy.runtime.lines` | 1,000 | 99.9% |" in kept[1].read_text()
    assert json.loads(kept[0].read_text())["memos"]["warm-1k"]["proxy.runtime.lines"]["hit_rate"] == 0.999
    assert ElementTree.parse(kept[2]).getroot().tag.endswith("svg")


def test_charts_are_well_formed_whatever_they_show() -> None:
    for drawing in (
        chart.panels([]),
        chart.panels([chart.Panel("a < b", "µs", [chart.Bar("<x>", 0.0), chart.Bar("y", -1.0, mine=True)])]),
        chart.lines("a & b", "ms", []),
        chart.lines("a & b", "ms", [chart.Line("p99", [1.0, 2.0])]),
    ):
        ElementTree.fromstring(drawing)


def test_release_is_compared_with_the_newest_before_it(tmp_path: Path) -> None:
    for version, value in (("0.2.0", 1.0), ("0.9.0", 2.0), ("0.10.0", 3.0)):
        (tmp_path / f"{version}.json").write_text(json.dumps({"ratios": {"warm-1k": {"nginx": value}}}))
    (tmp_path / "other.json").write_text("{}")
    assert quick.last(tmp_path, "0.10.0") == ("0.9.0", {"warm-1k": {"nginx": 2.0}})
    assert quick.last(tmp_path, "0.2.0") == ("0.2.0", {"warm-1k": {"nginx": 1.0}})
    assert quick.last(tmp_path / "none", "0.2.0") is None


def test_what_is_recorded_is_what_the_next_release_is_compared_with(tmp_path: Path) -> None:
    samples = [sample("nginx", 1, 10), sample("fedproxy", 1, 11)]
    found = report.result(samples, {"fedproxy": "0.1.0"}, {}, [], (0.0, 0.0, 0.0))
    ratios = quick.ratios(found["summary"])
    assert ratios == {"warm-1k": {"nginx": 1.1}}
    assert quick.save(tmp_path / "results", found, ratios).name == "0.1.0.json"
    assert quick.last(tmp_path / "results", "0.2.0") == ("0.1.0", ratios)


def test_only_a_ratio_that_grew_by_more_than_noise_is_named() -> None:
    before = {"warm-1k": {"nginx": 1.0, "haproxy": 1.0}}
    now = {"warm-1k": {"nginx": 1.2, "haproxy": 1.3}, "new": {"nginx": 9.0}}
    assert quick.grown(now, before) == ["warm-1k against haproxy"]


def test_instructions_of_a_case_are_those_between_its_marks_without_the_loop() -> None:
    times = counted.TIMES
    totals = [7, 10 * times, 8, 110 * times, 9, 60 * times]
    assert instructions.read(["nothing", "a", "b"], totals) == {"a": 100, "b": 50}


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind (Debian package valgrind)")
@pytest.mark.timeout(900)  # some 20 s of the processor's time, of which it may get a small part
def test_no_case_takes_more_instructions_than_its_bound() -> None:
    assert instructions.over(instructions.counts(), instructions.bounds_of(instructions.VERSION)) == []


def test_version_of_python_without_bounds_has_those_of_the_last_one_and_more_room() -> None:
    assert instructions.bounds_of("9.99")["request line"] > instructions.bounds_of("3.11")["request line"]


def test_case_over_its_bound_or_without_one_is_named() -> None:
    assert instructions.over({"a": 10, "b": 11, "c": 1}, {"a": 10, "b": 10}) == ["b", "c"]


def test_last_line_of_wrk_is_read_and_its_absence_is_an_error() -> None:
    found = wrk.read("Running\nRESULT 100 2000000 102400 80 900 1 2\n")
    assert (found.requests, found.seconds, found.received) == (100, 2.0, 102400)
    assert (found.p50_us, found.p99_us, found.not_ok, found.broken) == (80, 900, 1, 2)
    with pytest.raises(BenchmarkError, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1")


def test_percentiles_of_a_histogram_are_right_to_one_part_in_a_hundred() -> None:
    histogram = Histogram()
    assert histogram.percentile(0.5) == 0
    for value in range(1, 100_001):
        histogram.add(float(value))
    assert histogram.percentile(0.5) == pytest.approx(50_000, rel=0.011)
    assert histogram.percentile(0.99) == pytest.approx(99_000, rel=0.011)
    assert histogram.percentile(1.0) == histogram.most == 100_000


def test_histogram_is_bounded_at_both_ends() -> None:
    histogram = Histogram()
    for value in (-5.0, 0.0, 1e30):
        histogram.add(value)
    assert histogram.percentile(0.5) <= 1.01
    assert histogram.most == 1e10


def test_percentile_of_nothing_is_zero() -> None:
    assert visitors.percentile([], 0.99) == 0
    assert visitors.percentile([3, 1, 2], 0.99) == 3


# Load


def plan(url: str = "http://127.0.0.1:1", **other: object) -> Plan:
    given: dict[str, object] = {
        "url": URL(url),
        "rate": 100.0,
        "duration": 0.2,
        "ramp": 0.1,
        "mix": {"page": 2.0, "asset": 1.0, "launch": 1.0, "socket": 1.0},
        "pages": ("/1k",),
        "assets": ("/1k",),
        "launches": ("gh/org/repo/HEAD",),
        "sockets": ("/socket",),
        "hold": 0.1,
        "patience": 20.0,
        "most_open": 1000,
        "insecure": False,
        "seed": 1,
    } | other
    return Plan(**given)  # type: ignore[arg-type]


def test_visits_are_due_ever_faster_in_the_ramp_and_evenly_after_it() -> None:
    ramped = plan(rate=10.0, ramp=2.0, duration=1.0)
    assert ramped.visits == 20
    assert ramped.due(0) == 0
    assert ramped.due(10) == 2.0
    assert ramped.due(15) == pytest.approx(2.5)
    gaps = [ramped.due(number + 1) - ramped.due(number) for number in range(9)]
    assert gaps == sorted(gaps, reverse=True)
    assert plan(rate=10.0, ramp=0.0).due(3) == pytest.approx(0.3)


def test_only_loopback_may_be_loaded_without_a_word() -> None:
    require_allowed(URL("http://127.0.0.1:8000/"), None)
    require_allowed(URL("http://[::1]:8000/"), None)
    with pytest.raises(BenchmarkError, match=r"--i-may-load 192\.0\.2\.1"):
        require_allowed(URL("http://192.0.2.1/"), None)
    with pytest.raises(BenchmarkError, match=r"--i-may-load 192\.0\.2\.1"):
        require_allowed(URL("http://192.0.2.1/"), "192.0.2.2")
    require_allowed(URL("http://192.0.2.1/"), "192.0.2.1")


def test_command_refuses_another_machine_before_any_connection() -> None:
    outcome = CliRunner().invoke(main, ["load", "http://192.0.2.1/"])
    assert outcome.exit_code == 1
    assert "--i-may-load 192.0.2.1" in outcome.output


@pytest.mark.parametrize("text", ["page", "page=x", "cake=1", "page=-1", "page=nan", "page=0"])
def test_mix_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError):
        read_mix(text)


def test_mix_is_read_as_weights() -> None:
    assert read_mix("page=6, launch=0.5,asset=0") == {"page": 6.0, "launch": 0.5}


@pytest.fixture
async def edge() -> AsyncIterator[str]:
    """Something that answers as an edge with a member would."""

    async def page(_request: web.Request) -> web.Response:
        response = web.Response(text="x" * 1024)
        response.set_cookie("fedproxy_member", "m0")
        return response

    async def build(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b':keepalive\n\ndata: {"phase": "waiting"}\n\ndata: nonsense\n\n')
        await response.write(b'data: {"phase": "ready"}\n\n')
        return response

    async def echo(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            await websocket.send_bytes(message.data)
        return websocket

    application = web.Application()
    application.router.add_get("/1k", page)
    application.router.add_get("/build/{spec:.*}", build)
    application.router.add_get("/socket", echo)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_load_of_every_kind_is_reported(edge: str, tmp_path: Path) -> None:
    run = Run(plan(edge))
    await carry_out(run.plan, run, lambda: None, every=0.05)
    found = result(run)
    assert run.arrived == run.plan.visits
    assert sum(each["visits"] for kind, each in found["kinds"].items() if " " not in kind) == run.arrived
    assert all(each["outcomes"] in ({}, {"ok": each["visits"]}) for each in found["kinds"].values())
    assert set(found["kinds"]) == {"page", "asset", "launch", "socket", "launch ready", "socket ping"}
    kept = save(found, tmp_path)
    assert {path.suffix for path in kept} == {".json", ".md", ".svg"}
    assert "launch ready" in markdown(found, "name")


async def test_load_of_a_closed_port_counts_every_visit_as_failed() -> None:
    # Held, so that nothing else begins to listen there meanwhile.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        run = Run(plan(f"http://127.0.0.1:{closed.getsockname()[1]}", mix={"page": 1.0}))
        await carry_out(run.plan, run, lambda: None, every=0.05)
    assert run.tallies["page"].failed == run.arrived == run.plan.visits


async def test_visits_beyond_the_most_open_are_said_not_to_be_made(edge: str) -> None:
    run = Run(plan(edge, mix={"socket": 1.0}, most_open=1))
    await carry_out(run.plan, run, lambda: None, every=0.05)
    assert run.shed > 0
    assert any("were not made" in warning for warning in run.warnings())


# Members and visitors


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
@pytest.mark.parametrize("masked", [False, True])
def test_length_of_a_frame_is_told_from_its_head(size: int, masked: bool) -> None:
    frame = members.frame(size, masked=masked)
    assert members.frame_length(frame) == len(frame)
    assert members.frame_length(frame[:1]) == 0


@pytest.fixture
async def member() -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(members.Connection, "127.0.0.1", 0)
    telling = asyncio.create_task(members.tell())
    yield server.sockets[0].getsockname()[1]
    telling.cancel()
    server.close()
    await server.wait_closed()


async def test_events_are_counted_with_their_delay(member: int) -> None:
    seen = await visitors.events(member, ["m0"], 5, 0.2)
    assert seen.count > 0
    assert len(seen.delays) == seen.count
    assert seen.broken == 0


@pytest.mark.parametrize("size", [64, 65536])
async def test_messages_come_back(member: int, size: int) -> None:
    seen = await visitors.echo(member, ["m0"], 2, size, 0.2)
    assert seen.count > 0
    assert seen.broken == 0


@pytest.mark.parametrize("what", [visitors.Person.work, visitors.Person.launch])
async def test_people_do_their_steps_over_and_over(
    member: int, what: Callable[[visitors.Person], Coroutine[None, None, None]]
) -> None:
    seen = await visitors.people(member, MEMBERS, 2, what, 0.3)
    assert seen.count > 0
    assert seen.delays
    assert seen.broken == 0


async def test_person_who_gets_an_error_ends_the_run(unused_tcp_port: int) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(refuse, "127.0.0.1", unused_tcp_port):
        with pytest.raises(BenchmarkError, match="503"):
            await visitors.people(unused_tcp_port, MEMBERS, 1, visitors.Person.launch, 0.1)


async def test_idle_connections_are_held_while_they_are_measured(member: int) -> None:
    marks: list[str] = []
    seen = await visitors.idle(member, ["m0"], 5, lambda: marks.append("begin"), lambda: marks.append("end"))
    assert marks == ["begin", "end"]
    assert (seen.count, seen.broken) == (5, 0)


async def test_open_loop_makes_every_request_that_is_due(member: int) -> None:
    seen = await asyncio.to_thread(visitors.paced, member, ["m0"], 4, 200.0, 0.25, 1024)
    assert (seen.count, seen.broken) == (50, 0)


async def test_plain_proxy_passes_requests_and_websockets_on(edge: str) -> None:
    async with ClientSession(cookie_jar=DummyCookieJar()) as upstream, ClientSession() as session:
        server = web.Server(proxies.AiohttpProxy({"m0": edge}, upstream).handle)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(server, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with session.get(f"{url}/1k") as answer:
            assert len(await answer.read()) == 1024
            assert "fedproxy_member" in answer.cookies
        async with session.ws_connect(f"{url}/socket") as websocket:
            await websocket.send_bytes(b"hello")
            assert await websocket.receive_bytes() == b"hello"
        listener.close()
        await server.shutdown(1)


# Drills


def test_drill_names_each_figure_that_is_out_of_bounds() -> None:
    checks = [drills.Check("cut", 1), drills.Check("dropped", 3, 1, math.inf), drills.Check("s", 2.5, most=2)]
    mishap = drills.Mishap.STOPPED
    report = drills.Report(mishap, Counter(), worst=0.5, bound=1.0, checks=checks, unfinished="")
    assert report.faults() == ["out of bounds: cut 1 (at most 0)", "out of bounds: s 2.5 (at most 2)"]
    assert str(checks[1]) == "dropped 3 (at least 1)"


def test_drill_that_was_slow_or_did_not_finish_is_a_fault() -> None:
    mishap = drills.Mishap.STOPPED
    report = drills.Report(mishap, Counter(), worst=2.0, bound=1.0, checks=[], unfinished="waited")
    assert [each.partition(":")[0] for each in report.faults()] == ["out of bounds", "not finished"]


def test_every_drill_has_a_name_of_its_own() -> None:
    names = [each.value for each in (*drills.Fault, *drills.Mishap)]
    assert len(set(names)) == len(names)


def test_memo_that_counts_knows_what_it_had_to_read_and_has_the_name_it_is_kept_under() -> None:
    lengths = memos.CountedMemo(len, entries=2)
    before = memos.current()
    known = lengths.get
    assert [known(b"a"), lengths[b"a"], known(b"a"), lengths[b"a"]] == [None, 1, 1, 1]
    # The third turns the generations, and what is found in the old one was known.
    assert [lengths[b"bb"], lengths[b"ccc"], lengths[b"a"]] == [2, 3, 1]
    assert memos.between(before, memos.current()) == {f"{__name__}.lengths": (3, 3)}


def test_table_that_counts_is_asked_for_its_young_generation_first() -> None:
    table = memos.CountedGenerations()
    before = memos.current()

    def ask(key: bytes) -> object:
        found = table.young.get(key)
        return table.take(key) if found is None else found

    assert ask(b"a") is None
    table.put(b"a", 1)
    assert ask(b"a") == 1
    table.turn()
    assert ask(b"a") == 1
    assert ask(b"a") is None
    assert memos.between(before, memos.current()) == {f"{__name__}.table": (2, 2)}


def test_counts_of_a_run_are_read_as_they_were_written() -> None:
    counts = {"wire.h1.client._heads": (5, 1)}
    assert memos.read([json.dumps(counts) + "\n"]) == [counts]
