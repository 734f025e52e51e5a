"""The balancer `expected-wait`: where a launch goes, why, and what that does to the shares."""

from __future__ import annotations

import random
import re
from collections import Counter
from hashlib import blake2b
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Federation, FederationPolicy, Lease
from fedproxy.decide.knowledge import Knowledge, Seen
from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent, Member
from fedproxy.decide.waits import ExpectedWait, Reason, WaitPolicy
from tests.rig.build import member

AHEAD = 1_800_000_000.0


def digest(number: int) -> bytes:
    return blake2b(b"%d" % number, digest_size=8).digest()


IMAGE = digest(0)


def edge(*members: Member, knowledge: Knowledge | None = None, balancer: str = "expected-wait") -> Federation:
    waits = ExpectedWait(knowledge or Knowledge())
    waits.set_clock(0.0, AHEAD)
    return Federation(members, FederationPolicy(balancer=balancer), random.Random(7), waits)


def three() -> list[Member]:
    return [member("a", prime=True), member("b"), member("c")]


def launch(
    federation: Federation, image: bytes | None = IMAGE, now: float = 0.0, key: bytes | None = None
) -> str:
    lease = federation.acquire(key or image, None, (), now, True, image=image)
    assert isinstance(lease, Lease)
    federation.settle(lease, Outcome.IGNORED, now)
    return lease.member.name


def built(federation: Federation, name: str, image: bytes = IMAGE, now: float = 0.0, **more: object) -> None:
    given = {"found": False, "build": 100.0, "launch": 10.0, "end": End.READY, **more}
    federation.learn(Seen(image, name, **given), now)  # type: ignore[arg-type]


def reasons(federation: Federation) -> Counter[str]:
    found = Counter[str]()
    for each in federation.members:
        found.update(each.counts.choices)
    return found


def test_launch_goes_where_the_image_is() -> None:
    federation = edge(*three())
    for name in "abc":
        image = digest(ord(name))
        built(federation, name, image)
        assert launch(federation, image) == name
    assert reasons(federation) == {Reason.IMAGE: 3}


def test_edges_that_know_nothing_agree_and_rank_as_rendezvous_does() -> None:
    one, other, by_hash = edge(*three()), edge(*three()), edge(*three(), balancer="rendezvous")
    for number in range(5):
        key = b"/build/gh/x/%d" % number
        assert launch(one, digest(number), key=key) == launch(other, digest(number), key=key)
        assert launch(by_hash, digest(number), key=key) == launch(one, digest(-number - 1), key=key)


def test_crowd_for_one_repository_waits_for_one_build() -> None:
    federation = edge(*three())
    first = launch(federation)
    federation.build_begun(IMAGE, first, 1.0)
    assert {launch(federation, now=number / 10) for number in range(10, 400)} == {first}
    assert reasons(federation) == {Reason.TIE: 1, Reason.JOINED: 390}
    # Meanwhile others go elsewhere, as that member has had its share.
    assert launch(federation, digest(1), now=50.0) != first
    assert federation.by_name[first].price > 0


def test_build_that_is_only_expected_is_joined_too_and_forgotten_if_it_never_begins() -> None:
    federation = edge(*three())
    first = launch(federation, now=0.0)
    assert launch(federation, now=30.0) == first
    federation.by_name[first].price = 1.5
    assert launch(federation, now=31.0) == first
    assert launch(federation, now=91.0) != first


def test_crowd_goes_on_elsewhere_if_the_builder_has_no_room() -> None:
    federation = edge(*three())
    first = federation.by_name[launch(federation)]
    first.max_launches = 0
    assert launch(federation, now=1.0) != first.name


def test_slow_member_and_failing_member_wait_longer() -> None:
    federation = edge(*three())
    for number in range(200):
        built(federation, "a", digest(number % 5), found=True, build=None, launch=40.0)
        built(federation, "b", digest(number % 5), found=True, build=None, launch=5.0)
        built(federation, "c", digest(number % 5), found=None, build=None, launch=None, failed=number % 2 > 0)
    federation.roll(0.0)
    ranked = federation.rank(b"k", 0.0, True, b"", digest(0))
    assert [each.member.name for each in ranked] == ["b", "a", "c"]
    waits = {each.member.name: each.cost.wait for each in ranked if each.cost is not None}
    assert waits["b"] < waits["a"]
    assert launch(federation, digest(0)) == "b"


