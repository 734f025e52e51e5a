from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import unescape

import pytest
from aiohttp import ClientResponse
from pytest_aiohttp import AiohttpClient

from fedproxy.config.load import parse
from fedproxy.control.messages import Logo
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Snapshot, Status, snapshot
from fedproxy.web.error_pages import LOGO
from fedproxy.web.public import create_public_app
from fedproxy.web.view import live_cards
from tests.rig.build import federation, member
from tests.rig.page import Page
from tests.rig.state import CONFIG, Client, State


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def client(state: State, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_public_app(state))


async def page(client: Client, cookie: str = "") -> str:
    response = await client.get("/federation", headers={"Cookie": cookie} if cookie else {})
    assert response.status == 200
    return await response.text()


async def test_active_hosts_has_the_old_program_s_form(client: Client) -> None:
    response = await client.get("/active_hosts")
    assert response.content_type == "application/json"
    assert await response.json() == {
        "active_hosts": {
            "gesis": {
                "url": "https://gesis.mybinder.org",
                "weight": 50,
                "prime": True,
                "health": "https://gesis.mybinder.org/health",
                "versions": "https://gesis.mybinder.org/versions",
            },
            "ovh": {
                "url": "https://ovh.mybinder.org",
                "weight": 150,
                "prime": False,
                "health": "https://ovh.mybinder.org/deep/health",
                "versions": "https://status.example.org/versions",
            },
        }
    }


async def test_active_hosts_leaves_out_who_takes_no_new_visitors(client: Client, state: State) -> None:
    gesis, ovh, shed = state.federation.members
    shed.weight = 1.0
    gesis.set_intent(Intent.DRAIN)
    ovh.set_health(False, 0.0)
    found = await (await client.get("/active_hosts")).json()
    assert list(found["active_hosts"]) == ["shed"]
    assert found["active_hosts"]["shed"]["health"] == "http://localhost/health"


async def test_page_names_members_people_and_past_members(client: Client) -> None:
    text = await page(client)
    assert "<h1>The federation behind mybinder.org</h1>" in text
    for word in (
        "gesis",
        "ovh",
        "shed",
        "GESIS &amp; &lt;friends&gt;",
        "help@gesis.org",
        "25&nbsp;%",
        "75&nbsp;%",
    ):
        assert word in text
    past = text.partition("Past members")[2]
    assert "gke" in past
    assert "Google" in past
    assert "You are with" not in text


async def test_page_is_well_formed_and_loads_what_is_its_own(client: Client) -> None:
    parsed = Page(await page(client, "fedproxy_member=gesis"))
    assert parsed.open == []
    assert parsed.labelled_by
    assert set(parsed.labelled_by) <= set(parsed.ids)
    style, icon = parsed.loads
    assert (await client.get(icon)).content_type == "image/svg+xml"
    response = await client.get(style)
    assert (response.status, response.content_type) == (200, "text/css")
    assert "url(" not in await response.text()


@pytest.mark.parametrize(
    "cookie", ["fedproxy_member=ovh", "a=b; fedproxy_member=ovh", 'fedproxy_member="ovh"']
)
async def test_page_says_which_member_the_visitor_is_with(client: Client, cookie: str) -> None:
    assert "You are with <strong>ovh</strong>" in await page(client, cookie)


@pytest.mark.parametrize(
    "cookie", ["fedproxy_member=nobody", "fedproxy_member=", "x=ovh", "\xff=;;", "fedproxy_member=\xe9"]
)
async def test_page_says_nothing_for_a_cookie_that_names_nobody(client: Client, cookie: str) -> None:
    assert "You are with" not in await page(client, cookie)


@pytest.mark.parametrize(
    ("tone", "status", "meaning", "change"),
    [
        ("paused", "Maintenance", "nobody is sent there", lambda m: m.set_intent(Intent.MAINT)),
        ("paused", "Draining", "no new visitors; sessions go on", lambda m: m.set_intent(Intent.DRAIN)),
        ("bad", "Unhealthy", "Its checks fail", lambda m: m.set_health(False, 0.0)),
        ("bad", "Ejected", "tried again soon", lambda m: m.breaker.trip(1000.0, 0.0)),
        ("full", "Full", "no room for more at the moment", lambda m: setattr(m, "in_flight", 1000)),
        ("full", "Full", "sessions go on", lambda m: m.set_health(False, 0.0, ("quota",))),
        ("paused", "Available", "Takes no new visitors", lambda m: setattr(m, "weight", 0)),
    ],
)
async def test_page_says_how_a_member_is_and_what_that_means(
    client: Client, state: State, tone: str, status: str, meaning: str, change: object
) -> None:
    assert callable(change)
    change(state.federation.members[1])
    text = await page(client)
    ovh = text.partition(">ovh<")[2].partition("</li>")[0]
    assert f'<dd class="tone {tone}">{status}</dd>' in ovh
    assert meaning in ovh
    assert "0&nbsp;%" in ovh
    gesis = text.partition(">gesis<")[2].partition("</li>")[0]
    assert '<dd class="tone good">Available</dd>' in gesis
    assert "100&nbsp;%" in gesis


