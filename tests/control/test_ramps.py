"""The weights of several new members at a time."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from fedproxy.config.model import MemberSettings
from fedproxy.control.ramps import Ramps
from fedproxy.control.state import State
from fedproxy.decide.ramp import FIRST


def new(share: float) -> MemberSettings:
    return MemberSettings.model_validate(
        {"url": "http://127.0.0.1:1", "weight": "auto", "ramp": {"share": share}}
    )


OLD = MemberSettings.model_validate({"url": "http://127.0.0.1:2", "weight": 10})


def step(ramps: Ramps, members: dict[str, MemberSettings], out: Collection[str] = ()) -> dict[str, float]:
    """Their weights after some time. out: the members that operators keep visitors from."""
    for _ in range(50):
        weights = {
            name: ramps.known(name) if each.is_ramping else 10.0
            for name, each in members.items()
            if name not in out
        }
        ramps.step(members, weights)
    return {name: ramps.known(name) for name, each in members.items() if each.is_ramping}


def test_shares_of_more_than_all_visitors_leave_the_others_their_twentieth() -> None:
    members = {"old": OLD, "a": new(0.6), "b": new(0.6)}
    ramps = Ramps()
    ramps.apply(members, State(ramps={"a": 1.0, "b": 1.0}), 0.0)
    assert step(ramps, members) == {"a": 95.0, "b": 95.0}


def test_one_without_visitors_takes_nothing_from_another() -> None:
    members = {"old": OLD, "a": new(0.5), "b": new(0.25)}
    ramps = Ramps()
    ramps.apply(members, State(ramps={"a": 1.0, "b": 1.0}), 0.0)
    assert step(ramps, members) == {"a": 20.0, "b": 10.0}
    assert step(ramps, members, out=["b"]) == {"a": 10.0, "b": 10.0}


def test_none_starts_below_the_first_step() -> None:
    members = {"old": OLD, "a": new(0.5)}
    ramps = Ramps()
    ramps.apply(members, State(ramps={"a": 0.0}), 0.0)
    seen = ramps.seen("a", members)
    assert seen is not None
    assert seen.progress == FIRST
    assert step(ramps, members)["a"] == pytest.approx(0.256)
