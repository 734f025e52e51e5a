"""What `check` says of a file is what `serve` refuses: the files that it names too, all at once."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from aiohttp import web

from fedproxy.config.report import as_json, fault_lines, warning_lines
from fedproxy.demo.toy import Mode, ToyBinderHub
from fedproxy.errors import ConfigError
from fedproxy.serve.live import _try_addresses, look
from fedproxy.serve.service import Service
from fedproxy.serve.verify import CheckedFile, Reader, members_in, verify, verify_all
from tests.rig import guard
from tests.rig.names import SRV, Reply, name_server
from tests.rig.visitor import END, pair

MEMBERS = {"a": {"url": "https://a.example", "prime": True}}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: Any) -> Path:
        file = tmp_path / "edge.yaml"
        text = data if isinstance(data, str) else yaml.safe_dump({"members": MEMBERS} | data, sort_keys=False)
        file.write_text(text)
        return file

    return write


def faults(checked: CheckedFile) -> list[str]:
    return fault_lines("f", checked.faults)


def names(checked: CheckedFile) -> list[str]:
    return [each.name for each in checked.warnings]


def test_files_that_cannot_be_used_are_said_with_all_other_faults(
    authority: trustme.CA, tmp_path: Path, write: Write
) -> None:
    one = pair(tmp_path / "one", authority.issue_cert("one.test", not_after=END))
    two = pair(tmp_path / "two", authority.issue_cert("two.test", not_after=END))
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    empty = tmp_path / "empty.pem"
    empty.touch()
    file = write(f"""\
workers: none
listen:
  - address: 127.0.0.1:8443
    tls:
      certificate: {one.certificate}
      private_key: {two.private_key}
      certificates:
        - {{certificate: {junk}, private_key: {two.private_key}}}
        - {{private_key: {junk}, certificate: {one.certificate}}}
  - address: 127.0.0.1:8444
    tls: {{certificate: {empty}, private_key: {two.private_key}}}
  - address: 127.0.0.1:8445
    tls: {{certificate: {tmp_path}/none, private_key: {two.private_key}}}