def test_ranking_says_who_would_be_next_and_changes_nothing() -> None:
    federation = edge(*three(), member("d", weight=0.0))
    built(federation, "b")
    federation.build_begun(digest(9), "c", 0.0)
    before = [each.price for each in federation.members]
    ranked = federation.rank(b"k", 0.0, True, b"", IMAGE)
    assert ranked[0].member.name == "b"
    assert ranked[-1].out == "has weight 0"
    assert [each.cost is None for each in ranked] == [False, False, False, True]
    for image in (IMAGE, digest(9), digest(10)):
        order = [each.member for each in federation.rank(b"k", 0.0, True, b"", image)]
        tried: list[Member] = []
        assert federation.waits is not None
        federation.waits.frozen = True
        for expected in order[:3]:
            assert federation.choose(b"k", tried, 0.0, True, b"", image) is expected
            tried.append(expected)
        federation.waits.frozen = False
    assert [each.price for each in federation.members] == before
    assert reasons(federation) == {}
    best = federation.rank(None, 0.0, image=IMAGE)[0]
    assert best.member.name == "b"
    assert re.fullmatch(r"<Cost \d+\.\d+>", repr(best.cost))
    assert repr(federation.waits) == "<ExpectedWait <Knowledge of 1 images>>"


def test_page_without_a_repository_is_ranked_by_its_key() -> None:
    by_wait, by_hash = edge(*three()), edge(*three(), balancer="rendezvous")
    for number in range(20):
        key = b"/x/%d" % number
        assert launch(by_wait, None, key=key) == launch(by_hash, None, key=key)
    assert reasons(by_wait) == {}


def test_federation_without_what_launches_taught_ranks_by_keys() -> None:
    federation = Federation(three(), FederationPolicy(balancer="expected-wait"), random.Random(7))
    federation.learn(Seen(IMAGE, "a", True, None, 1.0, End.READY), 0.0)
    federation.build_begun(IMAGE, "a", 0.0)
    federation.roll(0.0)
    assert launch(federation) == launch(edge(*three(), balancer="rendezvous"))
    assert federation.rank(IMAGE, 0.0, image=IMAGE)[0].cost is None


def test_replicated_image_is_a_tie_once_it_is_everywhere() -> None:
    federation = edge(*three(), knowledge=Knowledge(replicated=True, delay=60.0))
    built(federation, "b")
    federation.roll(0.0)
    assert launch(federation, now=30.0) == "b"
    assert reasons(federation) == {Reason.IMAGE: 1}
    found = Counter(launch(federation, now=100.0 + number) for number in range(60))
    assert set(found) == {"a", "b", "c"}


# Shares


def run(
    federation: Federation, launches: int, *, exponent: float = 1.0, seed: int = 1, images: int = 400
) -> Counter[str]:
    """Launches that all become ready at once, of repositories that are asked for by Zipf's law."""
    rng = random.Random(seed)
    sums = list(accumulate((rank + 1) ** -exponent for rank in range(images)))
    digests = [digest(each) for each in range(images)]
    has: set[tuple[bytes, str]] = set()
    found = Counter[str]()
    for number in range(launches):
        now = 6.0 * number
        (image,) = rng.choices(digests, cum_weights=sums)
        name = launch(federation, image, now)
        found[name] += 1
        there = (image, name) in has
        has.add((image, name))
        built(federation, name, image, now, found=there, build=None if there else 100.0)
        federation.roll(now)
    return found


@pytest.mark.parametrize("weights", [(1, 1, 1), (300, 180, 60), (5, 1, 0.5)])
def test_shares_are_the_weights_however_uneven_the_repositories_are(weights: tuple[float, ...]) -> None:
    members = [member(name, weight=weight) for name, weight in zip("abc", weights, strict=True)]
    found = run(edge(*members), 3000, exponent=1.2)
    for name, weight in zip("abc", weights, strict=True):
        assert abs(found[name] / 3000 - weight / sum(weights)) < 0.03


def test_prices_say_exactly_how_far_shares_are_from_the_weights() -> None:
    """As long as none is at its bound: price = step · (launches - share · all launches)."""
    members = [member(name, weight=weight) for name, weight in (("a", 3), ("b", 1))]
    federation = edge(*members)
    assert federation.waits is not None
    step = federation.waits.policy.step
    found = Counter(launch(federation, digest(number)) for number in range(100))
    assert members[0].price == pytest.approx(step * (found["a"] - 75))
    assert members[1].price == pytest.approx(step * (found["b"] - 25))


def test_few_images_are_built_twice() -> None:
    federation = edge(*three())
    run(federation, 4000)
    assert federation.waits is not None
    known = federation.waits.knowledge.images.known
    asked = len({digest(number) for number in range(400)})
    assert sum(known.values()) < 1.1 * asked


def test_nobody_starves_though_its_launches_take_longer() -> None:
    federation = edge(*three())
    for _ in range(100):
        built(federation, "a", launch=60.0)
        built(federation, "b", launch=5.0)
        built(federation, "c", launch=5.0)
    found = run(federation, 1500)
    assert found["a"] > 300


def test_member_that_fails_loses_share_before_its_breaker_speaks() -> None:
    federation = edge(*three())
    for number in range(60):
        image = digest(-number)
        built(federation, "a", image, found=None, build=None, launch=None, end=End.FAILED, failed=True)
    federation.roll(0.0)
    assert launch(federation) != "a"
    found = Counter(launch(federation, digest(number)) for number in range(300))
    assert found["a"] < 20


