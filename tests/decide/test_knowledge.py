"""What launches teach: where images are, and how long members take."""

from __future__ import annotations

import json
import random
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.decide.affinity import image_digest
from fedproxy.decide.knowledge import FORMAT, Images, Knowledge, Seen, seen_of
from fedproxy.decide.launch import End, FailureTable, Launch

NOW = 1_800_000_000.0
DAY = 86_400.0


def digest(number: int) -> bytes:
    return blake2b(b"%d" % number, digest_size=8).digest()


IMAGE = digest(0)


def seen(member: str = "a", *, image: bytes = IMAGE, found: bool | None = False, **more: object) -> Seen:
    given = {"build": None if found else 100.0, "launch": 10.0, "end": End.READY, **more}
    return Seen(image, member, found, **given)  # type: ignore[arg-type]


def chance(knowledge: Knowledge, name: str, now: float = NOW, image: bytes = IMAGE) -> float:
    known = knowledge.of(name)
    knowledge.refresh(now)
    found = knowledge.chances(knowledge.images.places(image), now)
    return found.get(known.slot, found.get(-1, known.fresh))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"/v2/gh/Org/Repo/HEAD", b"/build/gh/org/repo/HEAD"),
        (b"/build/git/https%3A%2F%2Fx%2Fy/main", b"/v2/git/https%3A/%2fx/y/main"),
        (b"/build/gh/org/repo/feature/x/", b"/build/gh/org/repo/feature%2Fx"),
    ],
)
def test_image_has_one_digest_however_it_is_asked_for(one: bytes, other: bytes) -> None:
    assert image_digest(one) == image_digest(other)
    assert len(image_digest(one) or b"") == 8


def test_another_ref_is_another_image_and_other_paths_have_none() -> None:
    assert image_digest(b"/v2/gh/org/repo/one") != image_digest(b"/v2/gh/org/repo/two")
    for path in (b"/", b"/v2/", b"/v2/gh", b"/build/gh/", b"/user/v2/gh/a/b"):
        assert image_digest(path) is None


# Where images are


def test_places_of_an_image_are_found_and_noted_again() -> None:
    images = Images()
    images.note(IMAGE, 3, NOW, 60.0)
    images.note(IMAGE, 7, NOW + 5)
    assert sorted((place[0], place[3]) for place in images.places(IMAGE)) == [(3, 60), (7, 0)]
    images.note(IMAGE, 3, NOW + 50)
    (place,) = [place for place in images.places(IMAGE) if place[0] == 3]
    assert (place[1], place[2], place[3]) == (NOW, NOW + 50, 60)
    images.note(IMAGE, 3, NOW + 99, 70_000.0)
    (place,) = [place for place in images.places(IMAGE) if place[0] == 3]
    assert (place[1], place[2], place[3]) == (NOW + 99, NOW + 99, 65_535)
    images.forget(IMAGE, 7)
    images.forget(IMAGE, 7)
    assert [place[0] for place in images.places(IMAGE)] == [3]
    assert images.known == {3: 1, 7: 0}


def test_images_of_one_set_are_told_apart_and_the_oldest_makes_room() -> None:
    images = Images()
    # All of one set; a tag of zeros would look like a free record.
    same = [b"\0\0" + bytes(6), *(b"\0\0" + b"%06d" % number for number in range(8))]
    for age, image in enumerate(same):
        images.note(image, 1, NOW + age)
    assert [len(images.places(image)) for image in same] == [0] + [1] * 8
    # What was seen in the future goes first, and what was seen again stays.
    images.note(same[4], 1, NOW + 10 * DAY)
    images.note(same[1], 1, NOW + 20)
    images.note(same[0], 1, NOW + 21)
    assert not images.places(same[4])
    assert images.places(same[0])
    assert images.known == {1: 8}


