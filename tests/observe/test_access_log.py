from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.observe.access_log import AccessLog, CombinedLines, JsonLines, mask_target
from fedproxy.record import Record

SAID: dict[str, Any] = {
    "time": 1763900000.123,
    "request_id": "0123abcd",
    "client": "203.0.113.7",
    "method": "GET",
    "host": "mybinder.org",
    "target": "/v2/gh/user/repo/HEAD?urlpath=lab%2Ftree",
    "protocol": "HTTP/1.1",
    "status": 200,
    "bytes_in": 0,
    "bytes_out": 4510,
    "duration": 0.25,
    "ttfb": 0.125,
    "member": "gesis",
    "attempts": 1,
    "affinity": "cookie",
    "termination": "--",
    "launch": None,
    "user_agent": "Mozilla/5.0",
    "referer": "https://mybinder.org/",
}
KEYS = [
    *(
        "time",
        "request_id",
        "client",
        "method",
        "host",
        "target",
        "protocol",
        "status",
        "bytes_in",
        "bytes_out",
    ),
    *("duration", "ttfb", "member", "attempts", "affinity", "termination", "launch", "user_agent", "referer"),
]


def of(**other: Any) -> Record:
    return Record(**{**SAID, **other})


LINE = of()


REFUSED = of(method="", host="", target="", ttfb=None, member=None, affinity=None, user_agent="", referer="")


def test_json_line_has_the_contract_s_keys_in_order() -> None:
    line = JsonLines()(LINE)
    assert line.endswith("}\n")
    found = json.loads(line)
    assert list(found) == KEYS
    assert found == {**{key: getattr(LINE, key) for key in KEYS}, "time": "2025-11-23T12:13:20.123Z"}


def test_fields_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "logs.md").read_text("utf-8")
    section = text.partition("\n## The access log\n")[2].partition("\n## ")[0]
    firsts = re.findall(r"^\| (`.+?`) \| ", section, re.MULTILINE)
    assert sorted(name for first in firsts for name in re.findall(r"`(\w+)`", first)) == sorted(KEYS)


def test_json_of_a_refused_request_says_null_for_what_there_was_not() -> None:
    found = json.loads(JsonLines()(REFUSED))
    assert [key for key, value in found.items() if value is None] == ["ttfb", "member", "affinity", "launch"]
    assert found["target"] == ""


def test_json_time_goes_on_with_the_clock() -> None:
    lines = JsonLines()
    times = [json.loads(lines(of(time=time)))["time"] for time in (59.999, 60.0, 60.5, 59.0)]
    assert times == [
        "1970-01-01T00:00:59.999Z",
        "1970-01-01T00:01:00.000Z",
        "1970-01-01T00:01:00.500Z",
        "1970-01-01T00:00:59.000Z",
    ]


def test_combined_line_is_apache_s() -> None:
    assert CombinedLines()(LINE) == (
        '203.0.113.7 - - [23/Nov/2025:12:13:20 +0000] "GET /v2/gh/user/repo/HEAD?urlpath=lab%2Ftree HTTP/1.1"'
        ' 200 4510 "https://mybinder.org/" "Mozilla/5.0"\n'
    )


def test_combined_line_has_dashes_for_what_there_was_not() -> None:
    assert CombinedLines()(REFUSED).endswith(' "-" 200 4510 "-" "-"\n')


def test_combined_line_escapes_quotes_and_control_characters() -> None:
    line = CombinedLines()(of(user_agent='a"b\\c\r\n\x1b[2J\xe9'))
    assert line.endswith(' "a\\x22b\\x5Cc\\x0D\\x0A\\x1B[2J\\xE9"\n')


@pytest.mark.parametrize("form", [JsonLines(), CombinedLines()])
@given(text=st.text(st.characters(max_codepoint=255)))
def test_nothing_a_visitor_sends_makes_a_second_line(form: Callable[[Record], str], text: str) -> None:
    line = form(
        of(client=text, request_id=text, method=text, host=text, target=text, user_agent=text, referer=text)
    )
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    assert line.isascii()


@given(text=st.text(st.characters(max_codepoint=255)))
def test_json_gives_the_visitor_s_text_back(text: str) -> None:
    found = json.loads(JsonLines()(of(user_agent=text.replace("=", ""))))
    assert found["user_agent"] == text.replace("=", "")