members:
  a.b: {{url: https://a.example, ca: {junk}}}
  c: {{url: https://c.example, ca: {one.certificate}}}
  d: {{url: https://d.example, ca: {empty}, active: false}}
routes: [{{path: /x, to: nobody}}]
""")
    checked = verify(file, {})
    assert faults(checked) == [
        "f:1:10: workers: is 'none', expected auto or a whole number from 1 to 1024",
        f"f:5:20: listen.0.tls.certificate: {one.certificate} does not match {two.private_key}, "
        "expected its own key",
        f"f:8:25: listen.0.tls.certificates.0.certificate: {junk} holds no certificate, expected a PEM chain",
        f"f:9:25: listen.0.tls.certificates.1.private_key: {junk} holds no private key, expected one as PEM",
        f"f:11:24: listen.1.tls.certificate: {empty} is empty, expected PEM",
        f"f:13:24: listen.2.tls.certificate: is '{tmp_path}/none', "
        "expected the path of a file that can be read",
        f"f:15:37: members.a.b.ca: {junk} cannot be used, expected certificates as PEM",
        "f:18:25: routes.0.to: is 'nobody', expected members, prime or a member's name",
    ]
    with pytest.raises(ConfigError) as caught:
        _ = checked.config
    assert caught.value.faults == checked.faults


def test_templates_are_looked_at_with_all_other_files(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "error.html").write_text("<p>\n{{ nme }}")
    (folder / "down.html").write_text("{% if %}")
    checked = verify(write({"pages": {"site": "x", "templates": str(folder)}}), {})
    where = "f:7:14: pages.templates"
    assert faults(checked) == [
        f"{where}: {folder}/down.html:1: Expected an expression, got 'end of statement block'",
        f"{where}: {folder}/error.html:2: 'nme' is undefined",
    ]
    checked = verify(write({"pages": {"templates": str(tmp_path / "none")}}), {})
    assert faults(checked) == [
        f"f:6:14: pages.templates: is '{tmp_path}/none', expected the path of a folder that can be read"
    ]


def test_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    checked = verify(tmp_path / "none", {})
    assert faults(checked) == ["f: cannot be read: No such file or directory"]
    assert checked.with_more([], []) is checked
    with pytest.raises(ConfigError):
        _ = checked.config


def test_warnings_are_in_the_order_of_the_file_and_can_be_silenced(write: Write) -> None:
    data = {"timeouts": {"response_head": 1}, "admin": {"address": "0.0.0.0:1", "token": "x"}}
    assert names(verify(write(data), KUBERNETES)) == [
        "drain-cut-off",
        "response-head-short",
        "admin-reachable",
        "secret-short",
    ]
    silent = ["secret-short", "drain-cut-off", "no-limit"]
    checked = verify(write(data | {"silence": silent}), KUBERNETES)
    assert warning_lines("f", checked.warnings) == [
        "f:6:18: warning: response-head-short: timeouts.response_head: is 1s, "
        "expected more than the 25s that the first event of a build can take",
        "f:8:12: warning: admin-reachable: admin.address: is '0.0.0.0:1', where everybody who can connect "
        "may read, expected a loopback address or `read: token`",
    ]


def test_warnings_of_a_config_of_the_old_format_are_silenced_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for silence, expected in ([], ["same-url"]), (["same-url"], []):
        hosts = {name: {"url": "https://a.example", "prime": True} for name in "ab"}
        file.write_text(json.dumps({"hosts": hosts, "silence": silence}))
        assert names(verify(file, {})) == expected


@pytest.mark.parametrize(("days", "expected"), [(-1, True), (5, True), (40, False)])
def test_certificate_that_ends_soon_is_warned_about(
    days: int, expected: bool, authority: trustme.CA, tmp_path: Path, write: Write
) -> None:
    ends = datetime.now(UTC) + timedelta(days=days, hours=1)
    more = pair(tmp_path / "more", authority.issue_cert("more.test", not_after=ends))
    good = pair(tmp_path / "good", authority.issue_cert("good.test", not_after=END))
    for each in more, good:
        each.private_key.chmod(0o600)
    both = [{key: str(path) for key, path in each.model_dump().items()} for each in (good, more)]
    # What is wrong elsewhere hides no warning about a file, and what is silenced stays so.
    for workers, silence in (1, []), (0, []), (0, ["certificate-ends"]):
        listen = [{"address": "127.0.0.1:1", "tls": both[0] | {"certificates": [both[1]]}}]
        checked = verify(write({"listen": listen, "workers": workers, "silence": silence}), {})
        expects = expected and not silence
        assert [each.what.path for each in checked.warnings] == (
            ["listen.0.tls.certificates.0.certificate"] if expects else []
        )
        assert bool(checked.faults) is (workers == 0)


def test_key_that_every_user_can_read_is_warned_about_outside_of_pods(
    authority: trustme.CA, tmp_path: Path, write: Write
) -> None:
    own = pair(tmp_path, authority.issue_cert("own.test", not_after=END))
    tls = {"certificate": str(own.certificate), "private_key": str(own.private_key)}
    file = write({"listen": [{"address": "127.0.0.1:1", "tls": tls}], "timeouts": {"drain": 1}})
    for mode, env, expected in (
        (0o604, {}, ["key-readable"]),
        (0o640, {}, []),
        (0o644, KUBERNETES, []),
    ):
        own.private_key.chmod(mode)
        assert names(verify(file, env)) == expected


def test_reader_says_only_what_is_new(write: Write) -> None:
    first, second = {"timeouts": {"response_head": 1}}, {"retry": {"budget": 2}}
    file = write(first)
    reader = Reader(file, {}, lambda config: config.model_copy(update={"workers": 3}))
    assert reader.warnings() == []
    assert reader.read().workers == 3

    def said() -> list[str]:
        return [line.split(": ")[2] for line in reader.warnings()]

    assert said() == ["response-head-short"]
    # It has moved, and is the same.
    write(second | first)
    reader.read()
    assert said() == ["retries-multiply"]
    write("members: [")
    with pytest.raises(ConfigError):
        reader.read()
    assert said() == []
    write(second)
    reader.read()
    assert said() == []
    # It was gone, and is back.
    write(second | first)
    reader.read()
    assert said() == ["response-head-short"]


def test_programs_are_told_the_same(write: Write) -> None:
    checked = verify(write({"timeouts": {"response_head": 1, "connect": 0}}), {})
    assert as_json("f", checked.faults, checked.warnings) == [
        {
            "file": "f",
            "line": 7,
            "column": 12,
            "key": "timeouts.connect",
            "level": "error",
            "name": None,
            "message": "is 0, expected a duration above 0, such as 250ms, 15s or 4h",
        }
    ]
    (row,) = as_json("f", *_parts(verify(write({"timeouts": {"response_head": 1}}), {})))
    assert (row["level"], row["name"], row["line"]) == ("warning", "response-head-short", 6)
    (row,) = as_json("f", *_parts(verify(Path("/no/such"), {})))
    assert (row["line"], row["column"], row["key"]) == (None, None, "")


def _parts(checked: CheckedFile) -> tuple[Any, Any]:
    return checked.faults, checked.warnings


# What only a look at the world tells


async def test_addresses_that_cannot_be_listened_on_are_faults(tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as listens:
        listens.bind(str(tmp_path / "taken"))
        listens.listen()
        port = taken.getsockname()[1]
        addresses = {
            f"127.0.0.1:{port}": "Address already in use",
            "192.0.2.1:0": "Cannot assign requested address",
            f"unix:{tmp_path}/taken": "Address already in use",
            f"unix:{tmp_path}/file": "a file with that name exists",
            f"unix:{tmp_path}/none/e": "No such file or directory",
            f"unix:{tmp_path}/free": None,
            "127.0.0.1:0": None,
        }
        listen = [{"address": address} for address in addresses]
        data = {
            "listen": listen,
            "admin": {"address": "127.0.0.1:0"},
            "members": {"a": {"url": "http://127.0.0.1:1"}},
        }
        async with guard():
            checked = await look(verify(write(data), {}))
    expected = "expected an address of this machine that is free"
    assert [fault.message for fault in checked.faults] == [
        f"cannot listen on {address}: {why}, {expected}" for address, why in addresses.items() if why
    ]
    assert all(fault.place for fault in checked.faults)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edge.yaml", "file", "taken"]


@pytest.mark.parametrize("name", ["0x7f000001", "127.0.0.0x1"])
async def test_names_of_one_address_collide_once_they_are_looked_up(name: str, write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    first, second = f"127.0.0.1:{port}", f"{name}:{port}"
    members = {"a": {"url": "http://127.0.0.1:1"}}
    for listen, admin in ([first, second], "127.0.0.1:0"), ([first], second):
        file = write(
            {
                "listen": [{"address": address} for address in listen],
                "admin": {"address": admin, "state": "off"},
                "members": members,
            }
        )
        path = "admin.address" if admin == second else "listen.1.address"
        expected = (
            f"is '{second}', which is 127.0.0.1:{port} here, and listen.0.address already uses "
            f"127.0.0.1:{port}, expected an address of its own"
        )
        async with guard():
            checked = await look(verify(file, {}))
            assert [(fault.path, fault.message) for fault in checked.faults] == [(path, expected)]
            service = Service(verify(file, {}).config, probe=False)
            with pytest.raises(ConfigError) as caught:
                await service.start()
        assert [(fault.path, fault.message) for fault in caught.value.faults] == [(path, expected)]


async def test_addresses_of_the_running_edge_are_not_taken(write: Write) -> None:
    answers: list[Any] = []

    async def config(request: web.Request) -> web.Response:
        return answers[0] if isinstance(answers[0], web.Response) else web.json_response(answers[0])

    app = web.Application()
    app.router.add_get("/config", config)
    runner = web.AppRunner(app, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    admin = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            public = f"127.0.0.1:{taken.getsockname()[1]}"
            file = write(
                {
                    "listen": [{"address": public}],
                    "admin": {"address": admin},
                    "members": {"a": {"url": "http://127.0.0.1:1"}},
                }
            )
            for running, faulty in (
                ({"listen": [{"address": public}], "admin": {"address": admin}}, []),
                ({"listen": [{"address": "x"}, {"address": 5}], "admin": {"address": admin}}, ["listen.0"]),
                ({"listen": []}, ["listen.0", "admin"]),
                ([], ["listen.0", "admin"]),
                (web.Response(text="no JSON"), ["listen.0", "admin"]),
                (web.Response(status=404), ["listen.0", "admin"]),
            ):
                answers[:] = [running]
                async with guard():
                    checked = await look(verify(file, {}))
                assert [fault.path.removesuffix(".address") for fault in checked.faults] == faulty
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("admin", ["127.0.0.1:0", "unix:{}/admin.sock"])
async def test_running_edge_is_asked_with_a_token_and_says_all_of_a_long_config(
    admin: str, write: Write, tmp_path: Path
) -> None:
    token = "a-token-that-nobody-guesses"
    # More than is read at once.
    members = {
        f"m{at}": {"url": f"http://127.0.0.1:{at}", "contact": f"https://x/{'x' * 200}"}
        for at in range(1, 300)
    }
    with socket.create_server(("127.0.0.1", 0)) as found, socket.create_server(("127.0.0.1", 0)) as other:
        public, second = (f"127.0.0.1:{each.getsockname()[1]}" for each in (found, other))
    address = admin.format(tmp_path) if "unix" in admin else second
    file = write(
        {
            "listen": [{"address": public}],
            "admin": {
                "address": address,
                "tokens": {"me": {"token": token}},
                "read": "token",
                "state": "off",
            },
            "members": members,
        }
    )
    config = verify(file, {}).config
    service = Service(config, probe=False)
    await service.start()
    try:
        async with guard():
            findings = await _try_addresses(config)
    finally:
        await service.stop()
    assert findings == []


async def test_members_are_asked_how_they_are(write: Write) -> None:
    well, sick = ToyBinderHub("well"), ToyBinderHub("sick")
    sick.mode = Mode.SICK
    await asyncio.gather(well.start(), sick.start())
    try:
        members = {
            "well": {"url": well.url, "prime": True},
            "sick": {"url": sick.url},
            "past": {"url": "http://127.0.0.1:1", "active": False},
            "nobody": {"url": "http://127.0.0.1:1"},
        }
        loopback = {"listen": [{"address": "127.0.0.1:0"}], "admin": {"address": "127.0.0.1:0"}}
        for silence in [], ["member-unhealthy"]:
            file = write(loopback | {"members": members, "silence": silence})
            async with guard():
                checked = await look(verify(file, {}))
            assert checked.faults == []
            found = {each.what.path: f"{each.name} {each.what.message}" for each in checked.warnings}
            assert found == (
                {
                    "members.sick": "member-unhealthy is unhealthy: reports that JupyterHub API is not ok",
                    "members.nobody": "member-unhealthy is unhealthy: no connection: Connection refused",
                }
                if not silence
                else {}
            )
    finally:
        await asyncio.gather(well.stop(), sick.stop())


@pytest.mark.parametrize(("reserve", "fits"), [(49, True), (50, False), (1000, False), (0, True)])
async def test_reserve_that_leaves_nothing_is_said(write: Write, reserve: int, fits: bool) -> None:
    small = ToyBinderHub("small", pods=0, quota=60)
    await small.start()
    try:
        members = {"small": {"url": small.url, "reserve": reserve}}
        loopback = {"listen": [{"address": "127.0.0.1:0"}], "admin": {"address": "127.0.0.1:0"}}
        file = write(loopback | {"members": members, "silence": ["member-unhealthy"]})
        async with guard():
            checked = await look(verify(file, {}))
        found = {each.what.path: f"{each.name} {each.what.message}" for each in checked.warnings}
        text = f"is {reserve}, which with `health.pod_headroom` (10) leaves nothing of the quota of 60"
        assert found == ({} if fits else {"members.small.reserve": f"reserve-unfit {text}, expected less"})
    finally:
        await small.stop()


def test_reader_names_all_that_it_read(tmp_path: Path) -> None:
    parts, pages = tmp_path / "parts", tmp_path / "pages"
    for folder in (parts, pages):
        folder.mkdir()
    (tmp_path / "token").write_text("quiet enough to be a token")
    (parts / "a.yaml").write_text("members: {a: {url: 'https://a.example'}}")
    (pages / "error.html").write_text("<!doctype html><title>{{ detail }}</title>")
    file = tmp_path / "edge.yaml"
    token, templates = f"${{file:{tmp_path / 'token'}}}", str(pages)
    data = {"include": ["parts/*.yaml"], "admin": {"token": token}, "pages": {"templates": templates}}
    file.write_text(yaml.safe_dump(data))
    reader = Reader(file, {}, lambda config: config)
    assert reader.files() == [file]
    reader.read()
    assert set(reader.files()) == {
        file,
        parts,
        parts / "a.yaml",
        tmp_path / "token",
        pages,
        pages / "error.html",
    }
    (parts / "b.yaml").write_text("members: [")
    with pytest.raises(ConfigError):
        reader.read()
    assert {parts / "b.yaml", pages} <= set(reader.files())
    file.unlink()
    with pytest.raises(ConfigError):
        reader.read()
    assert parts / "b.yaml" in reader.files()


# Sources of members


def test_files_of_the_directory_have_faults_with_their_places(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "members"
    folder.mkdir()
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for name, text in (
        ("b", "url: https://b.example\nweight: -1"),
        ("c", ""),
        ("d", "{url: https://d.example, prime: true}"),
        ("e", f"{{url: https://e.example, ca: {junk}}}"),
        ("f", "url: https://${HOST}"),
        ("a", "url: https://other.example"),
    ):
        (folder / f"{name}.yaml").write_text(text)
    checked = verify_all(write({"sources": {"directory": str(folder)}}), {"HOST": "f.example"})
    assert sorted(faults(checked)) == [
        f"{folder}/b.yaml:2:9: weight: is -1, expected auto or a number of at least 0",
        f"{folder}/c.yaml:1:1: is empty, expected at least `url`",
        f"{folder}/d.yaml:1:1: prime: is true, but a is prime already, expected at most one prime member",
        f"{folder}/e.yaml:1:1: {junk} cannot be used, expected certificates as PEM",
    ]
    assert names(checked) == ["source-hidden"]
    # An edge starts without them.
    assert verify(tmp_path / "edge.yaml", {}).faults == []
    assert list(members_in(checked.reading.config, {})) == ["a", "d", "e"]  # type: ignore[union-attr, arg-type]


def test_directory_that_cannot_be_read_is_a_warning(tmp_path: Path, write: Write) -> None:
    checked = verify_all(write({"sources": {"directory": str(tmp_path / "none")}}), {})
    assert (faults(checked), names(checked)) == ([], ["source-unusable"])
    assert members_in(checked.config, {}) == {}


def test_more_files_than_the_limit_are_a_warning(tmp_path: Path, write: Write) -> None:
    for name in "bcd":
        (tmp_path / f"{name}.yaml").write_text(f"url: https://{name}.example")
    checked = verify_all(write({"sources": {"directory": str(tmp_path), "limit": 2}}), {})
    assert (faults(checked), names(checked)) == ([], ["source-limit"])


def test_set_that_does_not_fit_with_the_config_is_a_fault(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "members"
    folder.mkdir()
    (folder / "b.yaml").write_text("{url: https://b.example, active: false}")
    config = {"sources": {"directory": str(folder)}, "routes": [{"path": "/x", "to": "b"}]}
    assert faults(verify_all(write(config), {})) == [
        "f: routes.0.to: is 'b', a past member, expected an active one"
    ]


async def test_names_are_asked_and_their_members_probed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write
) -> None:
    (tmp_path / "members").mkdir()
    (tmp_path / "members/f.yaml").write_text("url: http://127.0.0.1:1")
    data = {
        "members": {},
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "health": {"timeout": 2},
        "sources": {
            "dns": ["_http._tcp.a.test", "b.test"],
            "scheme": "http",
            "directory": str(tmp_path / "members"),
        },
    }
    async with guard(), name_server() as zone:
        monkeypatch.setenv("FEDPROXY_NAMESERVERS", zone.address)
        zone.holds("pod.test", "127.0.0.1")
        zone.replies["_http._tcp.a.test", SRV] = Reply.services((0, 1, 1, "pod.test"))
        checked = await look(verify(write(data), {}))
    assert {(each.name, each.what.path) for each in checked.warnings} == {
        ("source-unusable", "sources.dns.1"),
        ("member-unhealthy", "members.f"),
        ("member-unhealthy", "members.pod.test"),
    }


async def test_nobody_to_probe_is_not_waited_for(write: Write) -> None:
    data = {
        "members": {},
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "sources": {"directory": "/not/there"},
    }
    async with guard():
        assert (await look(verify(write(data), {}))).warnings == []