def test_what_looks_like_a_tag_between_two_records_is_none() -> None:
    images = Images()
    # The last bytes of one record and the first of the next: b"\x01\0" of a member, ...
    for number in range(1, 9):
        images.note(b"\0\0" + bytes([number] * 6), 257, 0x01010101, 257.0)
    assert images.places(b"\0\0" + b"\1" * 6)[0][0] == 257
    assert [len(images.places(b"\0\0" + bytes([number] * 6))) for number in range(1, 9)] == [1] * 8


def test_member_s_images_are_forgotten_together() -> None:
    images = Images()
    for number in range(50):
        images.note(digest(number), number % 2, NOW)
    images.forget_member(0)
    images.forget_member(5)
    assert images.known == {0: 0, 1: 25}


def test_knowledge_never_grows_past_its_bound() -> None:
    knowledge = Knowledge()
    size = len(knowledge.images.records)
    for number in range(5_000):
        knowledge.expect(digest(number), "a", NOW)
        knowledge.learn(seen(f"m{min(number, 1040)}", image=digest(number)), NOW + number)
        knowledge.begun(digest(-number), "b", NOW)
    assert len(knowledge.images.records) == size < 3_000_000
    assert len(knowledge.members) == 1024
    assert len({known.slot for known in knowledge.members.values()}) == 1024
    assert len(knowledge._builds) <= 4096
    assert sum(knowledge.images.known.values()) <= 131_072


# What is expected


def test_image_that_was_built_is_expected_there_and_nowhere_else() -> None:
    knowledge = Knowledge()
    knowledge.learn(seen("a"), NOW)
    knowledge.refresh(NOW)
    assert chance(knowledge, "a") > 0.9
    assert chance(knowledge, "b") < 0.1
    assert chance(knowledge, "a", NOW + 365 * DAY) < 0.1


def test_member_s_word_that_it_has_an_image_counts_once_a_server_was_started_from_it() -> None:
    knowledge = Knowledge()
    knowledge.learn(seen(found=True, launch=None, end=End.FAILED, failed=True), NOW)
    assert chance(knowledge, "a") < 0.5
    knowledge.learn(seen(found=True), NOW)
    assert chance(knowledge, "a") > 0.9
    # It is not there after all.
    knowledge.learn(seen(found=False, build=None, launch=None, end=End.ABANDONED), NOW)
    assert chance(knowledge, "a") < 0.5


def test_member_that_often_lacks_what_it_had_is_believed_less() -> None:
    knowledge = Knowledge()
    for _ in range(60):
        knowledge.learn(seen("a"), NOW)
    assert chance(knowledge, "a") < 0.3


def test_images_that_turn_up_unknown_raise_the_chance_of_others() -> None:
    knowledge = Knowledge()
    for number in range(60):
        knowledge.learn(seen("a", image=digest(number), found=True), NOW)
    knowledge.refresh(NOW)
    assert knowledge.of("a").fresh > 0.7
    assert 0.1 < Knowledge.of(knowledge, "b").fresh < 0.99


def test_replicated_image_is_everywhere_after_the_delay() -> None:
    knowledge = Knowledge(replicated=True, delay=60.0)
    assert chance(knowledge, "b") == 0.0
    knowledge.learn(seen("a"), NOW)
    assert chance(knowledge, "b", NOW + 59) == 0.0
    assert chance(knowledge, "b", NOW + 61) > 0.9
    assert chance(knowledge, "a", NOW + 1) > 0.9
    knowledge.expects(replicated=False, delay=None)
    assert chance(knowledge, "b", NOW + 61) < 0.1


def test_delay_of_the_replication_is_learned() -> None:
    knowledge = Knowledge(replicated=True)
    assert knowledge.delay == 90.0
    rng = random.Random(1)
    for number in range(400):
        image = digest(number)
        knowledge.learn(seen("a", image=image), NOW)
        age = rng.uniform(0, 60)
        knowledge.learn(seen("b", image=image, found=age > 20.0), NOW + age)
    assert 15.0 < knowledge.delay < 30.0
    knowledge.expects(replicated=True, delay=5.0)
    assert knowledge.delay == 5.0


