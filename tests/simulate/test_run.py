from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.simulate import run as run_module
from benchmarks.simulate.measures import Fate, builds, ready_share, recovery, share_error, wait_mean
from benchmarks.simulate.policies import ORACLE, WITHOUT, offered
from benchmarks.simulate.run import Run
from benchmarks.simulate.scenario import Scenario
from benchmarks.simulate.visitors import HOUR, Visitors
from tests.simulate.worlds import simulate, world

ROOT = Path(__file__).parent.parent.parent
POLICIES = [name for name in offered() if WITHOUT not in name]


def ends(run: Run) -> dict[str, int]:
    return {str(fate): count for fate, count in run.tally.fates.items() if count}


def sick(kind: str, *, lasts: str = "2h", **more: Any) -> Scenario:
    return world(failures=[{"member": "big", "kind": kind, "at": "1h", "lasts": lasts, **more}])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_launch_ends_once_and_pods_fit_into_the_slots(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_TICK", 20)
    seen: list[list[str]] = []
    run: Run | None = None

    def look(_made: int) -> None:
        assert run is not None
        seen.append(run.faults())

    scenario = world(
        {"big": {"slots": 40, "weight": 2, "nodes": {"count": 3, "images": 5}}, "small": {"slots": 30}},
        visitors={"launches_per_hour": 600},
        failures=[
            {"member": "big", "kind": "flapping", "at": "1h", "lasts": "1h"},
            {"member": "small", "kind": "failing", "rate": 0.5, "at": "90m", "lasts": "1h"},
            {"member": "small", "kind": "failing", "rate": 0.5, "early": True, "at": "2h", "lasts": "1h"},
        ],
    )
    run = Run(scenario, Visitors(scenario, 1), offered()[policy], 1)
    run.run(3000, look)
    assert len(seen) > 100
    assert not any(seen)
    assert run.under_way == 0
    assert sum(run.tally.fates.values()) == run.tally.asked == 3000
    assert set(ends(run)) >= {"ready", "refused", "lost", "repository"}


def test_same_seed_gives_the_same_result_in_another_process(tmp_path: Path) -> None:
    scenario = tmp_path / "sick.yaml"
    said = (ROOT / "benchmarks" / "one-sick.yaml").read_text()
    scenario.write_text(said.replace("warm_up: 1d", "warm_up: 1h"))
    found = []
    for number in "1", "2":
        command = [
            sys.executable,
            "-m",
            "benchmarks.simulate",
            "one-sick.yaml",
            "--launches",
            "2000",
            "--seed",
            "5",
        ]
        environment = {**os.environ, "PYTHONHASHSEED": number}
        done = subprocess.run(
            [*command, "--json", str(tmp_path / number), "--policy", "expected-wait", "rendezvous-bounded"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=True,
        )
        found.append((done.stdout, (tmp_path / number).read_bytes()))
    assert found[0] == found[1]
    assert json.loads(found[0][1])["partial"] is False


def test_another_seed_gives_another_result() -> None:
    assert wait_mean(simulate(world(), seed=1).tally) != wait_mean(simulate(world(), seed=2).tally)


@pytest.mark.parametrize("images", ["separate", "replicated"])
def test_oracle_waits_for_less_builds_less_and_keeps_to_the_weights(images: str) -> None:
    scenario = world(images=images, warm_up="3h")
    oracle = simulate(scenario, ORACLE, 4000).tally
    assert (error := share_error(oracle)) is not None
    assert error < 1
    assert ready_share(oracle) == 1
    for policy in POLICIES:
        other = simulate(scenario, policy, 4000).tally
        assert (wait_mean(oracle) or 0) <= (wait_mean(other) or 0)
        assert builds(oracle) <= 1.02 * builds(other)


def test_oracle_serves_most_while_a_member_has_less_room_than_it_says() -> None:
    shares = {name: ready_share(simulate(sick("quota"), name).tally) for name in offered()}
    # A launch or two find no room after their build, by chance.
    assert all((share or 0) <= (shares[ORACLE] or 0) + 0.002 for share in shares.values())


def test_launch_that_a_member_has_no_room_for_moves() -> None:
    moving = simulate(sick("quota"), "random")
    staying = simulate(sick("quota"), "random" + WITHOUT)
    assert moving.tally.fates[Fate.REFUSED] == 0
    assert staying.tally.fates[Fate.REFUSED] > 200


def test_launch_that_fails_after_it_began_does_not_move() -> None:
    early = simulate(sick("failing", early=True, rate=0.5))
    late = simulate(sick("failing", rate=0.5))
    assert early.tally.fates[Fate.REFUSED] == 0
    assert late.tally.fates[Fate.FAILED] > 100


def test_share_follows_the_weights_with_random_only() -> None:
    random = share_error(simulate(world(), "random", 8000).tally)
    rendezvous = share_error(simulate(world(), "rendezvous", 8000).tally)
    assert random is not None
    assert rendezvous is not None
    assert random < min(1.5, rendezvous)


def test_replicated_images_are_built_once() -> None:
    separate = simulate(world(), "random").tally
    replicated = simulate(world(images="replicated", images_delay=0), "random").tally
    assert builds(replicated) < 0.8 * builds(separate)


def test_slow_member_keeps_visitors_waiting() -> None:
    well, slow = (
        wait_mean(simulate(world(), "random").tally),
        wait_mean(simulate(sick("slow"), "random").tally),
    )
    assert well is not None
    assert slow is not None
    assert slow > 1.5 * well


def test_crash_is_found_by_probes_and_what_is_under_way_is_lost() -> None:
    scenario = world(failures=[{"member": "big", "kind": "crash", "at": "1h", "lasts": "1h"}])
    run = Run(scenario, Visitors(scenario, 1), offered()["random" + WITHOUT], 1)
    (edge,) = run.edges
    told: list[tuple[float, bool]] = []
    big = edge.members[0]
    set_health = big.set_health

    def listen(healthy: bool, now: float, reasons: tuple[str, ...] = ()) -> None:
        told.append((now, healthy))
        set_health(healthy, now, reasons)

    big.set_health = listen  # type: ignore[method-assign]
    run.run(2000)
    (away, is_healthy), (back, is_back) = told
    assert (is_healthy, is_back) == (False, True)
    # The third probe after the crash, and the first one after the return, which may be 90 s away.
    assert HOUR + 30 < away <= HOUR + 45
    assert 2 * HOUR < back <= 2 * HOUR + 90
    assert run.tally.fates[Fate.LOST] > 0


def test_member_that_returns_has_its_share_back_after_a_while() -> None:
    scenario = world(failures=[{"member": "small", "kind": "crash", "at": "1h", "lasts": "30m"}])
    took = recovery(simulate(scenario, "random", 3000).tally)
    assert took is not None
    assert 0 < took < 600
    assert recovery(simulate(world(), "random").tally) is None


def test_full_member_gets_no_launches_after_the_next_probe() -> None:
    scenario = world(
        {"big": {"slots": 3000, "weight": 2}, "small": {"slots": 3000}},
        visitors={"launches_per_hour": 2000},
        failures=[{"member": "big", "kind": "full", "at": "30m", "lasts": "1h"}],
    )
    refused = [
        simulate(scenario, "random" + WITHOUT, seed=seed).tally.fates[Fate.REFUSED] for seed in range(1, 5)
    ]
    assert sum(refused) > 0
    assert max(refused) < 15


def test_visitor_stays_with_the_member_of_the_cookie() -> None:
    visitors = {"launches_per_hour": 200, "bots": 0, "embeds": 0, "again": 0.5}
    kept = simulate(world(visitors={**visitors, "cookie": 1}), "random").tally
    lost = simulate(world(visitors={**visitors, "cookie": 0}), "random").tally
    assert kept.moved == 0
    assert lost.moved > 200


def test_warm_up_is_not_measured() -> None:
    cold, warm = simulate(world(), launches=1000).tally, simulate(world(warm_up="6h"), launches=1000).tally
    assert warm.asked == cold.asked == sum(warm.fates.values()) == 1000
    assert builds(warm) < 0.8 * builds(cold)


def test_edges_decide_by_themselves_and_probe_the_same() -> None:
    run = simulate(sick("crash").model_copy(update={"edge": world(edge={"count": 5}).edge}))
    assert len(run.edges) == 5
    assert all(each.rolled for each in run.edges)
    assert not run.faults()


def test_own_community_takes_room() -> None:
    members = {"a": {"slots": 40, "own_pods": 25}}
    visitors = {"launches_per_hour": 60, "hours": [0.5] * 12 + [1] * 12}
    run = simulate(world(members, visitors=visitors), launches=1500)
    (hub,) = run.hubs
    assert 0 < hub.own <= 25
    assert (
        run.tally.fates[Fate.REFUSED]
        > simulate(world({"a": {"slots": 40}}, visitors=visitors), launches=1500).tally.fates[Fate.REFUSED]
    )


# Any scenario


def _spreads() -> st.SearchStrategy[dict[str, float]]:
    pairs = st.tuples(st.floats(0.01, 5000), st.floats(1, 20))
    return pairs.map(lambda pair: {"median": round(pair[0], 3), "p95": round(pair[0] * pair[1], 3)})


def _members() -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.fixed_dictionaries(
            {"slots": st.integers(5, 40), "weight": st.sampled_from([0.5, 1, 7])},
            optional={
                "own_pods": st.integers(0, 30),
                "launch": _spreads(),
                "pull": _spreads(),
                "nodes": st.fixed_dictionaries({"count": st.integers(1, 6), "images": st.integers(1, 4)}),
                "registry": st.integers(1, 5),
                "build_slots": st.integers(1, 3),
                "build_speed": st.sampled_from([0.5, 1, 3]),
                "max_launches": st.integers(1, 4),
            },
        ),
        min_size=1,
    )


def _failures(members: dict[str, Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    kinds: list[dict[str, Any]] = [
        {"kind": "crash"},
        {"kind": "full"},
        {"kind": "quota", "slots": 3},
        {"kind": "slow", "factor": 3},
        {"kind": "failing", "rate": 0.5, "early": True},
        {"kind": "failing", "rate": 0.5, "after": 5},
        {"kind": "flapping", "period": 30},
    ]
    common = st.fixed_dictionaries(
        {
            "member": st.sampled_from(sorted(members)),
            "at": st.integers(0, 3600),
            "lasts": st.integers(1, 3600),
            "every": st.just(7200),
        }
    )
    return st.lists(st.builds(lambda kind, rest: kind | rest, st.sampled_from(kinds), common), max_size=5)


@st.composite
def _scenarios(draw: st.DrawFn) -> Scenario:
    members = draw(_members())
    return world(
        members,
        images=draw(st.sampled_from(["separate", "replicated"])),
        warm_up=draw(st.sampled_from([0, 600])),
        visitors={
            "launches_per_hour": draw(st.sampled_from([20, 200, 2000])),
            "again": draw(st.sampled_from([0, 0.6])),
            "gap": draw(_spreads()),
            "session": draw(_spreads()),
            "crowds": draw(st.sampled_from([[], [{"at": 60, "launches": 50, "every": 600}]])),
        },
        repositories={
            "count": draw(st.integers(1, 30)),
            "exponent": draw(st.sampled_from([0, 1, 2])),
            "commit_every": draw(st.sampled_from([0, 3600])),
            "build": draw(_spreads()),
            "failing": draw(st.sampled_from([0, 0.5])),
        },
        edge={
            "count": draw(st.integers(1, 3)),
            "headroom": draw(st.integers(0, 4)),
            "attempts": draw(st.integers(1, 3)),
        },
        failures=draw(_failures(members)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_scenarios(), st.sampled_from(list(offered())), st.integers(0, 5))
def test_any_scenario_is_simulated_to_the_end(scenario: Scenario, policy: str, seed: int) -> None:
    run = simulate(scenario, policy, 200, seed)
    assert run.under_way == 0
    assert run.faults() == []
    assert sum(run.tally.fates.values()) == run.tally.asked == 200
    assert run.tally.ready <= run.tally.servable <= 200
    assert len(run.tally.waits) == run.tally.fates[Fate.READY]
    assert all(wait >= 0 for wait in run.tally.waits)
