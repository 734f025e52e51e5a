"""Where sessions run: what paths name, who is believed, and what is forgotten first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedproxy.decide.sessions import (
    DAY,
    Ground,
    KnownSession,
    Place,
    Sessions,
    announced_by,
    path_of,
    redirected_to,
    sent_to_hub,
    session_of,
)

KEY = b"/user/x"
CLAIMED, SERVED, ANNOUNCED = Ground.CLAIMED, Ground.SERVED, Ground.ANNOUNCED

# Paths


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        (b"/user/x", [KEY]),
        (b"/user/x/", [KEY]),
        (b"/user/x/lab", [b"/user/x/lab", KEY]),
        (b"/user/x/gpu/api/kernels", [b"/user/x/gpu", KEY]),
        (b"/user/a%40b/", [b"/user/a@b"]),
        (b"/user/a@b/", [b"/user/a@b"]),
        (b"/user/%7Ejo%3a/", [b"/user/~jo:"]),
        (b"/user/a%2Fb/", [b"/user/a%2Fb"]),
        (b"/user/a%2fb/c", [b"/user/a%2Fb/c", b"/user/a%2Fb"]),
        (b"/user/100%25/", [b"/user/100%25"]),
        (b"/jupyter/user/x/lab", [b"/jupyter/user/x/lab", b"/jupyter/user/x"]),
        (b"/user/x/files/user/y", [b"/user/x/files", KEY]),
        (b"/user/x/files/hub/user/y", [b"/user/x/files", KEY]),
        (b"/user/x/proxy/80/hub/api/users/1", [b"/user/x/proxy", KEY]),
    ],
)
def test_path_of_a_server_names_its_session(path: bytes, keys: list[bytes]) -> None:
    session = session_of(path)
    assert session is not None
    assert (list(session.keys), session.own) == (keys, True)


@pytest.mark.parametrize(
    "path", [b"/", b"/user", b"/user/", b"/users/x", b"/hub/", b"/hub/home", b"/services/x/"]
)
def test_path_without_a_name_is_of_no_session(path: bytes) -> None:
    assert session_of(path) is None


@pytest.mark.parametrize(
    ("path", "query", "keys"),
    [
        (b"/hub/user/x/lab", b"", [b"/user/x/lab", KEY]),
        (b"/hub/spawn/x", b"", [KEY]),
        (b"/hub/spawn-pending/x/gpu", b"_xsrf=1", [b"/user/x/gpu", KEY]),
        (b"/hub/api/users/x/server/progress", b"", [b"/user/x/server", KEY]),
        (b"/hub/api/users/x/servers/gpu/progress", b"", [b"/user/x/gpu", KEY]),
        (b"/jupyter/hub/user/x", b"", [b"/jupyter/user/x"]),
        (
            b"/hub/api/oauth2/authorize",
            b"client_id=jupyterhub-user-x&redirect_uri=%2Fuser%2Fx%2Foauth_callback&response_type=code",
            [b"/user/x/oauth_callback", KEY],
        ),
        (b"/hub/login", b"next=%2Fhub%2Fuser%2Fx%2Flab%3Fa", [b"/user/x/lab", KEY]),
        (
            b"/hub/login",
            b"next=%2Fhub%2Fapi%2Foauth2%2Fauthorize%3Fredirect_uri%3D%252Fuser%252Fx%252Foauth_callback",
            [b"/user/x/oauth_callback", KEY],
        ),
        (b"/jupyter/hub/login", b"a=b&next=%2Fjupyter%2Fuser%2Fx%2F", [b"/jupyter/user/x"]),
        (b"/hub/login", b"next=%2Fhub%2Fspawn%2Fx", [KEY]),
        (b"/hub/login", b"next=https%3A%2F%2Fhub.test%2Fuser%2Fx%2F%3Fa%3D%2Fuser%2Fy", [KEY]),
    ],
)
def test_page_of_a_hub_names_the_session_that_it_is_about(
    path: bytes, query: bytes, keys: list[bytes]
) -> None:
    session = session_of(path, query)
    assert session is not None
    assert (list(session.keys), session.own, session.opens) == (keys, False, False)


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"next=%2Fhub%2Fhome",
        b"user=x",
        b"next=%252Fhub%252Fuser%252Fx",
        b"from=%2Fuser%2Fx",
        b"next=%2Fhub%2Flogin%3Fnext%3D%2Fhub%2Flogin%3Fnext%3D%2Fhub%2Flogin%3Fnext%3D%2Fhub%2Fuser%2Fx",
        b"next=spawn",
    ],
)
def test_page_of_a_hub_about_nobody(query: bytes) -> None:
    assert session_of(b"/hub/login", query) is None


@pytest.mark.parametrize(
    ("path", "key", "start", "opens"),
    [
        (b"/user/x", KEY, True, True),
        (b"/user/x/", KEY, True, True),
        (b"/user/x/lab", KEY, False, True),
        (b"/user/x/gpu/", b"/user/x/gpu", True, True),
        (b"/user/x/gpu/lab", b"/user/x/gpu", False, True),
        (b"/user/x/api/kernels", KEY, False, False),
        (b"/user/x/api", KEY, False, False),
        (b"/user/x/gpu/api/kernels", b"/user/x/gpu", False, False),
        (b"/user/x/static/a.js", KEY, False, False),
        (b"/user/x/files/api/a", KEY, False, False),
        (b"/user/x/doc/tree/api/a", KEY, False, True),
    ],
)
def test_start_of_a_server_and_its_pages(path: bytes, key: bytes, start: bool, opens: bool) -> None:
    session = session_of(path)
    assert session is not None
    assert (session.is_start(key), session.opens) == (start, opens)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://hub.example.org/user/x/", KEY),
        ("https://hub.example.org/user/x", KEY),
        ("http://127.0.0.1:8000/user/x/?token=1", KEY),
        ("//hub/user/x/#a", KEY),
        ("/user/x/", KEY),
        ("https://hub/user/x/gpu/", b"/user/x/gpu"),
        ("https://hub/user/x/gpu/?token=1", b"/user/x/gpu"),
        ("https://hub/user/x/lab", KEY),
        ("https://hub/user/x/lab/tree/a.ipynb", KEY),
        ("https://hub/jupyter/user/a%40b/", b"/jupyter/user/a@b"),
        ("https://hub/", None),
        ("https://hub/user/", None),
        ("", None),
        ("https://hub/user/" + "x" * 600, None),
        ("https://hub/user/x/" + "y" * 600 + "/", None),
        ("https://hub/hub/user/x/", None),
        ("https://hub/user/\ud800/", b"/user/\xed\xa0\x80"),
    ],
)
def test_url_of_a_server_that_is_ready(url: str, key: bytes | None) -> None:
    assert announced_by(path_of(url)) == key


@pytest.mark.parametrize(
    ("location", "key"),
    [
        (b"/user/x/", KEY),
        (b"/user/x/lab?a=/user/y", KEY),
        (b"https://edge.test/user/x/", KEY),
        (b"https://EDGE.test/user/x/", KEY),
        (b"//member.test:8000/user/x", KEY),
        (b"https://elsewhere.test/user/x/", None),
        (b"//edge.test//user//x/", KEY),
        (b"/user/x/gpu/", b"/user/x/gpu"),
        (b"/hub/user/x/", None),
        (b"/hub/login?next=/user/x", None),
        (b"../user/x/", None),
        (b"user/x/", None),
        (b"/", None),
        (b"", None),
    ],
)
def test_redirect_to_a_server(location: bytes, key: bytes | None) -> None:
    hosts = (b"Edge.test", b"member.test:8000")
    assert redirected_to(location, hosts, lambda path: path.replace(b"//", b"/")) == key


@pytest.mark.parametrize("path", [b"/user/x/lab", b"/user/x/gpu/tree"])
@pytest.mark.parametrize(
    ("location", "sent"),
    [
        (b"/hub/user/x/lab", True),
        (b"/hub/user/x", True),
        (b"/hub/user/%78/", True),
        (b"https://edge.test/hub/user/x/?a", True),
        (b"https://other.test/hub/user/x", False),
        (b"/hub/user/y/", False),
        (b"/hub/spawn/x", False),
        (b"/hub/login?next=%2Fhub%2Fuser%2Fx", False),
        (b"/user/x/lab?from=/hub/user/x/", False),
        (b"/user/x/lab/tree/docs/hub/user/x", False),
        (b"/jupyter/hub/user/x", False),
        (b"hub/user/x", False),
        (b"/user/x/lab", False),
        (b"", False),
    ],
)
def test_redirect_to_the_hub_s_page_about_the_user(path: bytes, location: bytes, sent: bool) -> None:
    session = session_of(path)
    assert session is not None
    assert sent_to_hub(location, session, (b"Edge.test",)) is sent


def test_redirect_to_a_hub_below_a_prefix() -> None:
    session = session_of(b"/jupyter/user/x/lab")
    assert session is not None
    assert sent_to_hub(b"/jupyter/hub/user/x/lab", session, ())
    assert not sent_to_hub(b"/hub/user/x/lab", session, ())


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_path_has_keys_or_none(path: bytes, query: bytes) -> None:
    session = session_of(b"/" + path, query)
    assert session is None or all(key.find(b"/user/") >= 0 for key in session.keys)
    assert session is None or len(session.keys) in (1, 2)


@given(st.text(max_size=80))
def test_any_url_is_read(url: str) -> None:
    announced_by(path_of(url))
    redirected_to(url.encode("utf-8", "surrogatepass"), (), lambda path: path)


# Who is believed


def at(name: str) -> Place:
    return Place(f"https://{name}.test", name)


def member_of(sessions: Sessions, now: float = 0) -> str | None:
    known = sessions.find([KEY], now)
    return None if known is None else known.place.name


def test_last_launch_that_was_ready_counts() -> None:
    sessions = Sessions()
    assert member_of(sessions) is None
    for name in ("a", "b", "a"):
        sessions.announce(KEY, at(name), 0)
        assert repr(sessions.find([KEY], 0)) == f"<KnownSession announced {name}>"


def test_later_launch_counts_although_the_clock_went_back() -> None:
    one, other_one = Sessions(), Sessions()
    one.on_change = lambda key, known: other_one.take(key, KnownSession.from_record(known.record(key)), 0)
    one.announce(KEY, at("a"), 100)
    one.announce(KEY, at("b"), 95)
    assert (member_of(one, 95), member_of(other_one, 95)) == ("b", "b")


def test_neither_an_answer_nor_a_redirect_takes_a_launched_session_away() -> None:
    sessions = Sessions()
    sessions.announce(KEY, at("a"), 0)
    sessions.serve(KEY, at("b"), 1000)
    sessions.claim(KEY, at("b"), 1000)
    assert member_of(sessions, 1000) == "a"


def test_redirect_takes_no_session_away() -> None:
    sessions = Sessions()
    sessions.claim(KEY, at("a"), 0)
    sessions.claim(KEY, at("b"), 100)
    assert member_of(sessions) == "a"
    sessions.serve(KEY, at("b"), 0)
    sessions.claim(KEY, at("a"), 100)
    assert member_of(sessions) == "b"


def test_answer_of_another_member_counts_after_a_while() -> None:
    sessions = Sessions()
    sessions.serve(KEY, at("a"), 0)
    sessions.serve(KEY, at("b"), 59)
    assert member_of(sessions) == "a"
    sessions.serve(KEY, at("a"), 60)
    sessions.serve(KEY, at("b"), 60)
    assert repr(sessions.look(KEY)) == "<KnownSession served b>"


def test_member_with_another_name_is_no_other_member() -> None:
    sessions = Sessions()
    sessions.serve(KEY, at("a"), 0)
    sessions.serve(KEY, Place("https://a.test", "renamed"), 1000)
    known = sessions.look(KEY)
    assert known is not None
    assert known.since == 0


def test_longest_known_path_counts() -> None:
    sessions = Sessions()
    sessions.announce(KEY, at("a"), 0)
    sessions.announce(b"/user/x/gpu", at("b"), 0)
    session = session_of(b"/user/x/gpu/api/kernels")
    assert session is not None
    known = sessions.find(session.keys, 0)
    assert known is not None
    assert known.place == at("b")


# What is forgotten


def test_what_is_used_is_kept_and_what_is_not_expires() -> None:
    sessions = Sessions()
    sessions.announce(KEY, at("a"), 0)
    sessions.serve(b"/user/y", at("a"), 0)
    sessions.claim(b"/user/z", at("a"), 0)
    assert sessions.find([b"/user/z"], 599)
    assert sessions.find([b"/user/z"], 1100)
    assert sessions.find([b"/user/z"], 2299)
    assert sessions.find([b"/user/z"], 3500) is None
    assert sessions.find([KEY], DAY - 1)
    assert sessions.find([b"/user/y", KEY], DAY + 1)
    assert sessions.find([KEY], 3 * DAY) is None
    assert len(sessions) == 0


def test_expired_session_is_learned_anew() -> None:
    sessions = Sessions()
    sessions.announce(KEY, at("a"), 0)
    sessions.serve(KEY, at("b"), DAY)
    assert member_of(sessions, DAY) == "b"


def test_what_was_used_longest_ago_goes_first() -> None:
    sessions = Sessions(most=2)
    sessions.announce(b"/user/1", at("a"), 0)
    sessions.announce(b"/user/2", at("a"), 0)
    assert sessions.find([b"/user/1"], 0)
    sessions.announce(b"/user/3", at("a"), 0)
    assert [key for key, _ in sessions.items()] == [b"/user/1", b"/user/3"]


@pytest.mark.parametrize("launched", [900, 1000])
def test_made_up_names_push_out_no_session_that_was_launched(launched: int) -> None:
    told: list[bytes] = []
    sessions = Sessions(most=1000, on_change=lambda key, known: told.append(key))
    for number in range(launched):
        sessions.announce(b"/user/%d" % number, at("a"), 0)
    for number in range(3000):
        sessions.claim(b"/user/claimed-%d" % number, at("a"), 0)
        sessions.serve(b"/user/made-up-%d" % number, at("a"), 0)
    assert len(sessions) <= 1000
    assert all(sessions.find([b"/user/%d" % number], 0) for number in range(launched))
    # Of what is not kept nobody is told.
    assert launched < 1000 or len(told) == launched


def test_claims_are_few() -> None:
    sessions = Sessions()
    for number in range(5000):
        sessions.claim(b"/user/%d" % number, at("a"), 0)
    assert len(sessions) == 4096
    assert sessions.find([b"/user/0"], 0) is None


def test_long_names_are_not_kept() -> None:
    sessions = Sessions()
    sessions.serve(b"/user/" + b"x" * 600, at("a"), 0)
    assert len(sessions) == 0
    sessions.announce(KEY, at("a"), 0, b"/v2/" + b"x" * 600)
    assert [known.launch for _, known in sessions.items()] == [b""]


def test_fewer_sessions_at_once() -> None:
    sessions = Sessions()
    for number in range(10):
        sessions.announce(b"/user/%d" % number, at("a"), 0)
    sessions.shrink(10)
    assert len(sessions) == 10
    sessions.shrink(4)
    assert [key for key, _ in sessions.items()] == [b"/user/%d" % number for number in range(6, 10)]
    sessions.shrink(0)
    told: list[bytes] = []
    sessions.on_change = lambda key, known: told.append(key)
    sessions.announce(KEY, at("a"), 0)
    sessions.serve(KEY, at("a"), 0)
    assert (len(sessions), told) == (0, [])


def test_what_is_over_is_forgotten_without_anybody_asking_for_it() -> None:
    sessions = Sessions()
    for number in range(4):
        sessions.announce(b"/user/%d" % number, at("a"), number)
        sessions.claim(b"/user/claimed-%d" % number, at("a"), DAY)
    sessions.expire(DAY + 1)
    assert [key for key, known in sessions.items() if known.ground is ANNOUNCED] == [b"/user/2", b"/user/3"]
    assert len(sessions) == 6
    sessions.expire(3 * DAY)
    assert len(sessions) == 0


# What others are told


def test_what_is_new_and_what_is_in_use_is_told() -> None:
    told: list[tuple[bytes, KnownSession]] = []
    sessions = Sessions(on_change=lambda key, known: told.append((key, known)))
    sessions.announce(KEY, at("a"), 0)
    known = sessions.find([KEY], 599)
    assert known is not None
    assert told == [(KEY, known)]
    sessions.find([KEY], 600)
    sessions.find([KEY], 601)
    assert told == [(KEY, known)] * 2
    assert known.used == 600


def other(ground: Ground, name: str, since: float = 0, used: float = 0) -> KnownSession:
    return KnownSession.from_record(KnownSession(ground, at(name), since, used, b"/v2/x").record(KEY))


def test_what_others_know_is_taken_by_its_ground_and_its_time() -> None:
    told: list[bytes] = []
    sessions = Sessions(on_change=lambda key, known: told.append(key))
    for ground, name, since, now_at in (
        (CLAIMED, "a", 0, "a"),
        (CLAIMED, "b", 1, "b"),
        (SERVED, "c", 0, "c"),
        (CLAIMED, "d", 9, "c"),
        (ANNOUNCED, "d", 5, "d"),
        (ANNOUNCED, "e", 4, "d"),
        (SERVED, "a", 9, "d"),
        (ANNOUNCED, "e", 6, "e"),
    ):
        sessions.take(KEY, other(ground, name, since), 0)
        assert member_of(sessions) == now_at
    sessions.take(KEY, other(SERVED, "a", used=10), 0)
    known = sessions.look(KEY)
    assert known is not None
    assert (known.place, known.used, known.launch) == (at("e"), 10, b"/v2/x")
    assert told == []


def test_what_others_know_replaces_what_is_over() -> None:
    sessions = Sessions()
    sessions.announce(KEY, at("a"), 0)
    sessions.take(KEY, other(SERVED, "b", DAY, DAY), DAY)
    assert member_of(sessions, DAY) == "b"


def test_what_is_over_is_not_taken() -> None:
    sessions = Sessions()
    sessions.take(KEY, other(ANNOUNCED, "a"), DAY)
    assert len(sessions) == 0


class Machine(RuleBasedStateMachine):
    """Any order of events: the bounds hold, and no weaker ground takes a launched session away."""

    keys = st.sampled_from([b"/user/%d" % number for number in range(8)])
    places = st.sampled_from([at("a"), at("b"), at("c")])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sessions = Sessions(most=5)
        self.launched: dict[bytes, Place] = {}

    @rule(key=keys, place=places)
    def announce(self, key: bytes, place: Place) -> None:
        self.sessions.announce(key, place, self.now)
        self.launched[key] = place

    @rule(key=keys, place=places, ground=st.sampled_from(["serve", "claim"]))
    def weaker(self, key: bytes, place: Place, ground: str) -> None:
        before = {key for key, known in self.sessions.items() if known.ground is ANNOUNCED}
        getattr(self.sessions, ground)(key, place, self.now)
        after = {key for key, known in self.sessions.items() if known.ground is ANNOUNCED}
        # One that is over may be learned anew, in another way.
        assert before - after <= {key}

    @rule(key=keys, place=places, ground=st.sampled_from(Ground), age=st.floats(0, 2 * DAY))
    def take(self, key: bytes, place: Place, ground: Ground, age: float) -> None:
        self.sessions.take(key, KnownSession(ground, place, self.now - age, self.now - age), self.now)
        if ground is ANNOUNCED:
            self.launched.pop(key, None)

    @rule(key=keys)
    def find(self, key: bytes) -> None:
        known = self.sessions.find([key], self.now)
        if known is not None:
            assert self.sessions.items()[-1][0] == key or known.ground is not ANNOUNCED
            if known.ground is ANNOUNCED and key in self.launched:
                assert known.place == self.launched[key]

    @rule(seconds=st.floats(0, DAY))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.sessions.expire(self.now)

    @rule(most=st.integers(0, 8))
    def shrink(self, most: int) -> None:
        self.sessions.shrink(most)

    @invariant()
    def is_bounded_and_agrees_with_itself(self) -> None:
        items = self.sessions.items()
        assert len(items) == len(dict(items)) == len(self.sessions) <= self.sessions.most
        assert all(self.sessions.look(key) is known for key, known in items)


TestMachine = Machine.TestCase