def test_times_of_a_member_are_learned_and_believed_within_bounds() -> None:
    knowledge = Knowledge()
    for _ in range(200):
        knowledge.learn(seen("usual", found=True, launch=10.0), NOW)
        knowledge.learn(seen("slow", found=True, launch=20.0), NOW)
        knowledge.learn(seen("liar", found=True, launch=0.0), NOW)
    knowledge.refresh(NOW)
    assert 8 < knowledge.of("usual").start < 12
    assert 17 < knowledge.of("slow").start < 21
    assert knowledge.of("liar").start > 2.0
    # One that is new is as good as all.
    assert 7 < knowledge.of("new").start < 13


def test_slow_builder_is_known_by_what_others_took() -> None:
    knowledge = Knowledge()
    for number in range(100):
        knowledge.learn(seen("a", image=digest(number), build=100.0), NOW)
        knowledge.learn(seen("b", image=digest(number), build=300.0), NOW)
    knowledge.refresh(NOW)
    assert knowledge.of("b").slowness > 1.5 * knowledge.of("a").slowness
    assert 100 < knowledge.usual_build < 300


def test_failures_raise_the_risk_smoothly() -> None:
    knowledge = Knowledge()
    risks = [knowledge.of("a").risk]
    for _ in range(30):
        image = digest(len(risks))
        knowledge.learn(
            seen(image=image, found=None, build=None, launch=None, end=End.FAILED, failed=True), NOW
        )
        knowledge.refresh(NOW)
        risks.append(knowledge.of("a").risk)
    assert risks == sorted(risks)
    assert risks[0] < 0.02
    assert 1.0 < risks[-1] < 50.0
    # A repository that cannot be built is not the member's fault.
    knowledge.learn(seen(found=False, build=None, launch=None, end=End.FAILED), NOW)
    knowledge.refresh(NOW)
    assert knowledge.of("a").risk == risks[-1]
    # They are forgotten in time, with launches and without.
    knowledge.refresh(NOW + 3600)
    assert knowledge.of("a").risk < 2 * risks[0]
    knowledge.refresh(NOW - 3600)
    assert knowledge.of("a").risk < 2 * risks[0]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_clock_that_jumps_teaches_little(seconds: float) -> None:
    knowledge = Knowledge()
    knowledge.learn(seen(build=seconds, launch=seconds), NOW)
    knowledge.refresh(NOW)
    assert 30 < knowledge.usual_build <= 3600
    assert knowledge.of("a").start <= 3600


def test_digest_of_another_length_teaches_nothing() -> None:
    knowledge = Knowledge()
    knowledge.learn(seen(image=b"short"), NOW)
    assert not knowledge.members


# Builds under way


def under_way(knowledge: Knowledge, now: float) -> tuple[str, float, float] | None:
    build = knowledge.under_way(IMAGE, now)
    return (build.member, build.since, build.until) if build is not None else None


def test_build_is_expected_for_a_minute_and_under_way_for_as_long_as_it_may_take() -> None:
    knowledge = Knowledge()
    knowledge.expect(IMAGE, "a", NOW)
    assert under_way(knowledge, NOW + 59) == ("a", NOW, NOW + 60)
    assert repr(knowledge.under_way(IMAGE, NOW)) == f"<Build at a since {NOW} until {NOW + 60}>"
    assert knowledge.under_way(IMAGE, NOW + 60) is None
    knowledge.expect(IMAGE, "a", NOW)
    # The one that says so is right.
    knowledge.begun(IMAGE, "b", NOW + 2)
    # It is expected to end within three times what builds take.
    assert under_way(knowledge, NOW + 350) == ("b", NOW + 2, NOW + 362)
    knowledge.begun(IMAGE, "c", NOW + 5)
    knowledge.begun(IMAGE, "b", NOW + 6)
    assert under_way(knowledge, NOW + 10) == ("b", NOW + 2, NOW + 362)
    assert knowledge.under_way(IMAGE, NOW + 400) is None
    # A clock that was set back.
    assert knowledge.under_way(IMAGE, NOW - 3600) is None


