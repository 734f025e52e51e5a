from __future__ import annotations

from typing import Any

import pytest

from benchmarks.simulate.hub import NEVER, Build, Hub, Node
from benchmarks.simulate.scenario import FailureSettings, HubSettings


def hub(**settings: Any) -> Hub:
    return Hub(0, "a", HubSettings.model_validate({"slots": 20, **settings}), 1, 3, 10)


def failure(kind: str, **more: Any) -> FailureSettings:
    return FailureSettings.model_validate({"member": "a", "kind": kind, "at": 0, "lasts": 60, **more})


def test_node_forgets_the_image_that_was_not_launched_for_the_longest() -> None:
    node = Node(5, 2)
    for image in (1, 2, 1, 3):
        node.take(image, 0.0)
    assert list(node.images) == [1, 3]
    assert node.pods == 4


def test_registry_forgets_the_image_that_was_not_launched_for_the_longest() -> None:
    one = hub(registry=2)
    for image in (1, 2, 1, 3):
        one.keep(image)
    assert list(one.images) == [1, 3]


def test_pod_starts_where_its_image_is_or_on_the_fullest_node_with_room() -> None:
    one = hub(slots=6, nodes={"count": 3})
    first, second, third = one.nodes
    second.pods = 1
    third.images[7] = 0.0
    assert one.place(7) is third
    assert one.place(8) is second
    second.pods = 2
    assert one.place(8) is first


def test_second_pod_of_an_image_waits_for_the_pull_of_the_first() -> None:
    one = hub(launch={"median": 10, "p95": 10}, pull={"median": 60, "p95": 60})
    node = one.nodes[0]
    there, seconds = one.starts_in(node, 7, 100.0, 0.5, 0.5)
    assert (there, seconds) == (160.0, 70.0)
    node.take(7, there)
    assert one.starts_in(node, 7, 120.0, 0.5, 0.5) == (160.0, 50.0)
    assert one.starts_in(node, 7, 200.0, 0.5, 0.5) == (160.0, 10.0)


def test_wait_for_a_build_is_known_exactly_though_it_is_not_its_turn() -> None:
    one = hub(build_slots=2, build_speed=2)
    assert one.built_in(1, 100.0, 0.0) == 50.0
    for image, ends in ((1, 50.0), (2, 80.0)):
        one.builds[image] = Build(image, 0.0)
        one.builds[image].ends = ends
    one.building = 2
    queued = one.builds[3] = Build(3, 40.0)
    one.queue.append(queued)
    assert one.built_in(1, 100.0, 20.0) == 30.0
    assert one.built_in(3, 80.0, 20.0) == 70.0  # after image 1
    assert one.built_in(4, 100.0, 20.0) == 110.0  # after image 2


def test_failures_add_up() -> None:
    one = hub()
    slow, failing, quota = failure("slow", factor=3), failure("failing", rate=0.5), failure("quota", slots=4)
    for each in (slow, slow, failing, failing, quota):
        one.suffer(each)
    assert (one.slow, one.failing, one.early, one.room) == (9.0, 0.75, 0.0, 4)
    for each in (slow, slow, failing, failing, quota):
        one.recover(each)
    assert (one.slow, one.failing, one.room) == (1.0, 0.0, 20)


@pytest.mark.parametrize(
    ("kind", "room", "says", "reachable"),
    [
        ("crash", 20, ("connect",), False),
        ("flapping", 20, ("connect",), False),
        ("full", 0, ("quota",), True),
        ("quota", 0, (), True),
        ("failing", 20, (), True),
    ],
)
def test_probe_finds_what_a_member_says(kind: str, room: int, says: tuple[str, ...], reachable: bool) -> None:
    one = hub()
    one.suffer(failure(kind))
    assert (one.room, one.verdict().reasons, one.reachable) == (room, says, reachable)
    assert one.wait(1, 60.0, 0.0, 0.5, 0.5, 0.5) == NEVER


def test_member_says_that_it_is_full_when_its_headroom_is_used() -> None:
    one = hub()
    one.pods = 9
    assert one.verdict().ok
    one.pods = 10
    assert not one.verdict().ok
    assert one.wait(1, 60.0, 0.0, 0.5, 0.5, 0.5) < NEVER


def test_own_community_takes_what_is_left_at_most() -> None:
    one = hub()
    one.pods = 15
    one.set_own(12)
    assert (one.own, one.room) == (5, 15)
    one.pods = 0
    one.set_own(12)
    assert (one.own, one.room, one.verdict().ok) == (12, 8, False)