def test_repeated_text_is_written_alike_however_much_came_between() -> None:
    lines = JsonLines()
    first = lines(LINE)
    for number in range(5000):
        lines(of(target=f"/{number}"))
    lines(of(target="/" + "x" * 10_000))
    assert lines(LINE) == first


@pytest.mark.parametrize(
    ("target", "masked"),
    [
        ("/user/x?token=secret", "/user/x?token=***"),
        ("/build/gh/a/b?build_token=ey.J.x&c=1", "/build/gh/a/b?build_token=***&c=1"),
        ("/?a=1&token=s;till&b=2", "/?a=1&token=***&b=2"),
        ("/?token=a&token=b", "/?token=***&token=***"),
        ("/?Token=a", "/?Token=***"),
        ("/?TOKEN=a%26b", "/?TOKEN=***"),
        ("/?tok%65n=a", "/?tok%65n=***"),
        ("/?%74%6f%6B%65%6e=a", "/?%74%6f%6B%65%6e=***"),
        ("/?build%5Ftoken=a", "/?build%5Ftoken=***"),
        ("/?%62uild_token=a", "/?%62uild_token=***"),
        ("/?token%3Da", "/?token%3D***"),
        (
            "/hub/login?next=%2Fuser%2Fx%3Ftoken%3Dsecret%26a%3D1&b=2",
            "/hub/login?next=%2Fuser%2Fx%3Ftoken%3D***&b=2",
        ),
        ("/?next=%253Ftoken%253Dsecret", "/?next=%253Ftoken%253D***"),
        ("https://mybinder.org/lab?token=a#here", "https://mybinder.org/lab?token=***#here"),
        ("/?+token=a", "/?+token=***"),
        ("/?tokens=1&my.token[]=2&token", "/?tokens=***&my.token[]=***&token"),
        ("/?access_token=a;b&urlpath=lab", "/?access_token=***&urlpath=lab"),
        ("/user/x/?_xsrf=2%7Ca&b=1", "/user/x/?_xsrf=***&b=1"),
        ("/user/x/oauth_callback?code=a&state=b", "/user/x/oauth_callback?code=***&state=***"),
        ("/hub/?api_key=a&oauth_nonce=b", "/hub/?api_key=***&oauth_nonce=***"),
        ("/?st%61te=a&%78srf=b&sta%2574e=c", "/?st%61te=***&%78srf=***&sta%2574e=***"),
        ("/?next=%2Fcb%3Fcode%3Da%26x%3D1&y=keys", "/?next=%2Fcb%3Fcode%3D***&y=keys"),
        # As JupyterHub does.
        ("/?statement=a&zipcode=b&keyword=c", "/?statement=***&zipcode=***&keyword=***"),
        ("/hub/api/authorizations/token/s/t?a=1", "/hub/api/authorizations/token/***?a=1"),
        ("/hub/api/authorizations/cookie/name/s%2Ft", "/hub/api/authorizations/cookie/name/***"),
        (
            "/?next=%2Fhub%2Fapi%2Fauthorizations%2Ftoken%2Fs%3Fa&b=1",
            "/?next=%2Fhub%2Fapi%2Fauthorizations%2Ftoken%2F***&b=1",
        ),
    ],
)
def test_secret_is_masked_however_its_name_is_spelled(target: str, masked: str) -> None:
    assert mask_target(target) == masked


@pytest.mark.parametrize(
    "target",
    [
        "",
        "/",
        "/v2/gh/user/token/HEAD",
        "/?token&key&state=&b=code",
        "/?token=",
        "/?a=%6b%20b",
        "/keys/auth/code.js?v=state",
        "/?a=token%26b=1&c=%3Fkey%26d%3D1&x=code%23y=1&e=%auth",
        "/hub/api/authorizations/token",
        "/hub/api/authorizations?token/a",
        "/v2/git/https%3A%2F%2Fexample.org%2Ftoken/HEAD?urlpath=lab%2Ftree",
    ],
)
def test_other_targets_stay_as_they_are(target: str) -> None:
    assert mask_target(target) == target