def test_every_state_is_the_same_word_and_says_what_it_means() -> None:
    for status in Status:
        shown = live_cards(parse(CONFIG, {}), [seen(status)], {})[0].state
        assert (shown.word.lower(), bool(shown.meaning)) == (status, True)


def seen(status: Status) -> Snapshot:
    """A member in that state."""
    ill = member("ovh", weight=2.0)
    match status:
        case Status.MAINTENANCE | Status.DRAINING:
            ill.set_intent(Intent.MAINT if status is Status.MAINTENANCE else Intent.DRAIN)
        case Status.FULL | Status.UNHEALTHY:
            ill.set_health(False, 0.0, ("quota",) if status is Status.FULL else ())
        case Status.EJECTED:
            ill.breaker.trip(1000.0, 0.0)
    shown = snapshot(ill, 1000.0)
    return replace(shown, share=1.0) if status is Status.SLOW_STARTING else shown


async def test_page_without_members_still_says_so(client: Client, state: State) -> None:
    state.federation = federation()
    assert "There are no members at the moment." in await page(client)


async def test_page_of_a_config_without_an_address_names_none(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_public_app(State("members: {a: {url: 'http://a'}}")))
    assert "<h1>The federation</h1>" in await page(client)


async def test_page_s_policy_allows_nothing_inline(client: Client) -> None:
    response = await client.get("/federation")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Server"] == "fedproxy"
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/active_hosts", "/federation", "/federation/style.css"])
async def test_head_gives_the_same_head_and_no_body(client: Client, path: str) -> None:
    full, head = await client.get(path), await client.head(path)
    assert (head.status, await head.read()) == (200, b"")
    assert head.headers["Content-Length"] == full.headers["Content-Length"]


