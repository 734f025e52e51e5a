"""Small federations for these tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.simulate.policies import offered
from benchmarks.simulate.run import Run
from benchmarks.simulate.scenario import Scenario, parse
from benchmarks.simulate.visitors import Visitors


def world(members: dict[str, Any] | None = None, **more: Any) -> Scenario:
    """Two members, busy but not full; what is given goes before that."""
    said = {
        "visitors": {"launches_per_hour": 200},
        "repositories": {"count": 300, "build": {"median": "2m", "p95": "5m"}},
        "members": {"big": {"slots": 200, "weight": 2}, "small": {"slots": 100}}
        if members is None
        else members,
    }
    # JSON is YAML.
    return parse(json.dumps({**said, **more}))


def simulate(
    scenario: Scenario,
    policy: str = "rendezvous-bounded",
    launches: int = 2000,
    seed: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Run:
    run = Run(scenario, Visitors(scenario, seed), offered()[policy], seed)
    run.run(launches, progress)
    return run