def test_who_joined_a_build_teaches_how_long_all_of_it_took() -> None:
    knowledge = Knowledge()
    knowledge.begun(IMAGE, "a", NOW)
    knowledge.learn(seen("a", build=20.0, launch=10.0), NOW + 200)
    assert knowledge.under_way(IMAGE, NOW + 200) is None
    assert [place[3] for place in knowledge.images.places(IMAGE)] == [190]
    knowledge.begun(IMAGE, "b", NOW)
    knowledge.learn(seen("a", build=20.0, launch=10.0), NOW + 200)
    assert knowledge.under_way(IMAGE, NOW + 200) is not None


# What a launch told


def launch(*events: tuple[str, float], end: tuple[End, float] | None = None, moved: bool = False) -> Launch:
    one = Launch(FailureTable(), 0.0, moved=moved)
    for said, at in events:
        data = said if said.startswith("{") else json.dumps({"message": said, "phase": said})
        one.event(data.encode(), at)
    if end is not None:
        one.close(*end)
    return one


BROKEN = '{"phase": "failed", "message": "Internal Server Error", "status_code": 500}'
TOKEN = '{"phase": "failed", "message": "Invalid build token", "status_code": 403}'
NO_REF = '{"phase": "failed", "message": "Could not resolve ref for x"}'
FULL = '{"phase": "failed", "message": "Too many users on this BinderHub!"}'


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (launch(("built", 2), ("launching", 3), ("ready", 9)), (True, None, 9, End.READY, False)),
        (
            launch(("waiting", 1), ("building", 2), ("built", 62), ("launching", 63), ("ready", 70)),
            (False, 62, 8, End.READY, False),
        ),
        (launch(("building", 1), ("built", 31), (BROKEN, 40)), (False, 30, None, End.FAILED, True)),
        (launch(("building", 1), (BROKEN, 40)), (False, None, None, End.FAILED, True)),
        (launch(("building", 1), end=(End.ABANDONED, 40)), (False, None, None, End.ABANDONED, False)),
        (launch(("built", 1), (FULL, 2)), (True, None, None, End.FAILED, False)),
        (launch((NO_REF, 2)), (None, None, None, End.FAILED, False)),
        (launch((TOKEN, 2), moved=True), (None, None, None, End.FAILED, False)),
        (launch(end=(End.LOST, 3)), (None, None, None, End.LOST, True)),
    ],
)
def test_what_a_launch_told(one: Launch, told: tuple[object, ...]) -> None:
    found = seen_of(one, IMAGE, "a")
    assert found is not None
    assert (found.found, found.build, found.launch, found.end, found.failed) == told


def test_launch_that_is_not_over_or_not_understood_tells_nothing() -> None:
    assert seen_of(launch(("built", 1)), IMAGE, "a") is None
    unread = Launch(FailureTable(), 0.0)
    unread.answered(200)
    assert seen_of(unread, IMAGE, "a") is None


# What is kept


def test_what_is_kept_is_known_again() -> None:
    knowledge = Knowledge(replicated=True)
    for number in range(300):
        knowledge.learn(seen(f"m{number % 3}", image=digest(number)), NOW)
    again = Knowledge(replicated=True)
    again.load(knowledge.dump())
    again.refresh(NOW)
    knowledge.refresh(NOW)
    assert again.images.known == knowledge.images.known
    for name in ("m0", "m1", "m2"):
        assert again.of(name).start == knowledge.of(name).start
        assert again.of(name).slot == knowledge.of(name).slot
    assert again.delay == knowledge.delay
    assert repr(again) == "<Knowledge of 300 images>"


def spoilt(**more: object) -> bytes:
    knowledge = Knowledge()
    knowledge.learn(seen(), NOW)
    knowledge.learn(seen("b"), NOW)
    head, _, records = knowledge.dump().partition(b"\n")
    return json.dumps(json.loads(head) | more).encode() + b"\n" + records