async def test_page_shows_pods(client: Client, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    gesis, ovh, shed = state.members()
    members = [replace(gesis, pods={"total": 137}, quota=300), replace(ovh, pods={"total": 4}), shed]
    monkeypatch.setattr(state, "members", lambda: members)
    text = await page(client)
    assert "<dd>137 of 300</dd>" in text
    assert "<dd>4</dd>" in text
    assert text.count("Pods in use") == 2


async def test_logo_that_the_edge_has_is_shown_and_comes_from_the_edge(client: Client, state: State) -> None:
    before = await page(client)
    assert "<img" not in before
    assert "logo.svg" not in before
    content = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    state.images.append(Logo("https://www.gesis.org/logo.svg", "0123abcd", "image/svg+xml", content))
    text = await page(client)
    assert text.count("<img") == 1
    assert '<img class="logo" src="/federation/logo/0123abcd" alt="" height="40">' in text
    assert Page(text).open == []
    response = await client.get("/federation/logo/0123abcd")
    assert (response.status, response.content_type) == (200, "image/svg+xml")
    assert await response.read() == content
    # Opened by itself it is a document of this site: its script does not run.
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "script-src" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "immutable" in response.headers["Cache-Control"]
    assert (await client.get("/federation/logo/nobody")).status == 404


@pytest.mark.parametrize(
    ("contact", "shown"),
    [
        ("mailto:help@a.example.org", "help@a.example.org"),
        ("https://www.2i2c.org/contact", "2i2c.org"),
        ("https://Chat.Example.org:8443/x", "chat.example.org"),
        ("http://127.0.0.1:8000", None),
        ("http://[::1]/", None),
        ("https://10.1.2.3/contact", None),
        ("http://localhost:8000/", None),
        ("https://hub.internal/", None),
        ("https://b/contact", None),
    ],
)
async def test_contact_is_named(aiohttp_client: AiohttpClient, contact: str, shown: str | None) -> None:
    config = f"members: {{a: {{url: 'http://a', contact: '{contact}'}}}}"
    text = await page(await aiohttp_client(create_public_app(State(config))))
    card, joining = text.partition('id="join"')[::2]
    assert f'<a href="{contact}">{shown or "the team of a"}</a>' in card
    if shown is None:
        assert f'then write to <a href="{contact}">the team of a</a>.' in joining
    else:
        assert f'then write to the team of a (<a href="{contact}">{shown}</a>).' in joining


async def test_who_wants_to_join_writes_to_the_federation_or_the_prime_member_or_the_first_with_a_contact(
    aiohttp_client: AiohttpClient,
) -> None:
    async def joining(own: str = "", **members: str) -> str:
        text = own + "members: {" + ", ".join(f"{name}: {member}" for name, member in members.items()) + "}"
        client = await aiohttp_client(create_public_app(State(text)))
        return (await page(client)).partition('id="join"')[2]

    b = "{url: 'http://b', contact: 'https://b/contact'}"
    assert "the team of b</a>" in await joining(
        c="{url: 'http://c'}", b=b, a="{url: 'http://a', prime: true}"
    )
    prime = "{url: 'http://a', prime: true, contact: 'https://a/'}"
    assert "the team of a</a>" in await joining(b=b, a=prime)
    assert "write to" not in await joining(c="{url: 'http://c'}")
    ours = "contact: mailto:team@b.example\n"
    assert 'the team of the federation (<a href="mailto:team@b.example">' in await joining(ours, a=prime)


def moves(text: str) -> list[str]:
    """Where the page's forms lead."""
    return [unescape(found) for found in re.findall(r'<form method="post" action="([^"]*)">', text)]


async def test_visitor_can_move_to_every_member_that_takes_visitors(client: Client, state: State) -> None:
    assert moves(await page(client)) == [
        "/federation/move?member=gesis",
        "/federation/move?member=ovh",
    ]
    assert moves(await page(client, "fedproxy_member=ovh")) == [
        "/federation/move",
        "/federation/move?member=gesis",
    ]
    state.federation.by_name["gesis"].set_intent(Intent.DRAIN)
    assert moves(await page(client)) == ["/federation/move?member=ovh"]


async def test_first_of_several_cookies_that_names_an_available_member_is_where_the_visitor_is(
    client: Client, state: State
) -> None:
    both = "fedproxy_member=nobody; fedproxy_member=gesis; fedproxy_member=ovh"
    assert "You are with <strong>gesis</strong>" in await page(client, both)
    state.federation.by_name["gesis"].set_intent(Intent.MAINT)
    assert "You are with <strong>ovh</strong>" in await page(client, both)
    state.federation.by_name["ovh"].set_intent(Intent.MAINT)
    assert "You are with <strong>gesis</strong>" in await page(client, both)
    assert "You are with" not in await page(client, "fedproxy_member=nobody; fedproxy_member=")


async def move(client: Client, query: str = "?member=ovh", **headers: str) -> ClientResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(f"/federation/move{query}", headers=named, allow_redirects=False)


async def test_move_sets_the_cookie_and_comes_back_to_the_page(client: Client) -> None:
    response = await move(client)
    assert (response.status, response.headers["Location"]) == (303, "/federation")
    assert response.headers["Set-Cookie"] == "fedproxy_member=ovh; Path=/"
    over_tls = await move(client, X_Forwarded_Proto="https")
    assert over_tls.headers["Set-Cookie"] == "fedproxy_member=ovh; Path=/; Secure"


@pytest.mark.parametrize("query", ["", "?member=", "?other=ovh"])
async def test_move_to_nobody_in_particular_clears_the_cookie(client: Client, query: str) -> None:
    response = await move(client, query)
    assert response.status == 303
    assert response.headers["Set-Cookie"] == "fedproxy_member=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"


@pytest.mark.parametrize(("name", "status"), [("gke", 404), ("%3Cx%3E%0D%0A", 404), ("shed", 409)])
async def test_move_to_who_takes_no_visitors_is_refused(client: Client, name: str, status: int) -> None:
    response = await move(client, f"?member={name}")
    assert response.status == status
    assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec_Fetch_Site": "same-origin"}, 303),
        ({"Sec_Fetch_Site": "none"}, 303),
        ({"Sec_Fetch_Site": "same-origin", "Origin": "https://edge.behind.example"}, 303),
        ({"Sec_Fetch_Site": "same-origin", "Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Origin": "https://mybinder.org"}, 403),
        ({"Sec_Fetch_Site": ""}, 403),
        ({"Sec_Fetch_Site": "Same-Origin"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Origin": "https://mybinder.org"}, 403),
        ({"Origin": "https://mybinder.org"}, 303),
        ({"Origin": "http://Edge.example:8080", "Host": "edge.example:8080"}, 303),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://mybinder.org"}, 403),
        ({"Origin": "https://mybinder.org.evil.example"}, 403),
        ({"Origin": "https://mybinder.org@evil.example"}, 403),
        ({"Origin": "https://mybinder.org:444"}, 403),
        ({"Origin": "https://mybinder.org:443"}, 303),
        ({"Origin": "http://edge.example", "Host": "edge.example:80"}, 303),
        ({"Origin": "https://edge.example", "Host": "edge.example"}, 303),
        ({"Origin": "https://edge.example", "Host": "edge.example", "X_Forwarded_Proto": "https"}, 303),
        ({"Origin": "http://edge.example", "Host": "edge.example", "X_Forwarded_Proto": "https"}, 403),
        ({"Origin": "http://[2001:DB8::1]:8080", "Host": "[2001:db8::1]:8080"}, 303),
        ({"Referer": "https://mybinder.org/federation?x"}, 303),
        ({"Referer": "https://mybinder.org"}, 303),
        ({"Referer": "https://evil.example/?https://mybinder.org/"}, 403),
        ({"Referer": "data:text/html,x"}, 403),
        ({"Referer": ""}, 403),
        ({"Origin": "https://evil.example", "Referer": "https://mybinder.org/"}, 403),
    ],
)
async def test_no_other_site_moves_a_visitor(client: Client, headers: dict[str, str], status: int) -> None:
    response = await move(client, **headers)
    assert response.status == status
    assert ("Set-Cookie" in response.headers) is (status == 303)


@pytest.mark.parametrize(
    "origin",
    ["null", "", "data:", "data:text/html,x", "file://", "about:blank", "://", "http://", "h", "//h"],
)
async def test_no_page_without_an_origin_moves_a_visitor_of_an_edge_without_a_public_url(
    aiohttp_client: AiohttpClient, origin: str
) -> None:
    state = State(CONFIG.replace("public_url: https://mybinder.org", ""))
    client = await aiohttp_client(create_public_app(state))
    assert (await move(client, Origin=origin, Host="h")).status == 403
    assert (await move(client, Referer=origin or "x", Host="h")).status == 403
    assert (await move(client, Origin="http://h", Host="h")).status == 303


async def test_move_is_only_by_post(client: Client) -> None:
    response = await client.get("/federation/move?member=ovh")
    assert (response.status, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
async def test_other_methods_are_not_allowed(client: Client, method: str) -> None:
    response = await client.request(method, "/federation")
    assert response.status == 405
    assert set(re.split(r", ?", response.headers["Allow"])) == {"GET", "HEAD"}
    assert (await response.json())["error"] == "Method Not Allowed"


async def test_unknown_page_answers_people_and_programs_in_their_form(client: Client) -> None:
    for_programs = await client.get("/federation/x", headers={"X-Request-ID": "abc-1"})
    assert for_programs.status == 404
    assert await for_programs.json() == {
        "error": "Not Found",
        "detail": "There is nothing here.",
        "request_id": "abc-1",
    }
    for_people = await client.get("/federation/x", headers={"Accept": "text/html"})
    assert (for_people.status, for_people.content_type) == (404, "text/html")
    (style,) = re.findall("<style>(.*?)</style>", await for_people.text(), re.DOTALL)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in for_people.headers["Content-Security-Policy"]


async def test_request_id_is_handed_back(client: Client) -> None:
    response = await client.get("/active_hosts", headers={"X-Request-ID": "0123456789abcdef"})
    assert response.headers["X-Request-ID"] == "0123456789abcdef"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129])