def test_reload_keeps_prices_and_a_member_that_left_takes_nothing_along() -> None:
    members = three()
    federation = edge(*members)
    names = {digest(number): launch(federation, digest(number)) for number in range(60)}
    for image, name in names.items():
        built(federation, name, image)
    before = {each.name: each.price for each in members}
    smaller = Federation(members[:2], federation.policy, random.Random(7), federation.waits)
    assert {each.name: each.price for each in smaller.members} == {name: before[name] for name in "ab"}
    assert smaller.waits is not None
    smaller.waits.frozen = True
    moved = {image for image, name in names.items() if launch(smaller, image, 100.0) != name}
    assert moved == {image for image, name in names.items() if name == "c"}


def test_new_member_takes_no_image_from_others_but_its_part_of_new_ones() -> None:
    members = three()
    federation = edge(*members[:2])
    names = {digest(number): launch(federation, digest(number)) for number in range(60)}
    for image, name in names.items():
        built(federation, name, image)
    assert federation.waits is not None
    larger = Federation(members, federation.policy, random.Random(7), federation.waits)
    federation.waits.frozen = True
    assert [launch(larger, image, 100.0) for image in names] == list(names.values())
    federation.waits.frozen = False
    found = Counter(launch(larger, digest(number), 100.0) for number in range(1000, 1300))
    assert 70 < found["c"] < 130


@settings(max_examples=60)
@given(st.data())
def test_whatever_happens_prices_stay_bounded_and_somebody_is_chosen(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
    members = [member(str(at), weight=weight) for at, weight in enumerate(weights)]
    policy = WaitPolicy(step=data.draw(st.floats(0, 1)), most=data.draw(st.floats(0, 5)))
    waits = ExpectedWait(Knowledge(replicated=data.draw(st.booleans())), policy)
    federation = Federation(members, FederationPolicy(balancer="expected-wait"), random.Random(1), waits)
    now = 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(-10, 1e5))
        waits.set_clock(now, data.draw(st.floats(0, 4e9)))
        image = digest(data.draw(st.integers(0, 3)))
        lease = federation.acquire(image, None, (), now, True, image=image)
        if isinstance(lease, Lease):
            assert lease.member.intent is Intent.READY
            took = data.draw(st.one_of(st.none(), st.floats(-1, 1e4)))
            found = data.draw(st.sampled_from([None, True, False]))
            if data.draw(st.booleans()):
                federation.build_begun(image, lease.member.name, now)
            end = data.draw(st.sampled_from(list(End)))
            federation.learn(Seen(image, lease.member.name, found, took, took, end, took is None), now)
        federation.roll(now)
        assert all(-policy.most <= each.price <= policy.most for each in members)
    assert repr(waits).startswith("<ExpectedWait <Knowledge of ")


def test_launch_goes_where_pods_are_left_though_the_image_is_elsewhere() -> None:
    federation = edge(*three())
    built(federation, "a")
    member_ = federation.by_name["a"]
    member_.room = 1
    assert launch(federation) == "a"
    member_.launches_elsewhere = 1
    assert launch(federation) != "a"
    for each in federation.members:
        each.room = 0
    # If none has room, what is known decides.
    federation.by_name["a"].price = -1.0
    assert launch(federation, now=3600.0) == "a"


def test_member_without_room_gets_no_herd_when_it_has_some_again() -> None:
    federation = edge(*three())
    full = federation.by_name["c"]
    full.room = 0
    for number in range(1000):
        assert launch(federation, digest(number)) != "c"
    assert full.price == 0
    full.room = None
    found = Counter(launch(federation, digest(number)) for number in range(1000, 1090))
    assert found["c"] < 60


def test_build_that_never_ends_is_waited_for_no_longer_than_it_may_take() -> None:
    federation = edge(*three())
    first = launch(federation)
    federation.build_begun(IMAGE, first, 0.0)
    assert launch(federation, now=300.0) == first
    federation.by_name[first].price = 1.0
    assert launch(federation, now=400.0) != first


def test_weights_next_to_nothing_are_no_fault() -> None:
    members = [member("a", weight=5e-324), member("b", weight=1e-323)]
    federation = edge(*members)
    for number in range(3):
        built(federation, "a", digest(number), found=None, build=None, launch=None, failed=True)
    federation.roll(0.0)
    assert launch(federation, digest(9)) in "ab"
    assert [each.price for each in members] == [0, 0]


def test_prices_stay_within_their_bounds() -> None:
    members = three()
    federation = edge(*members)
    most = WaitPolicy().most
    for each, price in zip(members, (most, -most, -most), strict=True):
        each.price = price
    chosen = launch(federation)
    assert chosen in "bc"
    prices = {each.name: each.price for each in members}
    other = "c" if chosen == "b" else "b"
    assert prices[other] == -most
    assert -most < prices[chosen] < -most + 0.01
    for each in members:
        each.price = most
    chosen = launch(federation)
    assert [each.price for each in members if each.name == chosen] == [most]
