"""What decides what the figures of a fleet under load mean; no host, no edge, no Redis."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.fleet.crowd import read_head
from benchmarks.fleet.member import count_probes, read_streams
from benchmarks.fleet.place import LoopbackSite
from benchmarks.fleet.record import (
    NOTICE,
    CutOff,
    Errand,
    Faced,
    FleetPhase,
    LostVisit,
    MovedVisit,
    PhaseFigures,
    StreamCount,
    count_open,
    cut_off,
    faults,
    figures,
    peak,
)
from benchmarks.fleet.run import FleetResult
from benchmarks.fleet.scale import StoreUse, probes_a_minute
from benchmarks.fleet.show import delays, launches, loads, show, visits
from benchmarks.peers import BenchmarkError

CUT = CutOff("edge2", "m2", 100.0, 120.0)


def moved(at: float, edge: str = "edge2", home: str = "m2", errand: Errand = Errand.PAGE) -> MovedVisit:
    return MovedVisit(at, at + 0.01, edge, home, "m1", errand)


def lost(at: float, errand: Errand, edge: str = "edge2", home: str = "m2") -> LostVisit:
    return LostVisit(at, at + 0.01, edge, home, errand, "status 503")


def streams(*changes: tuple[float, int]) -> list[StreamCount]:
    return [StreamCount(at, "edge1", change) for at, change in changes]


def found(faced: Faced, *, most: int = 9, allowed: int = 0, **open_at: list[StreamCount]) -> PhaseFigures:
    return figures(
        FleetPhase("a phase", 90.0, 150.0, faced, {"store.away": 3}, allowed), [CUT], open_at, most
    )


# Moves


@pytest.mark.parametrize(
    ("visit", "excused"),
    [
        (moved(110.0), True),
        (moved(99.0), False),
        (moved(139.0), True),
        (moved(141.0), False),
        (moved(110.0, edge="edge1"), False),
        (moved(110.0, home="m3"), False),
    ],
)
def test_move_is_needed_while_that_member_is_cut_off_from_that_edge(visit: MovedVisit, excused: bool) -> None:
    assert cut_off(visit, [CUT]) is excused


def test_breaker_has_time_to_try_again_after_a_short_cut() -> None:
    short = CutOff("edge2", "m2", 100.0, 101.0)
    assert cut_off(moved(100.5 + NOTICE), [short])
    assert not cut_off(moved(101.5 + NOTICE), [short])


def test_moves_without_need_are_counted_apart_from_launches() -> None:
    faced = Faced(moved=[moved(95.0), moved(110.0), moved(95.0, errand=Errand.LAUNCH)])
    got = found(faced)
    assert (got.moves, got.launch_moves) == (1, 1)
    assert len(got.examples) == 1


def test_launch_that_moved_though_its_member_had_room_is_told() -> None:
    faced = Faced(moved=[moved(95.0, errand=Errand.LAUNCH), moved(97.0, errand=Errand.LAUNCH)])
    assert found(faced, most=2, m2=streams((91.0, 1), (96.0, 1))).roomy == 1


def test_launch_without_room_is_told_apart_if_some_member_had_room() -> None:
    got = found(Faced(full=[95.0, 97.0]), most=1, m1=streams((91.0, 1)), m2=streams((96.0, 1)))
    assert (got.full, got.unused) == (2, 1)


# Failures


def test_session_out_of_reach_is_no_failure_and_a_page_is() -> None:
    faced = Faced(lost=[lost(110.0, Errand.SESSION), lost(110.0, Errand.PAGE), lost(95.0, Errand.SESSION)])
    got = found(faced)
    assert (got.failed, got.cut_off) == (2, 1)
    assert got.why == {"page: status 503": 1, "session: status 503": 1}


# Streams


def test_peak_counts_what_was_open_before_and_nothing_that_came_later() -> None:
    changes = streams((80.0, 1), (85.0, 1), (95.0, 1), (96.0, -1), (97.0, -1), (200.0, 1), (201.0, 1))
    assert count_open(changes, 90.0) == 2
    assert peak(changes, 90.0, 150.0) == 3
    assert peak([], 90.0, 150.0) == 0


def test_stream_that_ends_when_another_begins_is_no_overshoot() -> None:
    assert peak(streams((95.0, 1), (96.0, 1), (96.0, -1)), 90.0, 150.0) == 1


def test_overshoot_is_that_of_the_fullest_member() -> None:
    got = found(Faced(), most=1, m1=streams((91.0, 1)), m2=streams((91.0, 1), (92.0, 1), (93.0, 1)))
    assert (got.peak, got.overshoot) == (3, 2)


def test_notes_of_a_member_are_read(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("1.0 10.0.0.1 1\n1.5 10.0.0.2 /health\n1.6 10.0.0.2 /versions\n2.0 10.0.0.1 -1\n")
    assert read_streams(notes, {"10.0.0.1": "edge1"}) == streams((1.0, 1), (2.0, -1))
    assert count_probes(notes, 1.0, 2.0) == {"10.0.0.2": 1}


# Targets and tables


def test_figure_that_misses_its_target_is_named() -> None:
    faced = Faced(lost=[lost(95.0, Errand.PAGE)], moved=[moved(95.0)], agreed=[0.1, 1.5])
    got = found(faced, most=1, m1=streams((91.0, 1), (92.0, 1)))
    assert [line.partition(": ")[2] for line in faults([got], 1.0)] == [
        "1 requests failed",
        "1 visitors were moved without need",
        "max_launches was exceeded by 1",
        "an operator's change took 1.50 s",
    ]
    assert faults([found(Faced(), most=1, allowed=1, m1=streams((91.0, 1), (92.0, 1)))], 1.0) == []


def test_tables_show_every_phase_and_the_result_is_json() -> None:
    faced = Faced(
        requests=10, launches=2, ready=1, full=[95.0], late=[2.5], lost=[lost(110.0, Errand.SESSION)]
    )
    faced.times.add(2000.0)
    phases = [found(faced), found(Faced(agreed=[0.1]))]
    assert visits(phases).row_count == launches(phases, 9).row_count == 2
    result = FleetResult("here", {"max_launches": 9}, phases, ["a note"])
    assert json.loads(json.dumps(result.as_json()))["phases"][0]["late_most"] == 2.5
    console = Console(width=120, record=True)
    show(result, console)
    text = console.export_text()
    assert "1 visits to sessions whose member was out of reach" in text
    assert "a note" in text


@pytest.mark.parametrize("failed", [True, False])
def test_use_of_a_store_is_shown_whatever_came_too_late(failed: bool) -> None:
    change, asked = (None, None) if failed else ((0.05, 0.1), (0.1, 2))
    use = StoreUse(
        3, 3, 0.0, {"evalsha": 3.0}, 9.0, 1.0, 1.0, 0.01, 0.01, 1 << 20, 0.1, change, asked, 0.0, 0
    )
    assert loads([use]).row_count == delays([use]).row_count == 1
    assert json.loads(json.dumps(use.as_json()))["calls"] == {"evalsha": 3.0}


def test_one_prober_asks_as_often_as_one_edge() -> None:
    assert probes_a_minute(3, 15.0, one_prober=True) == 4
    assert probes_a_minute(3, 15.0, one_prober=False) == 12


# Visitors and hosts


def test_head_of_an_answer_is_read() -> None:
    reply = read_head(
        b"HTTP/1.1 200 OK\r\nX-Toy-Member: m1\r\nSet-Cookie: fedproxy_member=m1!5!m2; Path=/\r\n\r\n"
    )
    assert (reply.status, reply.member, reply.cookie) == (200, "m1", "m1!5!m2")
    with pytest.raises(ValueError, match="invalid literal"):
        read_head(b"no head\r\n\r\n")


async def test_hosts_on_loopback_have_addresses_and_no_cables() -> None:
    site = LoopbackSite(["redis", "edge1"])
    assert (site.address("redis"), site.address("edge1")) == ("127.78.0.1", "127.78.0.2")
    assert site.command("edge1", ["true"]) == ["true"]
    with pytest.raises(BenchmarkError, match="redis cannot be cut off"):
        await site.pull("redis")