def spelled(name: str, levels: list[int]) -> str:
    """The name with some of its characters percent-encoded, each so many times over."""
    return "".join(
        char if not level else f"%{'25' * (level - 1)}{ord(char):02x}"
        for char, level in zip(name, levels, strict=False)
    )


PLAIN = st.text("abz/.:-_", max_size=8)
LEVELS = st.lists(st.integers(0, 3), min_size=40, max_size=40)


@given(
    before=PLAIN,
    word=st.sampled_from(["token", "auth", "key", "code", "state", "_xsrf"]).flatmap(
        lambda word: st.sampled_from([word, word.upper(), word.title()])
    ),
    after=PLAIN,
    levels=LEVELS,
    nested=st.sampled_from(["?", "?a=b&", "?next=%2Fuser%3F", "?a=b%26", "?a=%2Fx%253Fb%253Dc%2526"]),
    equals=st.sampled_from(["=", "%3D", "%253d"]),
)
def test_secret_is_masked_wherever_it_is_and_what_is_beside_it_stays(
    before: str, word: str, after: str, levels: list[int], nested: str, equals: str
) -> None:
    start = f"/user/x{nested}{spelled(before + word + after, levels)}{equals}"
    assert mask_target(f"{start}S3CR3T%26;/?=&urlpath=lab") == f"{start}***&urlpath=lab"
    assert mask_target(f"https://a{start}S3CR3T#here") == f"https://a{start}***#here"


def scrubbed_by_jupyterhub(target: str) -> bool:
    """Whether jupyterhub/log.py hides any part of it."""
    names = [part.partition("=")[0] for part in target.partition("?")[2].split("&") if "=" in part]
    return any(word in name for name in names for word in ("token", "auth", "key", "code", "state", "_xsrf"))


PARAMETERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["statement", "zipcode", "keyword", "urlpath", "tok", "en", "v", "%74oke", "a%20b", "cod"]
        ),
        st.sampled_from(["", "lab", "token", "a/key", "x%2Fcode%26y", "1690000000"]),
    ),
    max_size=4,
)


@given(PARAMETERS)
def test_what_jupyterhub_would_log_is_logged(parameters: list[tuple[str, str]]) -> None:
    target = "/v2/gh/author/keys/HEAD?" + "&".join(f"{name}={value}" for name, value in parameters)
    masked = mask_target(target)
    assert (masked != target) <= scrubbed_by_jupyterhub(target)
    for sent, shown in zip(target.split("&"), masked.split("&"), strict=True):
        assert shown == sent or scrubbed_by_jupyterhub(f"?{sent.rpartition('?')[2]}")


@given(st.text("tokenkey=&/%25 3dDFf", max_size=60))
def test_what_jupyterhub_would_not_log_is_masked_once(query: str) -> None:
    masked = mask_target(f"/?{query}")
    assert mask_target(masked) == masked
    for name, _, value in (part.partition("=") for part in masked[2:].split("&")):
        # An encoded delimiter ends a name here.
        if "%" not in name and scrubbed_by_jupyterhub(f"?{name}="):
            assert value in ("", "***")


def test_both_formats_mask_target_and_referer() -> None:
    entry = of(target="/?token=secret", referer="https://a/?build_token=secret")
    assert "secret" not in JsonLines()(entry)
    assert "secret" not in CombinedLines()(entry)


def test_lines_of_one_turn_are_written_together() -> None:
    soon: list[Callable[[], None]] = []
    written: list[str] = []
    log = AccessLog(written.append, "json", soon.append)
    log(of(status=200))
    log(of(status=404))
    assert len(soon) == 1
    assert written == []
    soon.pop()()
    assert [json.loads(line)["status"] for line in "".join(written).splitlines()] == [200, 404]
    assert len(written) == 1
    log(LINE)
    assert len(soon) == 1


def test_flush_with_nothing_gathered_writes_nothing() -> None:
    written: list[str] = []
    AccessLog(written.append, "combined", lambda callback: None).flush()
    assert written == []


def test_entries_may_be_reused_after_the_call() -> None:
    soon: list[Callable[[], None]] = []
    written: list[str] = []
    log = AccessLog(written.append, "combined", soon.append)
    entry = of()
    log(entry)
    entry.status = 500
    log(entry)
    soon.pop()()
    assert [line.split()[8] for line in written[0].splitlines()] == ["200", "500"]