async def test_request_id_that_is_none_is_replaced(client: Client, given: str) -> None:
    response = await client.get("/active_hosts", headers={"X-Request-ID": given})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])


async def test_member_that_joined_at_run_time_is_listed_by_its_name(client: Client, state: State) -> None:
    state.federation = federation(*state.federation.members, member("new"))
    text = await page(client)
    assert '<span class="monogram" aria-hidden="true">N</span>' in text
    assert "<h3>new</h3>" in text
    found = await (await client.get("/active_hosts")).json()
    assert found["active_hosts"]["new"]["health"] == "https://new.example.org/health"


async def test_metrics_are_those_of_all_workers(client: Client, state: State) -> None:
    response = await client.get("/metrics", headers={"Accept": "text/plain", "Accept-Encoding": "identity"})
    assert (response.status, await response.text()) == (200, "# for text/plain\n")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4"
    assert response.headers["Cache-Control"] == "no-store"
    packed = await client.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    state.error = OSError("nobody is there")
    assert (await client.get("/metrics")).status == 503


@pytest.mark.parametrize("path", ["/federation/", "/federation/none", "/federation/metrics"])
async def test_path_below_the_page_that_is_none_is_not_found(client: Client, path: str) -> None:
    assert (await client.get(path)).status == 404


async def test_logo_of_the_site_has_a_fixed_address(aiohttp_client: AiohttpClient) -> None:
    state = State(f"{CONFIG}pages: {{logo: 'https://a.example/l.png'}}\n")
    assert "https://a.example/l.png" in state.config.logos
    client = await aiohttp_client(create_public_app(state))
    assert (await client.get(LOGO)).status == 404
    state.images.append(Logo("https://a.example/l.png", "89abcdef", "image/png", b"png"))
    response = await client.get(LOGO)
    assert (response.status, response.content_type, await response.read()) == (200, "image/png", b"png")
    assert response.headers["Cache-Control"] == "public, max-age=3600"
    without = await aiohttp_client(create_public_app(State(CONFIG)))
    assert (await without.get(LOGO)).status == 404