AVERAGES = ("launch", "build", "found", "unknown", "failing", "with_image", "without_image")
EMPTY = {each: [0.0, 0.0] for each in AVERAGES}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON\n",
        b"[]\n",
        b"{}\n",
        spoilt()[:-1],
        spoilt(version=FORMAT + 1),
        spoilt(delay=-1),
        spoilt(delay=True),
        spoilt(delay=float("nan")),
        spoilt(all={"launch": [1, "x"]}),
        spoilt(members={"a": {"slot": -1} | EMPTY}),
        spoilt(members={"a": {"slot": "x"} | EMPTY}),
        spoilt(members={"a": {"slot": 1} | EMPTY, "b": {"slot": 1} | EMPTY}),
        spoilt(members={"a": {"slot": 1}}),
        spoilt(members=[1]),
        spoilt(delay=10**400),
        spoilt(members={"a": {"slot": 1} | EMPTY | {"found": [1e300, 1.0]}}),
        spoilt(members={"a": {"slot": 1} | EMPTY | {"found": [0.5, 0.0]}}),
        spoilt(members={"a": {"slot": 1} | EMPTY | {"launch": [1.0, 1e9]}}),
        spoilt(all={"launch": [1.0, 1.0], "first": [1, 1], "unknown": [0, 0], "build": [1e300, 1.0]}),
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_is_not_what_was_kept_is_refused_and_changes_nothing(content: bytes) -> None:
    knowledge = Knowledge()
    knowledge.learn(seen(), NOW)
    before = knowledge.dump()
    with pytest.raises(ValueError, match=r"."):
        knowledge.load(content)
    assert knowledge.dump() == before


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from("abc"),
            st.sampled_from([None, True, False]),
            st.one_of(st.none(), st.floats()),
            st.one_of(st.none(), st.floats()),
            st.sampled_from(list(End)),
            st.booleans(),
            st.floats(-1e12, 1e12),
        ),
        max_size=60,
    )
)
def test_whatever_is_told_leaves_expectations_that_make_sense(told: list[tuple[object, ...]]) -> None:
    knowledge = Knowledge(replicated=True)
    for number, member, found, build, start, end, failed, now in told:
        image = digest(number)  # type: ignore[arg-type]
        knowledge.expect(image, member, now)  # type: ignore[arg-type]
        knowledge.learn(Seen(image, member, found, build, start, end, failed), now)  # type: ignore[arg-type]
        knowledge.refresh(NOW)
        assert 0 < knowledge.usual_build <= 3600
        for known in knowledge.members.values():
            assert 0 <= known.start <= 3600
            assert 0.25 <= known.slowness <= 4
            assert 0 <= known.fresh < 1
            assert 0 <= known.risk <= 50
        for each in knowledge.chances(knowledge.images.places(image), now).values():  # type: ignore[arg-type]
            assert 0 <= each <= 1
    again = Knowledge(replicated=True)
    again.load(knowledge.dump())


def test_people_are_told_what_is_known_of_a_member() -> None:
    knowledge = Knowledge()
    assert knowledge.about("a") == (None, None, 0)
    assert not knowledge.members
    knowledge.learn(seen("a", build=100.0, launch=10.0), NOW)
    assert knowledge.about("a") == (None, 110.0, 1)
    knowledge.learn(seen("a", found=True, launch=8.0), NOW)
    assert knowledge.about("a") == (8.0, 110.0, 1)


def test_image_that_never_ran_there_takes_longer_to_start() -> None:
    knowledge = Knowledge(replicated=True, delay=1.0)
    for number in range(60):
        knowledge.learn(seen("a", image=digest(number), launch=10.0), NOW)
        knowledge.learn(seen("b", image=digest(number), found=True, launch=40.0), NOW + 60)
        knowledge.learn(seen("b", image=digest(number), found=True, launch=10.0), NOW + 90)
    knowledge.refresh(NOW)
    assert 20 < knowledge.pull < 30
    assert knowledge.of("b").start < 12


