"""Slots for launches: who may run how many, so that all edges together keep `max_launches`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.decide.breaker import Breaker, BreakerPolicy
from fedproxy.decide.member import Member
from fedproxy.decide.slots import Claim, Grant, Holding, Slots, alone, grant, kept


@pytest.mark.parametrize(
    ("claim", "others", "edges", "expected"),
    [
        # Alone it gets everything.
        (Claim(20, 0, 0), [], 1, Grant(20, False)),
        # Free slots are shared out; the rest of the division to whoever asks.
        (Claim(20, 0, 0), [Holding(7, 0), Holding(6, 0)], 3, Grant(7, False)),
        # Others still hold everything: they are to be told.
        (Claim(20, 0, 0), [Holding(20, 0)], 2, Grant(0, True)),
        # It has enough for the moment: nobody is disturbed.
        (Claim(20, 8, 0), [Holding(12, 0)], 2, Grant(8, False)),
        # Fewer slots than edges: the first one has it, and nobody who does not want it takes it away.
        (Claim(1, 0, 0), [Holding(1, 0)], 3, Grant(0, False)),
        (Claim(1, 0, 0, True), [Holding(1, 0)], 3, Grant(0, True)),
        (Claim(1, 1, 0), [Holding(0, 0, True)], 3, Grant(0, False)),
        # Who wants one too keeps it.
        (Claim(1, 1, 0, True), [Holding(0, 0, True)], 3, Grant(1, False)),
        # The member is full: there is nothing to share.
        (Claim(2, 1, 1), [Holding(1, 1)], 2, Grant(1, False)),
        # More in flight than there may be, as after `max_launches` was lowered.
        (Claim(2, 3, 3), [Holding(3, 3)], 2, Grant(0, False)),
    ],
)
def test_grant(claim: Claim, others: list[Holding], edges: int, expected: Grant) -> None:
    assert grant(claim, others, edges) == expected


def test_nothing_grows_while_others_are_not_known() -> None:
    assert grant(Claim(20, 4, 1), [], 1, may_grow=False) == Grant(4, False)


@pytest.mark.parametrize(
    ("held", "most", "edges", "slots"),
    [(10, 20, 3, 6), (2, 20, 3, 2), (0, 20, 3, 0), (None, 20, 1, 20), (1, 1, 3, 1), (None, 2, 0, 2)],
)
def test_alone(held: int | None, most: int, edges: int, slots: int) -> None:
    assert alone(held, most, edges) == slots


@settings(max_examples=200)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 2**32))
def test_all_edges_together_keep_the_limit_and_whoever_wants_is_served(
    most: int, edges: int, seed: int
) -> None:
    rng = random.Random(seed)
    held = [0] * edges
    used = [0] * edges
    wants = [False] * edges

    def ask(edge: int) -> None:
        others = [Holding(held[o], used[o], wants[o]) for o in range(edges) if o != edge]
        slots, short = grant(Claim(most, held[edge], used[edge], wants[edge]), others, edges)
        held[edge] = max(slots, used[edge])
        if wants[edge] and slots > used[edge]:
            wants[edge] = False
        assert sum(held) <= most
        assert not short or sum(held) == most

    for _ in range(60):
        edge = rng.randrange(edges)
        if rng.random() < 0.5 and used[edge]:
            used[edge] -= 1
        elif used[edge] < held[edge]:
            used[edge] += 1
        else:
            wants[edge] = True
        if rng.random() < 0.7:
            ask(edge)
    # Somebody is refused while the member has room: after everybody has asked once it has a slot.
    edge = rng.randrange(edges)
    wants = [other == edge for other in range(edges)]
    if sum(used) < most and used[edge] >= held[edge]:
        for other in [*range(edges), edge]:
            ask(other)
        assert held[edge] > used[edge]


def ask_for(own: Slots, others: list[Holding], edges: int = 2) -> list[str]:
    claims = own.claims()
    return own.granted(claims, {name: grant(claim, others, edges) for name, claim in claims.items()})


def test_an_edge_without_a_store_keeps_the_whole_limit_if_it_never_knew_others() -> None:
    own = Slots()
    own.use({"a": 1})
    own.apply({"a": 4, "b": 2})
    assert own.limits() == {"a": 4, "b": 2}
    assert own.claims() == {"a": Claim(4, 0, 1), "b": Claim(2, 0, 0)}
    assert not own.dirty


def test_what_is_granted_is_the_limit_until_it_is_cut_off() -> None:
    own = Slots()
    own.apply({"a": 10})
    own.cut_off = False
    assert ask_for(own, [Holding(2, 2)]) == []
    assert own.limits() == {"a": 4}
    own.edges, own.cut_off = 4, True
    assert own.limits() == {"a": 2}
    own.cut_off = False
    own.apply({"a": 3})
    assert own.limits() == {"a": 3}


def test_what_others_hold_too_much_of_is_told() -> None:
    own = Slots()
    own.apply({"a": 10})
    own.cut_off = False
    assert ask_for(own, [Holding(10, 0)]) == ["a"]
    assert own.limits() == {"a": 0}


def test_only_what_changed_is_asked_again() -> None:
    own = Slots()
    own.apply({"a": 10, "b": 10})
    ask_for(own, [], 1)
    own.use({"a": 1, "gone": 3})
    own.use({"a": 1})
    assert own.claims() == {"a": Claim(10, 10, 1)}
    own.touch(["b", "nobody"])
    assert own.claims() == {"b": Claim(10, 10, 0)}
    own.touch_all()
    assert [*own.claims()] == ["a", "b"]


def test_what_is_given_back_is_said_once_more_when_it_is_kept_to() -> None:
    own = Slots()
    own.apply({"a": 10})
    own.cut_off = False
    ask_for(own, [], 1)
    own.touch_all()
    claims = own.claims()
    answer = grant(claims["a"], [Holding(0, 0)], 2)
    assert (answer, kept(claims["a"], answer.slots)) == (Grant(5, False), 10)
    own.granted(claims, {"a": answer})
    assert own.limits() == {"a": 5}
    claims = own.claims()
    assert claims == {"a": Claim(10, 5, 0)}
    assert kept(claims["a"], 5) == 5
    own.granted(claims, {"a": Grant(5, False)})
    assert not own.dirty


def test_what_others_do_not_give_back_is_not_asked_for_without_end() -> None:
    own = Slots()
    own.apply({"a": 10})
    for _ in range(4):
        assert own.dirty
        ask_for(own, [Holding(10, 0)])
        own.touch_wanted()
    assert not own.dirty


def test_a_refused_launch_is_wanted_until_there_is_a_slot() -> None:
    own = Slots()
    own.apply({"a": 1})
    own.cut_off = False
    own.want("a")
    assert own.claims() == {"a": Claim(1, 0, 0)}  # it may have one already, as far as it knows
    own.touch_all()
    ask_for(own, [Holding(1, 0)])
    own.want("a")
    own.want("nobody")
    assert ask_for(own, [Holding(1, 0)]) == ["a"]
    own.touch_wanted()
    assert own.claims() == {"a": Claim(1, 0, 0, True)}
    own.touch_wanted()
    assert ask_for(own, []) == []
    assert own.limits() == {"a": 1}
    own.touch_wanted()
    assert not own.dirty


def test_a_member_that_left_is_forgotten() -> None:
    own = Slots()
    own.apply({"a": 1, "b": 1})
    claims = own.claims()
    own.apply({"b": 1})
    own.apply({"b": 1})
    assert own.granted(claims, {"a": Grant(1, True), "b": Grant(1, False)}) == []
    assert own.limits() == {"b": 1}


def test_who_retires_keeps_what_is_in_use() -> None:
    own = Slots()
    own.apply({"a": 9, "b": 9})
    own.use({"a": 2})
    ask_for(own, [], 1)
    own.retire()
    assert own.claims() == {"a": Claim(2, 9, 2), "b": Claim(0, 9, 0)}


def test_more_in_flight_than_was_granted_is_held() -> None:
    own = Slots()
    own.apply({"a": 2})
    own.use({"a": 2})
    ask_for(own, [Holding(1, 1)])
    own.touch_all()
    assert own.claims() == {"a": Claim(2, 2, 2)}


def test_member_takes_as_many_launches_as_this_edge_has_slots() -> None:
    short: list[str] = []
    member = Member("a", "http://a", Breaker(BreakerPolicy()), max_launches=3)
    member.launch_slots, member.on_short = 1, short.append
    assert not member.full(launch=True)
    member.launches = 1
    assert member.full(launch=True)
    assert short == ["a"]
    member.launch_slots = 9
    member.launches_elsewhere = 2
    assert member.full(launch=True)
    assert not member.full()
    member.launches_elsewhere, member.launch_slots, member.on_short = 1, 2, None
    assert member.full(launch=True)
    assert short == ["a"]


def test_what_others_were_told_to_give_back_is_asked_for_again() -> None:
    own = Slots()
    own.apply({"a": 10, "b": 10})
    own.cut_off = False
    claims = own.claims()
    assert own.granted(claims, {"a": Grant(0, True), "b": Grant(10, False)}) == ["a"]
    own.touch_short()
    assert [*own.claims()] == ["a"]