def test_launches_that_fail_at_once_make_no_member_look_fast() -> None:
    knowledge = Knowledge()
    for number in range(50):
        knowledge.learn(seen("a", image=digest(number), found=True, launch=20.0), NOW)
        broken = seen(
            "b", image=digest(number), found=None, build=None, launch=0.01, end=End.FAILED, failed=True
        )
        knowledge.learn(broken, NOW)
    knowledge.refresh(NOW)
    assert knowledge.of("b").start == pytest.approx(knowledge.of("a").start, rel=0.1)
    assert knowledge.of("b").risk > 1


@pytest.mark.parametrize(("end", "found"), [(End.ABANDONED, False), (End.FAILED, None), (End.LOST, False)])
def test_who_leaves_or_is_refused_says_nothing_about_a_build(end: End, found: bool | None) -> None:
    knowledge = Knowledge()
    knowledge.begun(IMAGE, "a", NOW)
    knowledge.learn(seen("a", found=found, build=None, launch=None, end=end), NOW + 30)
    assert knowledge.under_way(IMAGE, NOW + 31) is not None
    knowledge.learn(seen("a", found=False, build=None, launch=None, end=End.FAILED), NOW + 60)
    assert knowledge.under_way(IMAGE, NOW + 61) is None


def test_made_up_repositories_push_out_no_build_that_a_member_told_of() -> None:
    knowledge = Knowledge()
    knowledge.begun(IMAGE, "a", NOW)
    for number in range(5000):
        knowledge.expect(digest(number + 1), "b", NOW)
    assert knowledge.under_way(IMAGE, NOW + 1) is not None


def test_one_image_that_fails_again_and_again_is_one_failure_of_the_member() -> None:
    knowledge = Knowledge()
    broken = seen("a", found=None, build=None, launch=None, end=End.FAILED, failed=True)
    for second in range(50):
        knowledge.learn(broken, NOW + second)
    knowledge.refresh(NOW + 50)
    assert knowledge.of("a").risk < 0.3
    knowledge.learn(broken, NOW + 700)
    assert knowledge.of("a").failing.total > 1


def test_image_that_starts_again_and_again_does_not_hide_that_others_fail() -> None:
    knowledge = Knowledge()
    broken = seen("a", found=None, build=None, launch=None, end=End.FAILED, failed=True)
    for number in range(20):
        knowledge.learn(broken._replace(image=digest(number + 1)), NOW + number)
        for _ in range(10):
            knowledge.learn(seen("a"), NOW + number)
    knowledge.refresh(NOW + 20)
    # Half of what is counted: risk is failures per success.
    assert knowledge.of("a").risk > 1


def test_member_that_left_takes_along_what_was_known_of_it() -> None:
    knowledge = Knowledge()
    knowledge.learn(seen("a"), NOW)
    knowledge.begun(digest(1), "a", NOW)
    knowledge.begun(digest(2), "b", NOW)
    knowledge.expect(digest(3), "a", NOW)
    knowledge.forget("a")
    knowledge.forget("nobody")
    assert "a" not in knowledge.members
    assert not knowledge.images.places(IMAGE)
    assert [knowledge.under_way(digest(number), NOW) is None for number in (1, 2, 3)] == [True, False, True]
    assert chance(knowledge, "a") < 0.1


def test_failures_are_known_after_a_restart_and_images_of_nobody_are_not() -> None:
    knowledge = Knowledge()
    for number in range(10):
        broken = seen(
            "a", image=digest(number), found=None, build=None, launch=None, end=End.FAILED, failed=True
        )
        knowledge.learn(broken, NOW)
    knowledge.images.note(IMAGE, 77, NOW)
    again = Knowledge()
    again.load(knowledge.dump())
    again.refresh(NOW + 1)
    knowledge.refresh(NOW + 1)
    assert again.of("a").risk == pytest.approx(knowledge.of("a").risk, rel=0.01)
    assert not again.images.places(IMAGE)


def test_launch_that_does_not_say_where_its_image_was_teaches_its_time_alone() -> None:
    knowledge = Knowledge()
    knowledge.learn(seen("a", found=None, build=None, launch=8.0), NOW)
    assert knowledge.about("a") == (None, None, 0)
    assert knowledge.of("a").launch.weight == 1
